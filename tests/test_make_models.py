"""Names to models: sizes, restoring every kind of file, mistakes, downloads."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hparams
import make_models
from make_models import MODELS, make_model, make_prior, make_vqvae, restore, save
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.training import checkpoint
from songbloom.vqvae.vqvae import VQVAE
from tests import programs

ROOT = Path(__file__).parent.parent
COUNTS = json.loads((ROOT / "tests" / "manifest" / "jukebox_small_param_counts.json").read_text())
PART = {"vqvae": "tiny_vqvae", "prior": "tiny_vqvae,tiny_prior", "upsampler": "tiny_vqvae,tiny_upsampler"}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def settings(part: str, **overrides: Any) -> Hyperparams:
    return hparams.setup_hparams(PART[part], {"restore_vqvae": "", **overrides})


def build(part: str, **overrides: Any) -> Any:
    """A tiny codec, prior or upsampler."""
    if part == "vqvae":
        return make_vqvae(settings(part, **overrides))
    return make_prior(settings(part, **overrides), make_vqvae(settings(part)))


def kind_of(part: str) -> str:
    return "vqvae" if part == "vqvae" else "prior"


def different(module: nn.Module, seed: int = 5) -> nn.Module:
    """The module with other numbers in every tensor."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestSizes:
    """Parameter counts of the published and the small models, without using memory for them."""

    def test_codecs(self) -> None:
        published = make_vqvae(hparams.setup_hparams("vqvae"), "meta")
        assert parameters(published) == 1_485_763
        assert published.hop_lengths == (8, 32, 128)
        assert parameters(make_vqvae(hparams.setup_hparams("small_vqvae"), "meta")) == COUNTS["small_vqvae"]

    @pytest.mark.parametrize(("name", "level"), [("small_prior", 1), ("small_upsampler", 0)])
    def test_priors(self, name: str, level: int) -> None:
        hps = hparams.setup_hparams(f"small_vqvae,{name}", {"level": level, "labels": False})
        prior = make_prior(hps, make_vqvae(hps, "meta"), "meta")
        assert parameters(prior) == COUNTS[name]
        assert all(parameter.is_meta for parameter in prior.parameters())

    @pytest.mark.parametrize("name", ["demo", "tiny"])
    def test_our_models_are_whole(self, name: str) -> None:
        vqvae, priors = make_model(name, "meta")
        assert [prior.level for prior in priors] == list(range(vqvae.levels))
        assert all(prior.l_bins == vqvae.l_bins for prior in priors)

    @pytest.mark.parametrize("name", MODELS)
    def test_every_set_of_a_model_is_registered(self, name: str) -> None:
        assert set(MODELS[name]) <= set(hparams.HPARAMS_REGISTRY)


def test_levels_that_a_model_does_not_have() -> None:
    for ask in (make_model, make_models.find_weights):
        with pytest.raises(UserError, match="model 'tiny' has levels 0 to 1, no level 2"):
            ask("tiny", hps={"local_logdir": "nowhere"}, levels=[2])


class TestBuilding:
    def test_sample_length_is_derived_and_written_back(self) -> None:
        hps = settings("vqvae", sample_length=0, sample_length_in_seconds=0.5)
        vqvae = make_vqvae(hps)
        assert hps.sample_length == vqvae.sample_length == 4000  # 0.5 s at 8 kHz is a multiple of 32
        hps = settings("vqvae", sample_length=0, sample_length_in_seconds=0.501)
        make_vqvae(hps)
        assert hps.sample_length == 4000

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"sample_length": 4095}, "sample_length is 4095.*4064 or 4096"),
            (
                {"sample_length": 0, "sample_length_in_seconds": 0.001},
                "sample_length_in_seconds=0.001 is less than one",
            ),
            ({"levels": 3}, "downs_t has 2 values for 3 levels"),
        ],
    )
    def test_unusable_codecs(self, overrides: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            make_vqvae(settings("vqvae", **overrides))

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"labels": True}, "labels=True needs y_bins=.*--labels=False"),
            ({"level": 2}, "level=2 does not exist with levels=2"),
        ],
    )
    def test_unusable_priors(self, overrides: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            build("prior", **overrides)

    @pytest.mark.parametrize("part", PART)
    def test_weights_depend_on_the_seed_alone(self, part: str) -> None:
        torch.manual_seed(1)
        first = build(part)
        drawn = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(3), drawn)  # building left the global random state alone
        assert same(first, build(part))
        assert not same(first, build(part, seed=1))

    @pytest.mark.parametrize("part", PART)
    def test_only_what_is_trained_is_in_training_mode(self, part: str) -> None:
        trained = build(part, train=True, prior=part != "vqvae")
        assert trained.training
        assert all(parameter.requires_grad for parameter in trained.parameters())
        for overrides in ({}, {"train": True, "prior": part == "vqvae"}):
            frozen = build(part, **overrides)
            assert not frozen.training
            assert not any(parameter.requires_grad for parameter in frozen.parameters())


class TestRestoring:
    @pytest.mark.parametrize("published", [False, True])
    @pytest.mark.parametrize("part", PART)
    def test_what_is_saved_is_restored(self, part: str, published: bool, tmp_path: Path) -> None:
        path = tmp_path / "x.pth.tar"
        trained, fresh = different(build(part)), build(part)
        save(trained, path, kind_of(part), settings(part), step=7, argv=["train.py"], published=published)
        assert not same(trained, fresh)
        content = restore(fresh, path, kind_of(part), hps=settings(part))
        assert same(trained, fresh)
        assert content is not None
        assert content["step"] == 7
        names = checkpoint.load(path)["model"].keys()
        assert published == (not names <= trained.state_dict().keys())

    def test_an_empty_path_restores_nothing(self) -> None:
        fresh = build("vqvae")
        assert restore(fresh, "", "vqvae") is None
        assert same(fresh, build("vqvae"))

    def test_averaged_weights_for_sampling_and_raw_ones_for_training(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.pth.tar")
        raw, average = different(build("vqvae"), 1), different(build("vqvae"), 2)
        save(raw, path, "vqvae", settings("vqvae"))
        content = checkpoint.load(path)
        content["ema"] = {name: parameter.detach() for name, parameter in average.named_parameters()}
        checkpoint.save(path, content)
        sampled = build("vqvae", restore_vqvae=path)
        trained = build("vqvae", restore_vqvae=path, train=True)
        assert same(trained, raw)
        for name, parameter in sampled.named_parameters():
            assert torch.equal(parameter, average.get_parameter(name))
        for name, buffer in sampled.named_buffers():  # codebooks average themselves
            assert torch.equal(buffer, raw.get_buffer(name))

    def test_training_a_codec_goes_on_with_its_codebook_statistics(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.pth.tar")
        trained: VQVAE = build("vqvae", train=True)
        trained(torch.randn(2, 4096, 1, generator=torch.Generator().manual_seed(0)))
        save(trained, path, "vqvae", settings("vqvae"))
        restored: VQVAE = build("vqvae", train=True, restore_vqvae=path)
        ours, theirs = restored.codebook_state()["levels"], trained.codebook_state()["levels"]
        for level in range(2):
            assert torch.equal(ours[level]["k_elem"], theirs[level]["k_elem"])
            assert ours[level]["initialised"]
        save(trained, path, "vqvae", settings("vqvae"), published=True)
        evenly: VQVAE = build("vqvae", train=True, restore_vqvae=path, bs=3)
        # 3 items of 4096 samples in codes of 8 samples, evenly over 32 bins
        assert evenly.codebook_state()["levels"][0]["k_elem"].tolist() == [3 * 4096 / 8 / 32] * 32

    def test_weights_of_a_wrapped_model_and_half_precision(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth.tar"
        trained = different(build("prior"))
        save(trained, path, "prior", settings("prior"), published=True)
        content = checkpoint.load(path)
        content["model"] = {f"module.{name}": tensor.half() for name, tensor in content["model"].items()}
        torch.save({"model": content["model"]}, path)
        fresh = build("prior")
        restore(fresh, path, "prior", hps=settings("prior"))
        for name, parameter in fresh.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, trained.get_parameter(name).half().float())

    @pytest.mark.parametrize("zipped", [True, False])
    def test_hyperparameters_of_other_programs_are_read_without_their_code(self, zipped: bool, tmp_path: Path) -> None:
        path = tmp_path / "x.pth.tar"
        trained = different(build("vqvae"))
        save(trained, path, "vqvae", settings("vqvae"), published=True)
        content = checkpoint.load(path)
        package, module = types.ModuleType("jukebox"), types.ModuleType("jukebox.hparams")

        class Theirs(dict[str, Any]):
            pass

        Theirs.__module__, Theirs.__qualname__, Theirs.__name__ = "jukebox.hparams", "Hyperparams", "Hyperparams"
        module.Hyperparams = Theirs  # type: ignore[attr-defined]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "jukebox", package)
            patch.setitem(sys.modules, "jukebox.hparams", module)
            content["hps"] = Theirs(content["hps"], bandwidth={"l2": np.float64(0.5), "n": np.int64(3)})
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert "jukebox" not in sys.modules
        fresh = build("vqvae")
        restore(fresh, path, "vqvae", hps=settings("vqvae"))
        assert same(trained, fresh)

    def test_code_in_a_file_does_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (Path(tmp_path / "ran").touch, ())

        torch.save({"model": {}, "hps": Evil()}, tmp_path / "x.pth.tar")
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            restore(build("vqvae"), tmp_path / "x.pth.tar", "vqvae")
        assert not (tmp_path / "ran").exists()


class TestTheCommand:
    def test_models_are_listed(self, tmp_path: Path) -> None:
        save(build("vqvae"), tmp_path / "logs/tiny_vqvae" / checkpoint.LATEST, "vqvae", settings("vqvae"))
        for told in ("not yet", "here"):
            done = programs.run(tmp_path, str(ROOT / "make_models.py"))
            assert done.returncode == 0 and not done.stderr
            head, *rows = (line.split("  ") for line in done.stdout.partition("\n\n")[0].splitlines())
            rows = [[word.strip() for word in row if word] for row in rows]
            assert [row[0] for row in rows] == list(MODELS) and "weights" in " ".join(head)
            listed = {name: (family, weights, tuple(parts.split(", "))) for name, family, weights, parts in rows}
            assert listed["tiny"] == ("jukebox", told, MODELS["tiny"])
            assert listed["songbloom_150s"] == ("songbloom", "published", MODELS["songbloom_150s"])
            for part in ("prior", "upsampler"):
                path = tmp_path / "logs" / f"tiny_{part}" / checkpoint.LATEST
                save(build(part), path, "prior", settings(part))

    @pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), (["--x", "-h"], 0), (["--hepl"], 2)])
    def test_help(self, words: list[str], status: int, tmp_path: Path) -> None:
        done = programs.run(tmp_path, str(ROOT / "make_models.py"), *words)
        told, other = (done.stdout, done.stderr)[:: -1 if status else 1]
        assert done.returncode == status and not other
        if status:
            assert told.count("\n") == 1 and "'--hepl'" in told and "--help" in told
        else:
            assert told.startswith("usage: python make_models.py\n")
            assert "HPARAMS_REGISTRY" in told and "MODELS" in told and f"logs/my_prior/{checkpoint.LATEST}" in told

    def test_tasks_are_no_command(self, tmp_path: Path) -> None:
        done = programs.run(tmp_path, str(ROOT / "make_tasks.py"), "--help")
        assert done.returncode == 0 and not done.stderr and "python train.py --help" in done.stdout


class TestMistakes:
    def test_a_file_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"README\.md: no checkpoint, but text; give a checkpoint_latest\.pth\.tar"):
            restore(build("vqvae"), ROOT / "README.md", "vqvae")
        with pytest.raises(UserError, match=r"is a folder, no file; it should hold the weights of tiny_vqvae$"):
            make_models.find_weights("tiny", levels=[], checkpoints={"tiny_vqvae": str(tmp_path)})

    def test_every_setting_that_differs_is_named(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.pth.tar")
        save(build("vqvae"), path, "vqvae", settings("vqvae"))
        with pytest.raises(UserError) as caught:
            build("vqvae", restore_vqvae=path, width=16, dilation_growth_rate=2, lr=1.0)
        told = str(caught.value)
        assert "x.pth.tar: made with other settings: " in told
        assert "width is 8 in the checkpoint, 16 asked for" in told
        assert "dilation_growth_rate is 3 in the checkpoint, 2 asked for" in told
        assert "lr" not in told
        assert "\n" not in told

    def test_tensors_that_do_not_fit_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth.tar"
        save(build("vqvae"), path, "vqvae", settings("vqvae"))
        content = checkpoint.load(path)
        state = dict(content["model"])
        gone, *_, bent = state
        del state[gone]
        state[bent] = torch.zeros(*state[bent].shape, 2)
        state["strange.weight"] = torch.zeros(1)
        checkpoint.save(path, {**content, "model": state})
        with pytest.raises(UserError) as caught:
            restore(build("vqvae"), path, "vqvae")
        told = str(caught.value)
        assert f"1 missing ({gone})" in told
        assert "1 unexpected (strange.weight)" in told
        assert f"1 of another shape ({bent} " in told
        assert "\n" not in told

    def test_nothing_is_loaded_from_a_file_that_does_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth.tar"
        save(different(build("prior", prior_depth=2)), path, "prior", settings("prior", prior_depth=2))
        fresh = build("prior")
        with pytest.raises(UserError, match=r"\d+ missing"):
            restore(fresh, path, "prior")
        assert same(fresh, build("prior"))

    def test_of_many_settings_that_differ_three_are_named(self, tmp_path: Path) -> None:
        path = str(tmp_path / "x.pth.tar")
        save(build("vqvae"), path, "vqvae", settings("vqvae"))
        other = {"emb_width": 8, "l_bins": 16, "width": 16, "depth": 1, "dilation_growth_rate": 2}
        with pytest.raises(UserError) as caught:
            build("vqvae", restore_vqvae=path, **other)
        assert str(caught.value) == (
            f"{path}: made with other settings: emb_width is 16 in the checkpoint, 8 asked for; l_bins is 32 in the "
            "checkpoint, 16 asked for; width is 8 in the checkpoint, 16 asked for; and 2 more; give --hps as it was "
            "trained"
        )

    def test_weights_given_for_another_level_are_named(self, tmp_path: Path) -> None:
        path, codec = tmp_path / "x.pth.tar", tmp_path / "codec.pth.tar"
        save(build("prior"), path, "prior", settings("prior"))
        save(build("vqvae"), codec, "vqvae", settings("vqvae"))
        given = {"tiny_vqvae": str(codec), "tiny_upsampler": str(path)}
        for device in ("meta", "cpu"):
            with pytest.raises(UserError) as caught:
                make_model("tiny", device, {}, [0], checkpoints=given)
            assert str(caught.value) == (
                f"{path}: is a prior of level 1, as tiny_prior is, and was given for tiny_upsampler, which is of level "
                "0: --restore_prior names one file a level, from level 0 up"
            )

    @pytest.mark.parametrize("published", [False, True])
    def test_a_prior_of_the_other_family(self, published: bool, tmp_path: Path) -> None:
        jukebox, song = tmp_path / "prior.pth.tar", tmp_path / "song.pth.tar"
        save(build("prior"), jukebox, "prior", settings("prior"), published=published)
        asked = hparams.setup_hparams("tiny_songbloom", {"restore_prior": ""})
        save(make_models.make_songbloom_prior(asked), song, "prior", asked, published=published)
        told = r"prior\.pth\.tar: is a prior of the Jukebox family, and this model is of the SongBloom family: give"
        with pytest.raises(UserError, match=told):
            make_models.settings_of("tiny_songbloom", "tiny_songbloom", checkpoints={"tiny_songbloom": str(jukebox)})
        with pytest.raises(UserError, match=told):
            make_models.make_songbloom_prior({**asked, "restore_prior": str(jukebox)})
        told = r"song\.pth\.tar: is a prior of the SongBloom family, and this model is of the Jukebox family: give"
        with pytest.raises(UserError, match=told):
            make_models.settings_of("tiny", "tiny_prior", checkpoints={"tiny_prior": str(song)})
        with pytest.raises(UserError, match=told):
            build("prior", restore_prior=str(song))

    @pytest.mark.parametrize("published", [False, True])
    def test_a_checkpoint_of_the_other_kind(self, published: bool, tmp_path: Path) -> None:
        codec, prior = tmp_path / "codec.pth.tar", tmp_path / "prior.pth.tar"
        save(build("vqvae"), codec, "vqvae", settings("vqvae"), published=published)
        save(build("prior"), prior, "prior", settings("prior"), published=published)
        with pytest.raises(UserError, match=r"is the checkpoint of a codec \(--restore_vqvae\), not of a prior"):
            restore(build("prior"), codec, "prior")
        with pytest.raises(UserError, match=r"is the checkpoint of a prior \(--restore_prior\), not of a codec"):
            restore(build("vqvae"), prior, "vqvae")

    def test_files_that_are_no_checkpoints(self, tmp_path: Path) -> None:
        fresh = build("vqvae")
        with pytest.raises(UserError, match=r"nothing\.pth\.tar: no such checkpoint file"):
            restore(fresh, tmp_path / "nothing.pth.tar", "vqvae")
        (tmp_path / "text").write_text("hello")
        with pytest.raises(UserError, match=r"text: "):
            restore(fresh, tmp_path / "text", "vqvae")
        torch.save({"weights": {}}, tmp_path / "other")
        with pytest.raises(UserError, match="holds no weights under the key 'model'"):
            restore(fresh, tmp_path / "other", "vqvae")


class TestModels:
    def saved(self, folder: Path) -> dict[str, nn.Module]:
        """A trained tiny model, where training under the sets' names leaves it."""
        modules = {
            name: different(build(part))
            for part, name in zip(PART, ("tiny_vqvae", "tiny_prior", "tiny_upsampler"), strict=True)
        }
        for part, (name, module) in zip(PART, modules.items(), strict=True):
            save(module, folder / name / checkpoint.LATEST, kind_of(part), settings(part))
        return modules

    def test_a_trained_model_is_found_under_its_sets_names(self, tmp_path: Path) -> None:
        modules = self.saved(tmp_path)
        vqvae, priors = make_model("tiny", hps={"local_logdir": str(tmp_path), "sample_length": 8192})
        assert same(vqvae, modules["tiny_vqvae"])
        assert same(priors[0], modules["tiny_upsampler"])
        assert same(priors[1], modules["tiny_prior"])
        assert vqvae.sample_length == 8192
        assert not any(module.training for module in (vqvae, *priors))

    def test_levels_and_files_may_be_chosen(self, tmp_path: Path) -> None:
        modules = self.saved(tmp_path)
        shutil.move(tmp_path / "tiny_prior", tmp_path / "elsewhere")
        files = {"tiny_prior": str(tmp_path / "elsewhere" / checkpoint.LATEST)}
        _, priors = make_model("tiny", hps={"local_logdir": str(tmp_path)}, levels=[1], checkpoints=files)
        assert [prior.level for prior in priors] == [1]
        assert same(priors[0], modules["tiny_prior"])

    def test_without_weights_it_says_what_to_train(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no weights of tiny_vqvae there: train it \(python train\.py"):
            make_model("tiny", hps={"local_logdir": str(tmp_path)})

    def test_random_weights_only_if_asked_for(self) -> None:
        vqvae, priors = make_model("tiny", restored=False)
        assert isinstance(vqvae, VQVAE)
        assert all(isinstance(prior, Prior) for prior in priors)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": "deno"}, r"no model is named 'deno' \(did you mean 'demo'\?\); known: 5b, "),
            ({"model": "tiny", "levels": [2]}, "has levels 0 to 1, no level 2"),
            ({"model": "tiny", "checkpoints": {"x": "y"}}, "has no part named 'x'"),
            ({"model": "tiny", "hps": {"sample_lenght": 1}}, r"model 'tiny': no option is named 'sample_lenght'"),
        ],
    )
    def test_mistakes(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            make_model(**arguments, device="meta")
        assert "\n" not in str(caught.value)

    def test_a_bundle_that_does_not_hang_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(MODELS, "short", ("tiny_vqvae", "tiny_prior"))
        monkeypatch.setitem(MODELS, "crossed", ("tiny_vqvae", "tiny_prior", "tiny_upsampler"))
        with pytest.raises(UserError, match="lists 1 prior, but tiny_vqvae has 2 levels"):
            make_model("short", restored=False)
        with pytest.raises(UserError, match="tiny_prior stands at level 0 but models 1"):
            make_model("crossed", restored=False)
