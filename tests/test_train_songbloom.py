"""Training a SongBloom prior through the real command: resuming, ranks, the cache, what each option does, mistakes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import make_models
import train
from hparams import HPARAMS_REGISTRY, training_command
from songbloom.data.loader import make_loader
from songbloom.data.songbloom_dataset import SongBloomDataset
from songbloom.errors import UserError
from songbloom.lora.files import write_safetensors
from songbloom.published.songbloom import prior as published_prior
from songbloom.published.songbloom import vae as published_vae
from songbloom.training import checkpoint
from songbloom.training.loop import Trainer
from songbloom.training.songbloom import SongBloomTask
from tests.songs import codebook, write_codec, write_corpus
from tests.test_train import run
from tests.training.runs import differences, latest, weight_difference

RUN = ["--hps=tiny_songbloom", "--prior", "--train", "--data-jsonl=songs.jsonl", "--log_steps=2", "--sample_iters=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four songs and a codec, which is the working directory."""
    write_corpus(tmp_path)
    write_codec(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prior of 6 steps in ``logs/tiny_songbloom``, and the command's output in ``said``."""
    folder = tmp_path_factory.mktemp("songbloom")
    write_corpus(folder)
    write_codec(folder)
    done = run(folder, *RUN, "--name=tiny_songbloom", "--max-steps=6", "--val-split=0.5", "--sample_iters=6")
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout, encoding="utf-8")
    return folder


def built(*words: str) -> Trainer:
    return train.build(training_command([*RUN, "--name=x", *words]).hps)


def parts_of(trainer: Trainer) -> tuple[SongBloomTask, SongBloomDataset]:
    assert isinstance(trainer.task, SongBloomTask)
    return trainer.task, trainer.train_set


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        built(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Any) -> None:
    """Change each line of ``songs.jsonl``."""
    path = folder / "songs.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [change(row) or row for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_licences_of_earlier_songs_stay(folder: Path) -> None:
    """When a run goes on with other songs, and when another begins with its weights."""
    for terms, more in (("CC BY 4.0", "1"), ("CC0", "2")):
        write_corpus(folder, licence=terms)
        assert built(f"--train_steps={more}").run() == 0
    assert latest(folder / "logs", "x")["hps"]["licences"] == ["CC0", "CC BY 4.0"]
    write_corpus(folder, licence="mine")
    begun = f"--restore_prior=logs/x/{checkpoint.LATEST}"
    assert built(begun, "--name=y").state.hps["licences"] == ["mine", "CC0", "CC BY 4.0"]


class TestARun:
    def test_it_tells_what_it_does_and_learns(self, trained: Path) -> None:
        said = (trained / "said").read_text(encoding="utf-8")
        assert "0 errors" in said and "guessing costs ln 16 = 2.773" in said and "verdict" not in said
        assert said.count("encoding songs: 1 of 2\nencoding songs: 2 of 2\n") == 2  # to train on and to test on
        assert "test at step 6" in said and "cache: 0 of 12 were there" in said
        content = latest(trained / "logs", "tiny_songbloom")
        assert content["kind"] == "prior" and content["step"] == 6
        assert content["hps"]["lyric_symbols"][0] == "" and "[verse]" in content["hps"]["lyric_symbols"]
        assert content["hps"]["sketch_digest"] == codebook().digest

    def test_its_model_is_found_by_name(self, trained: Path) -> None:
        vae = {"tiny_songbloom_vae": str(trained / "logs/tiny_songbloom_vae/checkpoint_latest.pth.tar")}
        where = {"local_logdir": str(trained / "logs")}
        codec, prior = make_models.make_songbloom("tiny_songbloom", hps=where, checkpoints=vae)
        assert not prior.training and codec.tokeniser is not None
        averaged = latest(trained / "logs", "tiny_songbloom")["ema"]
        assert all(torch.equal(p, averaged[name]) for name, p in prior.named_parameters() if name in averaged)
        audio = torch.randn(2, 3200 + 17, 2)
        latents, sketch = codec.encode(audio)
        assert latents.shape == (2, 10, 4) and sketch.shape == (2, 10) and int(sketch.max()) < 16
        assert codec.decode([latents]).shape == (2, 3200, 2)
        pieces = torch.cat(list(codec.decode_pieces([latents], piece=4)), dim=1)
        torch.testing.assert_close(pieces, codec.decode([latents]), atol=1e-6, rtol=1e-5)
        with pytest.raises(UserError, match="upsample"):
            codec.decode([latents], level=1)

    def test_stopped_and_gone_on_with_it_is_the_undisturbed_run(self, folder: Path) -> None:
        options = [*RUN, "--segment-strategy=random", "--sample_length=3840", "--accumulate-grad-batches=2", "--bs=1"]
        for name, steps in (("whole", (5,)), ("parts", (2, 5))):
            for step in steps:
                done = run(folder, *options, f"--name={name}", f"--max-steps={step}")
                assert done.returncode == 0, done.stderr
        assert differences(latest(folder / "logs", "whole"), latest(folder / "logs", "parts")) == []

    @pytest.mark.slow
    def test_two_ranks_learn_what_one_does(self, folder: Path) -> None:
        contents = {}
        for ranks in (1, 2):
            options = [*RUN, f"--name=r{ranks}", "--max-steps=2", f"--batch-size={4 // ranks}", "--val-split=0.5"]
            done = run(folder, *options, ranks=ranks, what=["nothing", "0"])
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout.splitlines()[-1])
            assert done.stdout.count("encoding songs: 2 of 2\n") == 2
            assert len(set(told["hashes"])) == 1, "ranks differ in some bit"
            contents[ranks] = latest(folder / "logs", f"r{ranks}")
        assert weight_difference(contents[1], contents[2]) < 2e-4


class TestTheStep:
    def test_what_is_compiled_is_what_a_step_calls(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiling, made = torch.nn.Module.compile, []

        def backend(graph: Any, inputs: Any) -> Any:
            made.append(len(graph.graph.nodes))
            return graph.forward

        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiling(self, backend=backend, fullgraph=True))
        for name, more in (("plain", []), ("compiled", ["--torch_compile"])):
            assert train.build(training_command([*RUN, f"--name={name}", "--train_steps=2", *more]).hps).run() == 0
            assert bool(made) is (name == "compiled")
        one, other = (latest(folder / "logs", name) for name in ("plain", "compiled"))
        assert list(one["model"]) == list(other["model"])
        assert weight_difference(one, other) < 1e-5

    def test_every_tensor_must_get_a_gradient(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task, songs = parts_of(built())
        batch = task.batch_of(default_collate([songs[0]]), torch.device("cpu"))
        task.check_gradients(batch)
        assert all(p.grad is None for p in task.model.parameters())
        original = task.model.patch_encoder.forward
        monkeypatch.setattr(task.model.patch_encoder, "forward", lambda x: original(x).detach())
        with pytest.raises(UserError, match=r"patch_encoder\.hidden\.weight"):
            task.check_gradients(batch)

    def test_conditions_are_hidden_as_often_as_asked(self, folder: Path) -> None:
        words = ["--condition_dropout=0.2", "--lyric_dropout=0.1", "--prompt_dropout=0.3"]
        task, songs = parts_of(built(*words))
        item = songs[0]
        hidden = np.zeros(2)
        for epoch in range(400):
            batch = task.batch_of(default_collate([{**item, "epoch": epoch}]), torch.device("cpu"))
            assert batch.parts is not None
            _, words_left, valid = task._drawn(batch.parts, True)
            hidden += [words_left == [[0]], int(valid) == 0]
        for share, wanted in zip(hidden / 400, (1 - 0.8 * 0.9, 1 - 0.8 * 0.7), strict=True):
            assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 400)

    def test_conditions_hidden_by_batch_are_drawn_anew_for_each(self, folder: Path) -> None:
        task, songs = parts_of(built("--lyric_dropout=0.5", "--dropout_by_batch"))
        hidden = []
        for batch in make_loader(songs, batch=2, epoch=1):  # another epoch than the next ones'
            hidden.append(task._drawn(task.batch_of(batch, torch.device("cpu")).parts or {}, True)[1])
        items = default_collate([songs[0]] * 3)
        for number in range(40):
            items["batch"] = torch.full((3,), number)
            hidden.append(task._drawn(task.batch_of(items, torch.device("cpu")).parts or {}, True)[1])
        gone = [{words == [0] for words in batch} for batch in hidden]
        assert all(len(each) == 1 for each in gone)  # all of a batch or none
        assert {True, False} == set.union(*gone[-40:])  # and batches of one epoch differ

    def test_a_segment_that_is_cut_does_not_teach_the_end(self, folder: Path) -> None:
        task, songs = parts_of(built("--sample_length=3840"))  # 12 frames of some 50
        item = songs[0]
        assert item["ends"] == 0 and item["length"] == 12
        task.eval()
        losses = []
        for ends in (0, 1):
            batch = task.batch_of(default_collate([{**item, "ends": ends}]), torch.device("cpu"))
            losses.append(float(task(*task.prepare(batch))[1]["sketch_loss"]))
        with torch.no_grad():
            bias = task.model.classifier.output.bias
            bias[task.model.config.eos] += 3.0  # only what is taught about the end gains by it
        after = []
        for ends in (0, 1):
            batch = task.batch_of(default_collate([{**item, "ends": ends}]), torch.device("cpu"))
            after.append(float(task(*task.prepare(batch))[1]["sketch_loss"]))
        assert after[0] > losses[0] and (after[1] - losses[1]) < (after[0] - losses[0])

    def test_a_strange_codebook_is_told(self, folder: Path) -> None:
        task, songs = parts_of(built("--seed=3"))
        batch = task.batch_of(default_collate([songs[0]]), torch.device("cpu"))
        assert "mean nothing to this model" in task.verdict([batch], pretrained=True)[1]
        told = task.verdict([batch], pretrained=True, same_codebook=True)[1]
        assert "does not expect these songs" in told and "another codebook" not in told
        with torch.no_grad():  # a model that knows the song
            task.model.classifier.output.bias[: task.model.config.l_bins] = 6.0 * torch.bincount(
                songs[0]["tokens"], minlength=16
            ).clamp(max=1)
        assert "knows these sketch tokens" in task.verdict([batch], pretrained=True)[1]


class TestOptions:
    def test_names_of_other_trainers(self) -> None:
        words = ["--model-name", "songbloom_full_150s_dpo", "--prior", "--train", "--name=x", "--data-jsonl=a.jsonl"]
        words += ["--precision", "bf16-mixed", "--batch-size=3", "--lambda-flow=0.2", "--muq-vq-path=book.pt"]
        words += ["--resume-from=c.pt", "--no-wandb", "--wandb-mode", "offline", "--num-workers", "0", "--h-dropout=.1"]
        words += ["--accumulate-grad-batches", "4", "--max-epochs=2", "--max-steps=9", "--warmup-steps", "5"]
        hps = training_command(words).hps
        assert hps.restore_prior == "c.pt" and hps.prior_depth == 36 and hps.restore_sketch == "book.pt"
        assert (hps.precision, hps.bs, hps.flow_loss_fraction, hps.nworkers, hps.patch_dropout) == (
            "bf16",
            3,
            0.2,
            0,
            0.1,
        )
        assert (hps.iters_before_update, hps.epochs, hps.train_steps, hps.lr_warmup) == (4, 2, 9, 5)
        assert hps.wandb is False and hps.wandb_mode == "offline"

    def test_segments(self, folder: Path) -> None:
        _, start = parts_of(built("--sample_length=3840"))
        assert {start.place(epoch, 0)[1] for epoch in range(5)} == {0} and len(start) == 4
        _, drawn = parts_of(built("--sample_length=3840", "--segment-strategy=random"))
        assert len({drawn.place(epoch, 0)[1] for epoch in range(5)}) > 2 and len(drawn) > 12
        item = drawn.item(3, 0)
        number, first, length, at = drawn.place(3, 0)
        assert at + drawn.prompt_length <= first or at >= first + length  # the prompt is cut from elsewhere
        latents = drawn.cache.read(drawn.songs[number].latents)
        assert torch.equal(item["latents"], latents[first : first + length])

    def test_shortest_and_longest(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, songs = parts_of(built("--max-duration=0.5", "--min-duration=2.5"))
        assert songs.segment == 12 and len(songs.songs) == 2 and "2 songs are shorter" in capsys.readouterr().out

    def test_words_go_with_the_sound(self, folder: Path) -> None:
        phrases = [{"start": 0.0, "end": 0.4, "text": "さくら"}, {"start": 1.2, "end": 1.9, "text": "やよい"}]
        rewrite(folder, lambda row: {**row, "lyrics": "[verse] さくら. やよい", "phrases": phrases})
        task, songs = parts_of(built("--sample_length=3840"))  # the first 0.48 s
        symbols = task.hps["lyric_symbols"]
        item = songs[0]
        assert [symbols[i] for i in item["lyrics"][: item["words"]]] == ["[verse]", *"sakura"]

    def test_language_of_words(self, folder: Path) -> None:
        rewrite(folder, lambda row: {**row, "lyrics": "[verse] s a k u r a", "language": None})
        task, songs = parts_of(built("--no-process-lyrics", "--sample_length=16000"))
        symbols = task.hps["lyric_symbols"]
        shown = [symbols[i] for i in songs[0]["lyrics"][: songs[0]["words"]]]
        assert shown == ["[verse]", *"sakura"]

    def test_precomputed_sketches(self, folder: Path) -> None:
        for number in range(4):
            np.save(folder / f"{number}.npy", np.full(40 if number else 50, number))
        rewrite(folder, lambda row: {**row, "sketch_path": f"{row['idx'][-1]}.npy"})
        words = ["--sketch-mode=precomputed", "--restore_sketch="]
        _, songs = parts_of(built(*words))
        assert [songs[i]["tokens"][0] for i in range(4)] == [0, 1, 2, 3] and songs.songs[1].frames == 40
        assert "sketch has 40 codes" in refused(*words, "--require-length-match")
        assert "--require_vq_path" in refused(*words, "--require-vq-path")

    def test_lengths_are_verified(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number in range(4):
            np.save(folder / f"{number}.npy", np.full(49, number))
        rewrite(folder, lambda row: {**row, "sketch_path": f"{row['idx'][-1]}.npy"})
        built("--sketch-mode=precomputed", "--verify-lengths", "--verify-lengths-max=2")
        assert "[verify] checked=2 mismatches=2" in capsys.readouterr().out

    def test_groups_stay_on_one_side(self, folder: Path) -> None:
        sides = [built("--val-split=0.5", f"--split-seed={seed}") for seed in range(6)]
        seen = set()
        for trainer in sides:
            groups = [
                {song.song.extra["group"] for song in part.songs} for part in (trainer.train_set, trainer.test_set)
            ]
            assert not groups[0] & groups[1] and all(groups)
            seen.add(min(groups[0]))
        assert len(seen) == 2

    def test_weights_to_begin_with(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--init_from_pretrained" in refused("--init-from-pretrained")
        task, _ = parts_of(built("--seed=1"))
        path = folder / "published.pt"
        make_models.save(task.model, path, "prior", task.hps, published=True)
        begun, _ = parts_of(built("--seed=2", "--init-from-pretrained", f"--restore_prior={path}"))
        assert all(torch.equal(a, b) for a, b in zip(begun.model.parameters(), task.model.parameters(), strict=True))
        assert "verdict" in capsys.readouterr().out
        fresh, _ = parts_of(built("--seed=2", "--no-init-from-pretrained", f"--restore_prior={path}"))
        assert not torch.equal(fresh.model.start, task.model.start)

    def test_cosine_ends_where_training_does(self, folder: Path) -> None:
        hps = built("--lr_use_cosine_decay", "--max-steps=7").hps
        assert hps["lr_decay"] == 7

    def test_wandb_is_told_when_asked(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = "import json, pathlib\nclass Audio:\n  def __init__(self, *a, **k): pass\nclass Run:\n"
        fake += "  def log(self, values, step): open('told', 'a').write(json.dumps(sorted(values)) + '\\n')\n"
        fake += "  def finish(self): open('told', 'a').write('end\\n')\n"
        fake += "def init(**k):\n  open('begun', 'w').write(k['mode'] + ' ' + k['project'])\n  return Run()\n"
        (folder / "wandb.py").write_text(fake)
        monkeypatch.syspath_prepend(str(folder))
        built("--wandb", "--wandb-mode=offline", "--wandb-project=songs", "--max-steps=2").run()
        sys.modules.pop("wandb")
        assert (folder / "begun").read_text() == "offline songs"
        told = (folder / "told").read_text().splitlines()
        assert "sketch_loss" in told[0] and told[-1] == "end"


class TestTheCache:
    def test_runs_share_it_and_it_is_never_out_of_date(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shared = ["--use-cache", f"--cache_dir={folder / 'kept'}"]

        def rate(*words: str) -> str:
            built(*shared, *words)
            return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("cache:"))

        assert rate().startswith("cache: 0 of 12") and rate("--name=y").startswith("cache: 12 of 12")
        assert rate("--rebuild-cache").startswith("cache: 0 of 12")
        content = (folder / "wav" / "song_0.wav").read_bytes()
        (folder / "wav" / "song_0.wav").write_bytes(content[:-400])
        assert rate("--name=z").startswith("cache: 9 of 12"), "another sound under the same name"
        (folder / "wav" / "song_0.wav").write_bytes(content)
        codebook(seed=5).save(folder / "logs" / "tiny_sketch" / "sketch_codebook.pt")
        assert rate("--name=w").startswith("cache: 8 of 12"), "new sketches, old latents"
        for entry in (folder / "kept").rglob("*.npz"):
            entry.write_bytes(entry.read_bytes()[:100])  # as if damaged
        assert rate("--name=w").startswith("cache: 0 of 12")

    def test_it_can_be_all_that_is_done(self, folder: Path) -> None:
        done = run(folder, *RUN, "--name=x", "--use-cache", "--cache_dir=kept", "--cache_only")
        assert done.returncode == 0 and "12 entries" in done.stdout and not list((folder / "logs" / "x").glob("*.tar"))


class TestMistakes:
    def test_one_line_each(self, folder: Path) -> None:
        assert "give --data_jsonl" in refused("--data_jsonl=")
        assert "needs a codebook" in refused("--restore_sketch=")
        assert "features 'builtin'" in refused("--sketch-mode=muq")
        assert "has 16 codes" in refused("--l_bins=64")
        assert "give --restore_vae" in refused("--restore_vae=")
        assert "vae_strides" in refused("--vae_strides=4,8,8", "--sample_length=2560")
        assert "wandb package" in refused("--wandb")
        rewrite(folder, lambda row: {**row, "group": 1})
        assert "one group" in refused("--val-split=0.5")

    def test_another_codec_than_it_was_trained_on(self, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(trained)
        other = codebook(seed=9)
        other.save(trained / "other.pt")
        assert "another sketch codebook" in refused("--name=tiny_songbloom", "--restore_sketch=other.pt")


class TestPublishedFiles:
    def test_with_and_without_the_vae(self, folder: Path) -> None:
        task, _ = parts_of(built())
        whole, alone, apart = (folder / name for name in ("a/whole.pt", "b/alone.pt", "c/alone.pt"))
        state = published_prior.to_published(task.model.state_dict())
        vae = published_vae.to_published(task.codec.vae.state_dict(), prefix=published_vae.BUNDLED)
        checkpoint.save(whole, {**state, **vae})
        checkpoint.save(alone, state)
        checkpoint.save(apart, state)
        checkpoint.save(
            apart.parent / "autoencoder_music_dsp1920.ckpt",
            {"state_dict": published_vae.to_published(task.codec.vae.state_dict())},
        )
        for path in (whole, apart):
            codec, prior = make_models.make_songbloom("tiny_songbloom", checkpoints={"tiny_songbloom": str(path)})
            assert codec.tokeniser is None, "a codebook that lies about is not a published model's"
            assert torch.equal(prior.start, task.model.start)
            assert all(
                torch.equal(a, b) for a, b in zip(codec.vae.parameters(), task.codec.vae.parameters(), strict=True)
            )
            with pytest.raises(UserError, match="no sketch codebook"):
                codec.encode(torch.zeros(1, 640, 2))
        with pytest.raises(UserError, match="holds no VAE"):
            make_models.make_songbloom("tiny_songbloom", checkpoints={"tiny_songbloom": str(alone)})

    def test_settings_and_vocabulary_beside_the_weights(self, folder: Path) -> None:
        symbols = ["", "[verse]", "[chorus]", "a", "i", ",", "."]
        (folder / "w").mkdir()
        (folder / "w" / "vocab_g2p.yaml").write_text(json.dumps(symbols))
        settings = {"block_size": 4, "latent_dim": 4, "dim": 32, "num_heads": 1, "lm_layers": 1, "diff_layers": 1}
        settings |= {"num_pitch": 16, "hidden_scale": 2, "timestep_features_dim": 8, "rotary_base_val": 40000}
        settings["condition_provider_cfg"] = {
            "lyrics": {"max_len": 9, "max_sentence_per_structure": 4},
            "prompt_wav": {"max_len": 5},
        }
        (folder / "w" / "model.yaml").write_text(json.dumps({"max_dur": 20, "model": settings}))
        hps = training_command([*RUN, "--name=x", "--prior_depth=1", "--lyric_tokens=9", "--prompt_frames=5"]).hps
        hps.lyrics_vocab, hps.rotary_base = str(folder / "w" / "vocab_g2p.yaml"), 40000.0
        prior = make_models.make_songbloom_prior(hps)
        make_models.save(prior, folder / "w" / "model.pt", "prior", hps, published=True)
        given = {"restore_vae": "logs/tiny_songbloom_vae/checkpoint_latest.pth.tar"}
        _, made = make_models.make_songbloom("tiny_songbloom", hps=given, checkpoints={"tiny_songbloom": "w/model.pt"})
        assert made.config.lyric_vocabulary == 7 and made.config.structure_tokens == (1, 2)
        assert (made.config.lyric_tokens, made.config.rotary_base, made.config.prior_depth) == (9, 40000, 1)

    def test_a_hub_file_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SONGBLOOM_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=r"songbloom_full_150s\.pt.*by hand"):
            make_models.make_songbloom("songbloom_150s")
        assert "hf://" in HPARAMS_REGISTRY["songbloom_240s"].restore_prior

    def test_forks_keep_safetensors(self, folder: Path) -> None:
        task, _ = parts_of(built())
        state = published_prior.to_published(task.model.state_dict())
        state |= published_vae.to_published(task.codec.vae.state_dict(), prefix=published_vae.BUNDLED)
        content = {name: tensor.bfloat16() for name, tensor in state.items()}
        write_safetensors(folder / "fork.safetensors", content, {})
        named = {"tiny_songbloom": "fork.safetensors"}
        codec, prior = make_models.make_songbloom("tiny_songbloom", checkpoints=named)
        assert torch.equal(prior.start, task.model.start.bfloat16().float()) and prior.start.dtype == torch.float32
        weight = codec.vae.decoder.output.direction
        assert torch.equal(weight, task.codec.vae.decoder.output.direction.bfloat16().float())
        (folder / "fork.safetensors").write_bytes((folder / "fork.safetensors").read_bytes()[:-8])
        with pytest.raises(UserError, match=r"fork\.safetensors: .*cut short"):
            make_models.make_songbloom("tiny_songbloom", checkpoints=named)

    def test_the_hub_is_asked_for_what_belongs_together(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def download(repository: str, name: str, local_dir: str) -> None:
            asked.append(f"{repository}/{name}")
            if name.endswith(".ckpt"):
                raise OSError("no such file there")
            (Path(local_dir) / name).write_text("x")

        hub = ModuleType("huggingface_hub")
        hub.hf_hub_download = download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setenv("SONGBLOOM_CACHE", str(tmp_path))
        found = make_models.fetch("hf://somebody/songs/song.pt")
        assert found == tmp_path / "somebody" / "songs" / "song.pt" and found.is_file()
        assert [name.rpartition("/")[2] for name in asked] == [
            *("song.pt", "song.yaml", "vocab_g2p.yaml", "autoencoder_music_dsp1920.ckpt"),
        ]
        make_models.fetch("hf://somebody/songs/song.pt")
        assert len(asked) == 4, "what is there is not asked for again"
