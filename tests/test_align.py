"""``align.py`` as people run it, with a tiny model that reads lyrics and has random weights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import align
from hparams import setup_hparams
from make_models import MODELS, make_labeller, make_prior, make_vqvae, save
from songbloom.data.label_tables import LabelTables
from songbloom.distributed import World
from songbloom.errors import UserError
from songbloom.lyrics.lrc import read_lrc
from songbloom.sampling import heads
from songbloom.sampling.run import LevelData, Run, read_data
from songbloom.sampling.words import read_words
from songbloom.training.labelling import complete_vocabulary
from tests import programs
from tests.sampling.tiny import write_tiny

ROOT = Path(__file__).parent.parent
MODEL = "tiny_lyrics"
WORDS = "[verse]\nla la lu\nhello you"
TABLES = LabelTables(3, {"unknown": 0, "mei": 1}, {"unknown": 0, "folk": 1})


def run_program(folder: Path, *arguments: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    return programs.run(folder, str(ROOT / "align.py"), *arguments, fresh=fresh)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model's checkpoints, three songs of which one has no words, and a finished run of two items."""
    folder = tmp_path_factory.mktemp("align")
    codec_set, *_, prior_set = MODELS[MODEL]
    nothing = {"restore_vqvae": "", "restore_prior": ""}
    vqvae = make_vqvae(setup_hparams(codec_set, nothing))
    hps = setup_hparams((codec_set, prior_set), {**nothing, "y_bins": TABLES.y_bins})
    hps["label_ids"] = TABLES.plain()
    complete_vocabulary(hps)
    prior = make_prior(hps, vqvae)
    generator = torch.Generator().manual_seed(3)
    for parameter in prior.parameters():
        parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    for name, module, kind, values in ((codec_set, vqvae, "vqvae", hps), (prior_set, prior, "prior", hps)):
        (folder / "logs" / name).mkdir(parents=True)
        save(module, folder / "logs" / name / "checkpoint_latest.pth.tar", kind, values)
    write_songs(folder, vqvae.sample_rate)
    labeller = make_labeller(hps, prior)
    assert labeller is not None
    row = {"artist": "mei", "genre": "folk", "total_length": 16000, "offset": 0}
    labels = labeller.batch([{**row, "lyrics": WORDS}, {**row, "lyrics": "<b>hey</b> " * 9}])
    top = vqvae.levels - 1
    length = 300 * vqvae.hop_lengths[-1]
    codes = [torch.randint(0, vqvae.l_bins, (2, length // hop), generator=generator) for hop in vqvae.hop_lengths]
    argv = ["sample.py", f"--model={MODEL}", "--name=run", f"--local_logdir={folder / 'logs'}"]
    settings = {"levels": [0, top], f"level_{top}": {"hop_fraction": 0.5, "precision": "fp32"}}
    run = Run(folder / "made", settings, sample_rate=vqvae.sample_rate, facts=[("model", MODEL)], argv=argv)
    run.open()
    kept = [None] * top + [labels.plain()]
    for level in (top, 0):
        run.write_level(level, LevelData(codes, torch.zeros(2, length, 1), kept, [{}] * vqvae.levels), 1.0)
    for copy in ("run", "run_of_program"):  # this process holds the folder that it has written
        shutil.copytree(folder / "made", folder / copy)
    return folder


def write_songs(folder: Path, rate: int) -> None:
    rows = []
    for number, lyrics in enumerate([WORDS, "", "la la"]):
        noise = np.random.default_rng(number).normal(0, 0.1, 2 * rate)
        soundfile.write(folder / f"song_{number}.wav", noise, rate)
        rows.append({"audio_path": f"song_{number}.wav", "artist": "mei", "genre": "folk", "lyrics": lyrics})
    rows[0]["phrases"] = [
        {"text": "la la lu", "start": 0.2, "end": 0.9},
        {"text": "hello you", "start": 1.0, "end": 1.6},
    ]
    (folder / "songs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def options(place: Path, *arguments: str) -> align.Hyperparams:
    return align.command_line([*arguments, f"--local_logdir={place / 'logs'}", "--device=cpu"])


def finding(place: Path, *more: str) -> align.Hyperparams:
    return options(place, "--find", f"--model={MODEL}", f"--data_jsonl={place / 'songs.jsonl'}", *more)


def test_the_program_finds_and_aligns(place: Path) -> None:
    prior_set = MODELS[MODEL][-1]
    found = run_program(place, "--find", f"--model={MODEL}", "--data_jsonl=songs.jsonl", "--show=3", fresh=True)
    assert found.returncode == 0, found.stderr
    assert "song_1.wav: has no lyrics, left out" in found.stdout
    assert "on 2 songs (4 s), 1 with times of their words" in found.stdout
    measured = re.findall(r"^measured on song (\d of 2): .*/(song_\d)\.wav$", found.stdout, re.MULTILINE)
    assert measured == [("1 of 2", "song_0"), ("2 of 2", "song_2")]
    assert "\nthe best heads first (docs/alignment.md" in found.stdout
    table = found.stdout.partition("layer  head")[2].splitlines()[1:]
    rows = [line.split()[:2] for line in table if line.split()[0].isdigit()]
    assert 1 <= len(rows) <= 3
    choice = heads.read_choice(place / "logs" / prior_set / "checkpoint_latest.pth.tar")
    assert choice is not None
    assert [str(choice.layer), str(choice.head)] == rows[0]

    aligned = run_program(place, "--name=run_of_program")
    assert aligned.returncode == 0, aligned.stderr
    assert "note: no head follows the words yet" in aligned.stdout  # nobody has trained this model
    assert re.findall(r"^timed item .*$", aligned.stdout, re.MULTILINE) == [
        "timed item 0, 1 of 2",
        "timed item 1, 2 of 2",
    ]
    check_run(place / "run_of_program", choice)


def check_run(folder: Path, choice: heads.Choice) -> None:
    content = json.loads((folder / "alignment" / "item_0.json").read_text())
    assert (content["layer"], content["head"]) == (choice.layer, choice.head)
    assert content["text"] == WORDS
    assert content["guessed"] is (choice.follows is False)
    assert [word.text for word in read_words(folder / "alignment" / "item_0.json")[0]][:3] == ["[verse]", "\n", "la"]
    aligned = torch.load(folder / "level_0" / "data_align.pth.tar", weights_only=True)
    frames = aligned["zs"][-1].shape[1]
    assert [tuple(each.shape) for each in aligned["alignments"]] == [(frames, len(WORDS)), (frames, 54)]
    assert torch.equal(read_data(folder / "level_0" / "data.pth.tar").codes[-1], aligned["zs"][-1])
    sung = [word for word in content["words"] if word["start"] is not None]
    if sung:
        assert read_lrc(folder / "alignment" / "item_0.lrc").times[0][0] == pytest.approx(sung[0]["start"], abs=0.006)
    assert Image.open(folder / "alignment" / "item_1" / "align.png").size == (1024, 512)
    rows = json.loads((folder / "alignment" / "item_0" / "align.json").read_text())
    assert len(rows) == frames // 16
    assert len(json.loads((folder / "alignment" / "item_0" / "lyrics.json").read_text())) == len(rows[0])
    for page in (folder / "index.html", folder / "level_0" / "index.html"):
        text = page.read_text()
        assert "alignment/item_0.png" in text
        assert ("times of these words are guesses.</span></p>" in text) is (choice.follows is False)
        data = json.loads(text.split('id="data">')[1].split("</script>")[0])
        assert "".join(word[0] for word in data["items"][1]["words"]) == "<b>hey</b> " * 9
        assert "<b>hey" not in text


def test_a_given_head_and_what_is_there_already(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranked = align.find(finding(place, "--songs=1", "--seconds=1", "--hop_fraction=1"))
    other = ranked[-1]
    align.align(options(place, f"--name={place / 'run'}", f"--layer={other.layer}", f"--head={other.head}"))
    content = json.loads((place / "run" / "alignment" / "item_0.json").read_text())
    assert (content["layer"], content["head"], content["shift"]) == (other.layer, other.head, 0.0)
    with pytest.raises(UserError, match="no such head attends from music to lyrics; layers"):
        align.align(options(place, f"--name={place / 'run'}", "--layer=0", "--head=99"))
    capsys.readouterr()


MISTAKES: list[tuple[list[str], str]] = [
    ([], "give --find with --model and songs, or --name"),
    (["--find", "--name=x"], "give --find with --model and songs, or --name"),
    (["--find"], "--model is missing"),
    (["--find", "--model=tiny_lyric"], "did you mean 'tiny_lyrics'"),
    (["--find", "--model=tiny_lyrics", "--layer=1", "--head=0"], "choose a head by hand"),
    (["--name=x", "--layer=1"], "--layer and --head belong together"),
    (["--name=x", "--hop_fraction=2"], "--hop_fraction=2"),
    (["--nam=x"], "--nam"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_in_the_command(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        align.command_line(arguments)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_one_line_and_status_2(place: Path) -> None:
    told = run_program(place, "--name=nowhere")
    assert told.returncode == 2
    assert len(told.stderr.strip().splitlines()) == 1
    assert "nowhere" in told.stderr
    helped = run_program(place, "--help")
    assert helped.returncode == 0
    assert "--find" in helped.stdout


def changed(place: Path, folder: Path, change: Callable[[LevelData], LevelData]) -> Path:
    """A run like the module's, with other data."""
    data = change(read_data(place / "run" / "level_0" / "data.pth.tar"))
    record = json.loads((place / "run" / "run.json").read_text())
    run = Run(folder, record["settings"], sample_rate=8000, argv=record["argv"])
    run.open()
    run.write_level(0, data, 1.0)
    return folder


def test_ranks_do_not_share_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "world", lambda: World(rank=1, size=2))
    with pytest.raises(UserError, match="works in one process: start it without mpiexec"):
        align.align(options(place, f"--name={place / 'run'}"))


def test_runs_without_words(place: Path, tmp_path: Path) -> None:
    def without_labels(data: LevelData) -> LevelData:
        return LevelData(data.codes, data.audio, [None] * len(data.codes), data.sampling_kwargs)

    def without_words(data: LevelData) -> LevelData:
        labels = dict(data.labels[-1])
        labels["info"] = [
            {**info, "full_tokens": [], "text": "", "spans": [], "symbols": []} for info in labels["info"]
        ]
        return LevelData(data.codes, data.audio, [*data.labels[:-1], labels], data.sampling_kwargs)

    with pytest.raises(UserError, match="sampled without labels"):
        align.align(options(place, f"--name={changed(place, tmp_path / 'a', without_labels)}"))
    with pytest.raises(UserError, match="sampled without lyrics"):
        align.align(options(place, f"--name={changed(place, tmp_path / 'b', without_words)}"))


def test_one_item_without_words_among_others(place: Path, tmp_path: Path) -> None:
    def second_without(data: LevelData) -> LevelData:
        labels = dict(data.labels[-1])
        none = {**labels["info"][1], "full_tokens": [], "text": "", "spans": [], "symbols": [], "lyrics": ""}
        labels["info"] = [labels["info"][0], none]
        return LevelData(data.codes, data.audio, [*data.labels[:-1], labels], data.sampling_kwargs)

    folder = changed(place, tmp_path / "run", second_without)
    ranked = align.find(finding(place, "--songs=1", "--seconds=1", "--hop_fraction=1"))
    align.align(options(place, f"--name={folder}", f"--layer={ranked[0].layer}", f"--head={ranked[0].head}"))
    assert read_words(folder / "alignment" / "item_1.json")[0] == []


def test_a_model_without_lyrics_and_songs_without_words(place: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "logs")
    songs = f"--data_jsonl={place / 'songs.jsonl'}"
    with pytest.raises(UserError, match="reads no lyrics"):
        align.find(options(tmp_path, "--find", "--model=tiny", songs))
    wordless = tmp_path / "wordless.jsonl"
    wordless.write_text(json.dumps({"audio_path": str(place / "song_1.wav")}) + "\n")
    with pytest.raises(UserError, match="none of 1 song has lyrics"):
        align.find(options(place, "--find", f"--model={MODEL}", f"--data_jsonl={wordless}"))
