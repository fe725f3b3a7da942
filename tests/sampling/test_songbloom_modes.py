"""Songs of the SongBloom family through the real command: every mode, items that end, files, mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import sample as sample_program
from songbloom.errors import UserError
from songbloom.sampling import songbloom_alignment
from songbloom.sampling.job import ended_early
from songbloom.sampling.labelling import Asked
from songbloom.sampling.run import read_data
from songbloom.sampling.songbloom_labels import rows_of_input
from songbloom.sampling.songbloom_writer import Told
from tests.sampling.songbloom_tiny import FRAME, PATCH, RATE, stereo, tiny_prior, write_tiny

EOS = 16
USUAL = ("--model=tiny_songbloom", "--window_patches=2", "--steps=3", "--device=cpu")
SONG = ("--sample_length_in_seconds=1.12", "--prompt_wav=style.wav", "--lyrics=[verse] hello world , [chorus] la la")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model's checkpoints and some sound."""
    folder = tmp_path_factory.mktemp("songs")
    write_tiny(folder / "logs")
    for name, seconds, seed in (("style", 1.0, 0), ("song", 0.8, 1), ("other", 0.5, 2)):
        soundfile.write(folder / f"{name}.wav", stereo(seconds, seed), RATE)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def sample(name: str, *arguments: str, usual: tuple[str, ...] = USUAL) -> tuple[list[torch.Tensor], Path]:
    """Run the program here; the codes of the run and its folder."""
    sys.argv = ["sample.py", *usual, f"--name={name}", *arguments]
    assert sample_program.main() == 0
    return list(read_data(Path(name) / "level_0" / "data.pth.tar").codes), Path(name)


def refused(*arguments: str, usual: tuple[str, ...] = USUAL) -> str:
    """The one line that a command is refused with."""
    sys.argv = ["sample.py", *usual, *arguments]
    with pytest.raises(UserError) as error:
        sample_program.main()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def first(place: Path) -> list[torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return sample("first", *SONG, "--n_samples=4", "--max_batch_size=2")[0]


def test_ancestral_songs_have_both_levels_sound_and_a_page(first: list[torch.Tensor], place: Path) -> None:
    latents, sketch = first
    assert latents.shape == (4, 28, 4) and sketch.shape == (4, 28)
    assert latents.dtype == torch.float32 and sketch.dtype == torch.int64
    assert len({tuple(row.tolist()) for row in sketch}) == 4
    for item in range(4):
        sound, rate = soundfile.read(place / f"first/level_0/item_{item}.wav")
        assert rate == RATE and sound.shape == (28 * FRAME, 2) and np.abs(sound).max() > 0
    page = (place / "first/index.html").read_text(encoding="utf-8")
    assert "hello world" in page and "style.wav" in page and "3 (euler, 0.95)" in page
    kept = torch.load(place / "first/level_0/data.pth.tar", weights_only=True)
    assert kept["x"].shape == (4, 28 * FRAME, 2)
    assert kept["labels"][0]["info"][0]["prompt"].shape == (6, 4) and kept["labels"][1] is None
    assert kept["sampling_kwargs"][0]["steps"] == 3 and kept["sampling_kwargs"][0]["cfg_coef"] == [1.5, 1.5]
    record = json.loads((place / "first/run.json").read_text())
    assert record["settings"]["level_0"]["penalty"] == 1.1


def test_an_item_is_the_same_song_in_any_batch(first: list[torch.Tensor]) -> None:
    for name, largest in (("alone", 1), ("together", 4)):
        latents, sketch = sample(name, *SONG, "--n_samples=4", f"--max_batch_size={largest}")[0]
        assert torch.equal(sketch, first[1])
        torch.testing.assert_close(latents, first[0], atol=2e-4, rtol=2e-4)


def test_a_seed_of_its_own_is_the_same_song(first: list[torch.Tensor], place: Path) -> None:
    page = json.loads((place / "first/run.json").read_text())
    from songbloom.sampling.tree import seeds_of_settings

    seed = seeds_of_settings(page["settings"])[2]
    _, sketch = sample("seeded", *SONG, f"--seeds={seed}")[0]
    assert torch.equal(sketch[0], first[1][2])


def test_words_and_prompt_change_the_song(first: list[torch.Tensor]) -> None:
    wordless = sample("wordless", SONG[0], SONG[1], "--n_samples=1")[0][1]
    promptless = sample("promptless", SONG[0], SONG[2], "--n_samples=1")[0][1]
    assert not torch.equal(wordless[0], first[1][0])
    assert not torch.equal(promptless[0], first[1][0])


def test_upsampling_keeps_the_sketch(first: list[torch.Tensor]) -> None:
    latents, sketch = sample("same", "--mode=upsample", "--codes_file=first")[0]
    assert torch.equal(sketch, first[1])
    torch.testing.assert_close(latents, first[0], atol=2e-3, rtol=2e-3)  # the same seeds and settings
    for name, change in (("finer", "--steps=6"), ("reseeded", "--seed=9"), ("stronger", "--cfg_coef=1.5,3")):
        other, kept = sample(name, "--mode=upsample", "--codes_file=first", "--pick=1", change)[0]
        assert torch.equal(kept[0], first[1][1])
        assert (other[0] - first[0][1]).abs().max() > 0.01


def test_going_on_keeps_what_is_there(first: list[torch.Tensor], place: Path) -> None:
    how = ("--mode=continue", "--codes_file=first", "--pick=1", "--cut_at=.64", "--branch=2")
    latents, sketch = sample("branches", *how)[0]
    assert sketch.shape == (2, 28)
    assert torch.equal(sketch[:, :16], first[1][1, :16].expand(2, -1))
    assert torch.equal(latents[:, :16], first[0][1, :16].expand(2, -1, -1))
    assert not torch.equal(sketch[0, 16:], sketch[1, 16:])
    info = torch.load(place / "branches/level_0/data.pth.tar", weights_only=True)["labels"][0]["info"]
    assert info[1]["text"].startswith("[verse] hello") and info[1]["prompt_wav"] == "style.wav"
    longer = sample("longer", "--mode=continue", "--codes_file=first", "--sample_length_in_seconds=1.44")[0]
    assert longer[1].shape == (4, 36) and torch.equal(longer[1][:, :28], first[1])
    assert "first" in (place / "branches/tree.js").read_text()


def test_real_sound_goes_on(place: Path) -> None:
    how = ("--mode=primed", "--audio_file=song.wav,other.wav", "--sample_length_in_seconds=.96")
    latents, sketch = sample("primed", *how, "--prompt_length_in_seconds=.4", "--n_samples=3")[0]
    assert sketch.shape == (3, 24)  # 0.4 s are two whole patches
    assert torch.equal(sketch[0, :8], sketch[2, :8]) and torch.equal(latents[0, :8], latents[2, :8])
    assert not torch.equal(latents[0, :8], latents[1, :8])
    assert not torch.equal(sketch[0, 8:], sketch[2, 8:])
    sound, _ = soundfile.read("song.wav", dtype="float32")
    from make_models import make_songbloom

    codec, _ = make_songbloom("tiny_songbloom")
    wanted = codec.encode(torch.from_numpy(sound[None, : 2 * PATCH]))
    torch.testing.assert_close(latents[0, :8], wanted[0][0], atol=2e-4, rtol=2e-4)
    assert torch.equal(sketch[0, :8], wanted[1][0])


def test_songs_end_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A song that has ended is shorter, which is said, and stays as it is when others go on."""
    write_tiny(tmp_path / "logs", ending=0.0)
    monkeypatch.chdir(tmp_path)
    latents, sketch = sample("short", "--sample_length_in_seconds=3.2", "--n_samples=6", "--cfg_coef=1", "--temp=1.2")[
        0
    ]
    ends = [(row == EOS).nonzero()[0].item() if (row == EOS).any() else len(row) for row in sketch]
    assert len(set(ends)) > 1 and max(ends) == sketch.shape[1] and all(end % 4 == 0 for end in ends)
    for item, end in enumerate(ends):
        assert not latents[item, end:].any()
        info = soundfile.info(f"short/level_0/item_{item}.wav")
        assert info.frames == end * FRAME
    early = {item: end for item, end in enumerate(ends) if end < 80}
    named = ", ".join(f"item {item} at {end * FRAME / RATE:.2f} s" for item, end in early.items())
    (told,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: the model ended")]
    advice = "--min_length_in_seconds keeps a model from it"
    assert told == f"note: the model ended {len(early)} of 6 songs before 3.20 s: {named}; {advice}"
    page = Path("short/index.html").read_text(encoding="utf-8")
    articles = dict(re.findall(r'<article class="item" id="item-(\d)"(.*?)</article>', page, re.DOTALL))
    assert {int(item) for item, text in articles.items() if '<p class="ended">' in text} == set(early)
    assert page.count('<p class="ended">') == page.count("<b>0:03.2</b></p>") == len(early)
    length = (max(ends) + 8) * FRAME / RATE
    how = ("--mode=continue", "--codes_file=short", f"--sample_length_in_seconds={length}")
    _, further = sample("further", *how)[0]
    for item, end in enumerate(ends):
        assert torch.equal(further[item, :end], sketch[item, :end])
        assert end == max(ends) or (further[item, end:] == EOS).all()
    kept, _ = sample("up", "--mode=upsample", "--codes_file=short")[0]
    assert kept.shape == latents.shape and all(not kept[item, end:].any() for item, end in enumerate(ends))
    whole = sample("least", "--sample_length_in_seconds=.8", "--n_samples=6", "--min_length_in_seconds=.8")[0]
    assert not (whole[1] == EOS).any()
    assert "the model ended" not in capsys.readouterr().out.partition("least")[2]
    assert '<p class="ended">' not in Path("least/index.html").read_text(encoding="utf-8")


def test_a_silent_first_patch_is_the_song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the published program leaves songs that end at once, however short windows are."""
    write_tiny(tmp_path / "logs", ending=3.0)
    monkeypatch.chdir(tmp_path)
    songs = {}
    for patches in (1, 2):
        how = (f"--window_patches={patches}", "--steps=1", "--n_samples=5", "--compatibility=silent_first_patch")
        usual = ("--model=tiny_songbloom", "--device=cpu", "--sample_length_in_seconds=.96")
        songs[patches] = sample(f"windows_{patches}", *how, usual=usual)[0]
        assert songs[patches][1].shape == (5, 4) and not songs[patches][0].any()


def test_only_some_of_many_songs_that_ended_are_named() -> None:
    assert ended_early([5, 5], 5, 0.5) == ""
    told = ended_early([5, *[2] * 30], 5, 0.5, most=2)
    assert told == "note: the model ended 30 of 31 songs before 2.50 s: item 1 at 1.00 s, item 2 at 1.00 s and 28 more"


def test_published_lists_of_songs(place: Path) -> None:
    rows = [
        {"idx": "a", "lyrics": "[verse] la la", "prompt_wav": "style.wav"},
        {"idx": 7, "lyrics": "[chorus] hello", "prompt_wav": str(place / "other.wav")},
    ]
    Path("songs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    how = ("--input_jsonl=songs.jsonl", "--sample_length_in_seconds=.48", "--n_samples=2", "--output_format=flac")
    codes, folder = sample("listed", *how)
    assert codes[1].shape == (4, 12)
    for name, item in (("a_s0", 0), ("a_s1", 1), ("7_s0", 2), ("7_s1", 3)):
        named, rate = soundfile.read(folder / f"{name}.flac")
        same, _ = soundfile.read(folder / f"level_0/item_{item}.flac")
        assert rate == RATE and named.shape == (12 * FRAME, 2) and np.array_equal(named, same)
    assert "item_0.flac" in (folder / "index.html").read_text(encoding="utf-8")


def test_lines_of_lists_that_name_no_song(tmp_path: Path) -> None:
    path = tmp_path / "songs.jsonl"
    for idx, words in (
        (None, "idx is null"),
        (True, "idx is true"),
        (["a"], "idx is"),
        ("a/b", "cannot be the name of a file"),
        (" ", "cannot be the name of a file"),
        ("a\n", "cannot be the name of a file"),
        ("あ" * 70, "longer than 200 bytes"),
    ):
        path.write_text(json.dumps({"idx": idx, "lyrics": "[verse] la"}))
        with pytest.raises(UserError, match=f"songs.jsonl:1: .*{words}") as told:
            rows_of_input(str(path))
        assert "\n" not in str(told.value)
    path.write_text(json.dumps({"idx": 1.5, "lyrics": None, "prompt_wav": None}))
    assert rows_of_input(str(path)) == [("1.5", Asked())]


def test_lengths_that_no_model_hears_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("lengths", "--sample_length_in_seconds=.16", "--lyrics=[intro 2s] [verse 9.5s] la la [chorus] la [outro 2s]")
    told = [line for line in capsys.readouterr().out.splitlines() if "is to last" in line]
    assert len(told) == 1 and told[0].startswith("note: lyrics: [verse] has words and is to last 9.5 s, which no model")


def test_prompts_of_ones_own_and_mp3(place: Path) -> None:
    rows = [{"lyrics": "[verse] la", "prompt_wav": "style.wav", "seed": 5}, {"lyrics_file": "words.txt"}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("words.txt").write_text("[verse 4s]\nhello world\n", encoding="utf-8")
    codes, folder = sample("own", "--prompts_jsonl=prompts.jsonl", SONG[0], "--output_format=mp3")
    assert codes[1].shape[0] == 2
    assert soundfile.info(str(folder / "level_0/item_1.mp3")).samplerate == RATE
    info = torch.load(folder / "level_0/data.pth.tar", weights_only=True)["labels"][0]["info"]
    assert "prompt" in info[0] and "prompt" not in info[1] and info[1]["text"].startswith("[verse 4s]")


def test_settings_reach_the_prior(first: list[torch.Tensor], place: Path) -> None:
    changed = {
        "temp": "--temp=.5",
        "guidance": "--cfg_coef=3",
        "penalty": "--penalty=2",
        "faults": "--compatibility=published",
        "kept": "--top_k=2",
        "sampler": "--sampler=pingpong",
    }
    for name, option in changed.items():
        latents, sketch = sample(name, *SONG, option)[0]
        same = sketch.shape[1] == 28 and torch.equal(latents[0], first[0][0])
        assert not same, option
    record = json.loads((place / "faults/run.json").read_text())
    assert len(record["settings"]["level_0"]["compatibility"]) == 5


def test_half_precision(place: Path) -> None:
    latents, sketch = sample("half", *SONG, "--precision=bf16")[0]
    assert latents.isfinite().all() and sketch.shape == (1, 28)


def test_mistakes_are_one_line(first: list[torch.Tensor], place: Path) -> None:
    tiny = ("--model=tiny", "--device=cpu")
    Path("empty.jsonl").write_text('{"lyrics": "x"}\n')
    for arguments, words in [
        (("--hop_fraction=.5",), "belongs to models of the Jukebox family"),
        (("--artist=Mei",), "belongs to models of the Jukebox family"),
        (("--quantize=int8",), "belongs to models of the Jukebox family"),
        (("--levels_to_sample=1",), "in turns"),
        (("--temp=1,1",), "give one"),
        (("--cfg_coef=1,2,3",), "cfg_coef has 3 values"),
        (("--sampler=ddim",), "samples with euler"),
        (("--dit_cfg_type=g",), "dit_cfg_type"),
        (("--compatibility=silent_patch",), "silent_first_patch"),
        (("--sample_length_in_seconds=.1",), "less than one patch"),
        (("--prompt_wav=nowhere.wav",), "nowhere.wav"),
        (("--lyrics=[verse",), "not closed"),
        (("--input_jsonl=empty.jsonl",), "idx"),
        (("--input_jsonl=songs.jsonl", "--lyrics=x"), "leave one out"),
        (("--mode=continue", "--codes_file=first", "--sample_length_in_seconds=.5"), "already"),
        (("--mode=continue", "--codes_file=first", "--pick=9"), "items 0 to 3"),
        (("--restore_prior=gone.pth.tar",), "gone.pth.tar"),
        (("--sr=44100",), "has 8000"),
    ]:
        assert words in refused("--name=refused", *arguments), arguments
    assert "SongBloom family" in refused("--name=refused", "--cfg_coef=2", usual=tiny)
    assert "other settings" in refused("--name=first", *SONG, "--n_samples=4", "--steps=4", usual=USUAL[:2])
    assert not Path("refused").exists()


def test_a_prior_that_is_not_there_is_named_before_the_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("--name=refused", "--restore_prior=gone") == "gone: no such file; it should hold the weights of " + (
        "tiny_songbloom"
    )


def test_without_a_codebook_only_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "logs", codebook=False)
    soundfile.write(tmp_path / "song.wav", stereo(0.8), RATE)
    monkeypatch.chdir(tmp_path)
    assert sample("fine", "--sample_length_in_seconds=.32")[0][1].shape == (1, 8)
    how = ("--mode=primed", "--audio_file=song.wav", "--sample_length_in_seconds=1.6")
    assert "no sketch codebook" in refused("--name=bookless", *how)


def test_the_program_itself(place: Path) -> None:
    """As people start it, in a process of its own."""
    program = Path(sample_program.__file__)
    done = subprocess.run(
        [sys.executable, str(program), *USUAL, "--name=process", "--sample_length_in_seconds=.32"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "listen: process" in done.stdout and "no style prompt" in done.stdout


def test_words_light_up_where_the_model_looked(place: Path) -> None:
    import align as align_program

    sample("aligned", *SONG, "--n_samples=2")
    assert align_program.align(align_program.command_line(["--name=aligned"])) == Path("aligned/index.html")
    words = json.loads((place / "aligned/alignment/item_1.json").read_text(encoding="utf-8"))
    timed = [word for word in words["words"] if word["start"] is not None]
    assert {word["text"] for word in timed} & {"hello", "world", "la"} and not any(
        "[" in word["text"] for word in timed
    )
    assert (place / "aligned/alignment/item_1.png").is_file()
    assert "alignment/item_1.json" in (place / "aligned/index.html").read_text(encoding="utf-8")
    assert all(0 <= word["start"] <= word["end"] <= 1.12 + 1e-6 for word in timed)
    align_program.align(align_program.command_line(["--name=aligned", "--layer=1", "--head=0"]))
    with pytest.raises(UserError, match="layers 0 to 1"):
        align_program.align(align_program.command_line(["--name=aligned", "--layer=2", "--head=0"]))
    sample("silent", SONG[0])
    with pytest.raises(UserError, match="without lyrics"):
        align_program.align(align_program.command_line(["--name=silent"]))


def test_songs_without_sound_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import align as align_program

    monkeypatch.chdir(tmp_path)
    how = ("--sample_length_in_seconds=.64", "--n_samples=6", "--lyrics=[verse] hello world")
    write_tiny(tmp_path / "logs", ending=2.0)
    sketch = sample("some", *how)[0][1]
    wanted = {item for item, song in enumerate(sketch) if song[0] != EOS}
    assert 0 < len(wanted) < 6
    align_program.align(align_program.command_line(["--name=some"]))
    found = {int(path.stem.removeprefix("item_")) for path in Path("some/alignment").glob("item_*.json")}
    assert found == wanted
    write_tiny(tmp_path / "logs", ending=9.0)
    assert sample("none", *how)[0][1].shape == (6, 0)
    with pytest.raises(UserError, match="ended before a first patch"):
        align_program.align(align_program.command_line(["--name=none"]))


def test_weights_of_heads_are_the_prior_s() -> None:
    prior = tiny_prior()
    generator = torch.Generator().manual_seed(0)
    latents, sketch = torch.randn(12, 4, generator=generator), torch.randint(0, EOS, (12,), generator=generator)
    told = Told((1, 30, 31, 32), torch.randn(6, 4, generator=generator))
    wanted = [(0, 0), (1, 0)]
    assert told.prompt is not None
    conditions = prior.conditions([told.ids], told.prompt[None])
    whole = prior.lyric_attention(sketch[None], latents[None], conditions, wanted=wanted)[:, 0, :, :4]
    for memory in (1, 1 << 30):
        found = list(songbloom_alignment.matrices(prior, latents, sketch, told, wanted, memory=memory))
        assert [head for head, _ in found] == wanted
        for (_, each), expected in zip(found, whole, strict=True):
            np.testing.assert_allclose(each, expected.numpy(), atol=1e-6)
    sketch[8:] = EOS
    ((_, short),) = songbloom_alignment.matrices(prior, latents, sketch, told, wanted[:1])
    assert short.shape == (8, 4)
