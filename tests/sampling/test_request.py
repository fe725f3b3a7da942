"""Command lines and prompts: what they ask for, and one line for each mistake."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from make_models import MODELS
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from songbloom.prior.prior import Prior
from songbloom.sampling import prompts, request
from songbloom.sampling.origin import open_origin
from songbloom.sampling.run import LevelData
from songbloom.sampling.sampler import item_seeds
from songbloom.training import checkpoint
from songbloom.vqvae.vqvae import VQVAE
from tests.sampling.tiny import tiny_models

CPU = torch.device("cpu")


def options(line: str) -> Hyperparams:
    return request.command_line(shlex.split("--model=tiny --name=out " + line), MODELS)


def test_examples_of_the_help_are_commands() -> None:
    told = request.help_text(MODELS).partition("[what]")[0].replace("\\\n", " ")
    examples = [line for line in told.splitlines() if line.startswith("  python sample.py ")]
    asked = [request.command_line(shlex.split(line)[2:], MODELS) for line in examples]
    assert [each.mode for each in asked] == ["ancestral", "continue"]
    assert asked[1].codes_file == asked[0].name


@pytest.fixture(scope="module")
def models() -> tuple[VQVAE, list[Prior]]:
    return tiny_models()


@pytest.fixture(scope="module")
def codes(models: tuple[VQVAE, list[Prior]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 32, (2, 400), generator=generator), torch.randint(0, 32, (2, 100), generator=generator)]


@pytest.fixture
def codes_file(tmp_path: Path, codes: list[torch.Tensor]) -> Path:
    return write_codes(tmp_path / "data.pth.tar", codes)


def write_codes(path: Path, codes: list[torch.Tensor]) -> Path:
    data = LevelData(codes, torch.zeros(2, 3200, 1), [None, None], [{}, {}])
    checkpoint.save(path, data.plain())
    return path


@pytest.mark.parametrize(
    "line, words",
    [
        ("--nsamples=3", r"no option is named --nsamples \(did you mean '--n_samples'\?\)"),
        ("--mode=primd", r"not 'primd' \(did you mean 'primed'\?\)"),
        ("--model=tinny", r"no model is named 'tinny' \(did you mean 'tiny'\?\); known: 5b, "),
        ("--model=", "--model is missing"),
        ("--name=", "--name is missing"),
        ("--n_samples=0", "must be at least 1"),
        ("--temp=-1", "temp must be at least 0, not -1"),
        ("--temp=.9,-1", "temp must be at least 0, not .9,-1"),
        ("--temp=warm", "temp wants numbers"),
        ("--mode=primed", "--audio_file and --mode=primed belong together"),
        ("--audio_file=a.wav", "--audio_file and --mode=primed belong together"),
        ("--mode=upsample", "--codes_file belongs to"),
        ("--prompt_length_in_seconds=3", "has no meaning with --mode=ancestral"),
        ("--precision=fp64", "not 'fp64'"),
        ("--pick=0", "--pick belongs to an earlier run: give --mode=continue"),
        ("--cut_at=2 --mode=primed --audio_file=a.wav", "--cut_at belongs to an earlier run"),
        ("--branch=4", "--branch belongs to an earlier run"),
        ("--mode=continue --codes_file=x --branch=0", "branch must be at least 1"),
        ("--mode=continue --codes_file=x --pick=-1", "pick must be at least 0"),
        ("--mode=continue --codes_file=x --pick=first", "pick wants"),
        ("--mode=continue --codes_file=x --cut_at=2 --prompt_length_in_seconds=2", "both say how much is kept"),
        ("--seeds=1,x", "seeds wants"),
        ("--sample_length_in_seconds=inf", "--sample_length_in_seconds=inf: give a number of seconds"),
    ],
)
def test_mistakes_in_the_command(line: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        options(line)
    assert "\n" not in str(caught.value)


def test_help_tells_every_option() -> None:
    text = request.help_text(MODELS)
    for key in request.knobs(MODELS):
        assert f"--{key}=" in text
    assert "demo, demo_ja, align, tiny, tiny_lyrics" in text


@pytest.mark.parametrize(
    "line, expected",
    [
        ("", [0, 1]),
        ("--levels_to_sample=1", [1]),
        ("--mode=upsample --codes_file=x", [0]),
        ("--mode=continue --codes_file=x --levels_to_sample=0", [0]),
    ],
)
def test_levels_to_write(line: str, expected: list[int]) -> None:
    assert request.levels_to_write(options(line), 2) == expected


@pytest.mark.parametrize(
    "line, levels, words",
    [
        ("--levels_to_sample=2", 2, "writes levels 0 to 1"),
        ("--levels_to_sample=0", 2, "leaves out the top level 1"),
        ("--levels_to_sample=0,2", 3, "leaves a gap"),
        ("--mode=upsample --codes_file=x", 1, "has one level only"),
        ("--mode=upsample --codes_file=x --levels_to_sample=1", 2, "writes level 0 only"),
    ],
)
def test_levels_that_cannot_be_written(line: str, levels: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        request.levels_to_write(options(line), levels)


def test_lengths_are_whole_codes_of_the_top_level(models: tuple[VQVAE, list[Prior]]) -> None:
    vqvae, _ = models  # 8000 Hz, 32 samples a code at the top
    length, codes = request.beginning(options("--sample_length_in_seconds=.5009 --n_samples=3"), vqvae, [0, 1])
    assert length == 4000
    assert [tuple(each.shape) for each in codes] == [(3, 0), (3, 0)]
    assert request.beginning(options(""), vqvae, [0, 1])[0] == 24 * 8000
    with pytest.raises(UserError, match=r"less than one code of the top level, 0\.004 s"):
        request.beginning(options("--sample_length_in_seconds=.0039"), vqvae, [0, 1])
    for line, words in [("--sr=44100", "--sr=44100, but model 'tiny' has 8000"), ("--levels=3", "has 2")]:
        with pytest.raises(UserError, match=words):
            request.beginning(options(line), vqvae, [0, 1])


def test_total_length() -> None:
    assert request.total_length(options(""), 10) == 240
    assert request.total_length(options(""), 300) == 300
    assert request.total_length(options("--total_sample_length_in_seconds=60"), 10) == 60
    with pytest.raises(UserError, match="an item is a part of the whole"):
        request.total_length(options("--total_sample_length_in_seconds=6"), 10)


def test_settings_of_levels(models: tuple[VQVAE, list[Prior]]) -> None:
    fine, top = models[1]
    asked = options("--temp=.9,.8 --top_k=5 --hop_fraction=.5,.25 --max_batch_size=2,1 --chunk_size=8")
    assert request.level_settings(asked, fine, 2, CPU).plain() == {
        **{"temp": 0.9, "top_k": 5, "top_p": 0.0, "hop_fraction": 0.5},
        **{"max_batch_size": 2, "chunk_size": 8, "precision": "fp32", "quantize": ""},
    }
    assert request.level_settings(asked, top, 2, CPU).hop_fraction == 0.25
    assert request.level_settings(options(""), top, 2, CPU).hop_fraction == 0.125
    assert request.level_settings(options(""), fine, 2, CPU).hop_fraction == 0.5
    assert request.level_settings(options(""), fine, 2, torch.device("cuda")).precision == "fp16"
    for line, words in [
        ("--temp=1,1,1", "--temp has 3 values, but 'tiny' has 2 levels"),
        ("--top_k=5 --top_p=.5", "both set for level 0"),
        ("--top_p=1.5", "at most 1"),
    ]:
        with pytest.raises(UserError, match=words):
            request.level_settings(options(line), fine, 2, CPU)


@pytest.mark.parametrize("fraction, words", [("0,.5", "more than 0"), (".003,.5", "less than one code")])
def test_hops_are_checked_before_work(models: tuple[VQVAE, list[Prior]], fraction: str, words: str) -> None:
    fine = models[1][0]
    settings = request.level_settings(options(f"--hop_fraction={fraction}"), fine, 2, CPU)
    with pytest.raises(UserError, match=f"at level 0.*{words}"):
        request.check_windows(fine, 8000, settings, models[0])


def test_a_length_below_a_window_is_told(models: tuple[VQVAE, list[Prior]], capsys: pytest.CaptureFixture[str]) -> None:
    fine = models[1][0]
    request.check_windows(fine, 800, request.level_settings(options(""), fine, 2, CPU), models[0])
    assert capsys.readouterr().out == "note: level 0 learnt from 0.26 s at a time; 0.10 s do not fill its window\n"


# --- prompts --------------------------------------------------------------------------------------------------------


def test_codes_of_an_earlier_run(models, codes, codes_file: Path) -> None:
    vqvae = models[0]
    line = f"--codes_file={codes_file} "
    length, begun = request.beginning(
        options(line + "--mode=continue --sample_length_in_seconds=1 --prompt_length_in_seconds=.1"), vqvae, [0, 1]
    )
    assert length == 8000
    assert torch.equal(begun[1], codes[1][:, :25])
    assert torch.equal(begun[0], codes[0][:, :100])
    length, begun = request.beginning(
        options(line + "--mode=continue --sample_length_in_seconds=1 --n_samples=3"), vqvae, [0, 1]
    )
    assert torch.equal(begun[1], codes[1][[0, 1, 0]])
    for rest, levels, words in [
        ("--mode=upsample", [0], "levels 0 to 0 have 0.40 s already"),
        ("--mode=upsample --sample_length_in_seconds=2", [0], "has 0.40 s of codes at level 1"),
        ("--mode=continue --sample_length_in_seconds=.3", [0, 1], "have 0.30 s already"),
    ]:
        with pytest.raises(UserError, match=words):
            request.beginning(options(line + rest), vqvae, levels)


def test_upsampling_takes_its_length_from_the_codes(models, codes, tmp_path: Path) -> None:
    data = LevelData([codes[0][:, :0], codes[1]], torch.zeros(2, 3200, 1), [None, None], [{}, {}])
    checkpoint.save(tmp_path / "top.pth.tar", data.plain())
    asked = options(f"--mode=upsample --codes_file={tmp_path / 'top.pth.tar'}")
    length, begun = request.beginning(asked, models[0], [0])
    assert length == 3200
    assert [each.shape[1] for each in begun] == [0, 100]


def test_codes_of_another_codec_are_refused(models, codes, tmp_path: Path) -> None:
    asked = options(f"--mode=continue --codes_file={tmp_path / 'data.pth.tar'}")
    for changed, words in [
        ([codes[0] + 1, codes[1]], "level 0 holds codes from 1 to 32, but the model's are 0 to 31"),
        (codes[:1], "holds codes of 1 level, and the model has 2"),
        ([each[:0] for each in codes], "equally many items, at least one"),
        ([each[:, :0] for each in codes], "holds no codes at any level"),
    ]:
        data = LevelData(changed, torch.zeros(2, 3200, 1), [None], [{}])
        checkpoint.save(tmp_path / "data.pth.tar", data.plain())
        with pytest.raises(UserError, match=words):
            open_origin(asked, models[0], 0)


def test_sound_as_a_prompt(models, tmp_path: Path) -> None:
    vqvae = models[0]
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    generator = np.random.default_rng(0)
    sounds = [generator.uniform(-0.5, 0.5, (length, 2)).astype(np.float32) for length in (8000, 4010)]
    for path, sound in zip(paths, sounds, strict=True):
        soundfile.write(path, sound, 8000, subtype="FLOAT")
    codes = prompts.codes_from_audio(paths, 3, vqvae, None, 16000)
    assert [tuple(each.shape) for each in codes] == [(3, 500), (3, 125)]  # the shorter file's 125 whole codes
    assert torch.equal(codes[0][0], codes[0][2])
    expected = vqvae.encode(torch.from_numpy(sounds[1][:4000].mean(1, keepdims=True))[None])
    assert torch.equal(codes[1][1:2], expected[1])
    assert prompts.codes_from_audio(paths, 1, vqvae, 0.75, 16000)[1].shape == (1, 187)
    for seconds, longest, words in [
        (0.75, 16000, "b.wav: is 0.50 s long, shorter than --prompt_length_in_seconds=0.75"),
        (0.5, 3200, "longer than the sample of 0.40 s"),
        (0.001, 3200, "shorter than one code of 0.004 s"),
    ]:
        with pytest.raises(UserError, match=words):
            prompts.codes_from_audio(paths, 2, vqvae, seconds, longest)
    with pytest.raises(UserError, match=r"missing\.wav"):
        prompts.codes_from_audio([tmp_path / "missing.wav"], 1, vqvae, None, 16000)


def test_sounds_of_any_kind_are_taken_in_turn(models, tmp_path: Path) -> None:
    time = np.arange(16000) / 8000
    for name, frequency in (("a.wav", 220), ("b.mp3", 330)):
        soundfile.write(tmp_path / name, 0.5 * np.sin(2 * np.pi * frequency * time), 8000)
    line = f"--mode=primed --audio_file={tmp_path}/a.wav,{tmp_path}/b.mp3 --prompt_length_in_seconds=.3 --n_samples=5"
    length, codes = request.beginning(options(line), models[0], [0, 1])
    assert length == 24 * 8000
    assert [tuple(each.shape) for each in codes] == [(5, 300), (5, 75)]
    for each in codes:
        assert torch.equal(each[[0, 1, 0, 1, 0]], each)
    assert not torch.equal(codes[0][0], codes[0][1])
    assert (
        request.beginning(options(line.replace("--n_samples=5", "--seeds=1,2,3")), models[0], [0])[1][0].shape[0] == 3
    )
    assert request.beginning(options(line.replace("--n_samples=5", "")), models[0], [0])[1][0].shape[0] == 2


def test_a_sound_that_fills_the_item_is_told(models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    line = f"--mode=primed --audio_file={tmp_path}/a.wav --sample_length_in_seconds="
    for seconds, told in (("1", True), (".9", True), ("1.1", False)):
        request.beginning(options(line + seconds), models[0], [0, 1])
        assert ("note: the sound fills the whole item" in capsys.readouterr().out) == told


def test_digests(codes: list[torch.Tensor]) -> None:
    assert prompts.digest(prompts.empty_codes(3, 2)) == ""
    other = [codes[0], codes[1].clone()]
    assert prompts.digest(codes) == prompts.digest(other) != ""
    other[1][0, 0] += 1
    assert prompts.digest(codes) != prompts.digest(other)


def test_identity_leaves_out_what_does_not_decide(models) -> None:
    vqvae, priors = models
    empty = prompts.empty_codes(1, 2)

    def identity(line: str) -> dict:
        asked = options(line)
        settings = {prior.level: request.level_settings(asked, prior, 2, CPU) for prior in priors}
        return request.identity(asked, vqvae, 8000, empty, settings)

    plain = identity("")
    assert identity("--max_batch_size=1 --chunk_size=2") == plain
    for line in ("--seed=1", "--temp=.5", "--precision=bf16", "--hop_fraction=.25"):
        assert identity(line) != plain


def test_identity_states_seeds_that_do_not_follow_from_the_seed(models) -> None:
    vqvae, _ = models
    empty = prompts.empty_codes(2, 2)
    usual = request.identity(options("--seed=3"), vqvae, 8000, empty, {}, seeds=item_seeds(3, range(2)))
    assert usual == request.identity(options("--seed=3"), vqvae, 8000, empty, {})
    assert request.identity(options("--seed=3"), vqvae, 8000, empty, {}, seeds=[1, 5])["seeds"] == [1, 5]


def test_items_are_as_many_as_seeds_or_prompts(tmp_path: Path) -> None:
    assert options("--seeds=1,5,9").n_samples == 3
    assert options("--seeds=1,5,9 --n_samples=2").n_samples == 2  # refused when seeds are looked at
    (tmp_path / "two.jsonl").write_text('{"seed": 4}\n{}\n')
    assert options(f"--seeds=1,5,9 --prompts_jsonl={tmp_path / 'two.jsonl'}").n_samples == 2


def test_cutting(models, codes, codes_file: Path) -> None:
    """0.4 s of codes: 100 at the top, 4 ms each."""
    line = f"--codes_file={codes_file} "
    length, begun = request.beginning(options(line + "--mode=continue --cut_at=.25"), models[0], [0, 1])
    assert length == 3200  # as long as before
    assert [each.shape[1] for each in begun] == [248, 62]
    assert torch.equal(begun[1], codes[1][:, :62])
    length, begun = request.beginning(
        options(line + "--mode=continue --cut_at=.4 --sample_length_in_seconds=.6 --pick=1"), models[0], [0, 1]
    )
    assert length == 4800 and torch.equal(begun[0], codes[0][1:])
    length, begun = request.beginning(options(line + "--mode=continue --cut_at=.1"), models[0], [1])
    assert [each.shape[1] for each in begun] == [100, 25]
    for rest, words in [
        ("--cut_at=12.5", r"--cut_at=12\.5: .* ends at 0\.40 s; give less"),
        ("--cut_at=.003", r"--cut_at=0\.003 keeps less than one code of the top level, 0\.004 s"),
        ("--cut_at=0", "keeps less than one code"),
        ("--prompt_length_in_seconds=.003", "is shorter than one code of the top level, 0.004 s; give more"),
        ("--prompt_length_in_seconds=0", "is shorter than one code"),
        ("--cut_at=.3 --sample_length_in_seconds=.2", "keeps more than --sample_length_in_seconds=0.2"),
        ("--cut_at=.4", "a shorter --cut_at"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            request.beginning(options(line + "--mode=continue " + rest), models[0], [0, 1])
        assert "\n" not in str(caught.value)


def test_upsampling_the_beginning_only(models, codes, tmp_path: Path) -> None:
    path = write_codes(tmp_path / "top.pth.tar", [codes[0][:, :0], codes[1]])
    length, begun = request.beginning(options(f"--mode=upsample --codes_file={path} --cut_at=.2"), models[0], [0])
    assert length == 1600
    assert [each.shape[1] for each in begun] == [0, 50]


@pytest.fixture(scope="module")
def three_levels() -> VQVAE:
    vqvae, _ = tiny_models()
    return VQVAE(
        replace(vqvae.config, levels=3, downs_t=(*vqvae.config.downs_t, 1), strides_t=(*vqvae.config.strides_t, 2))
    )


@pytest.mark.parametrize(
    ("mode", "levels", "there", "length", "kept"),
    [
        # codes a level in units of the top's 0.1 s; which begin each level
        ("upsample", [0], (0, 4, 0), None, (0, 4, 0)),  # the top is missing, and is not needed
        ("upsample", [0], (0, 4, 4), None, (0, 4, 4)),
        ("upsample", [0, 1], (0, 0, 4), 0.2, (0, 0, 2)),  # shorter than before
        ("upsample", [0, 1], (1, 2, 4), None, (1, 2, 4)),  # what is there already stays
        ("continue", [0, 1, 2], (4, 4, 4), 0.6, (4, 4, 4)),  # from the finest level's file
        ("continue", [0, 1, 2], (0, 4, 4), 0.6, (0, 4, 4)),
        ("continue", [0, 1, 2], (0, 0, 4), 0.6, (0, 0, 4)),
        ("continue", [2], (0, 0, 4), 0.6, (0, 0, 4)),  # stops after the top
        ("continue", [0, 1], (1, 2, 4), 0.4, (1, 2, 4)),
        ("continue", [0, 1, 2], (0, 0, 4), 0.2, (0, 0, 2)),  # shorter, and the levels below are missing
        ("continue", [0, 1, 2], (0, 4, 0), 0.6, (0, 4, 0)),  # the top is missing: it is written anew
    ],
)
def test_any_level_there_or_missing(
    three_levels: VQVAE,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    levels: list[int],
    there: tuple[int, ...],
    length: float | None,
    kept: tuple[int, ...],
) -> None:
    """Top codes are 64 samples apart at 8000 Hz, so 0.1 s are 12.5 of them; lengths here are multiples of 0.08 s."""
    hops = three_levels.hop_lengths
    units = [640 * part // hop for part, hop in zip(there, hops, strict=True)]
    path = write_codes(tmp_path / "data.pth.tar", [torch.ones(2, count, dtype=torch.int64) for count in units])
    rest = "" if length is None else f" --sample_length_in_seconds={length * 0.8:g}"
    asked = options(f"--mode={mode} --codes_file={path}{rest}")
    samples, begun = request.beginning(asked, three_levels, levels)
    assert samples == (4 * 640 if length is None else round(length * 6400))
    assert [each.shape[1] * hop for each, hop in zip(begun, hops, strict=True)] == [640 * part for part in kept]
    told = capsys.readouterr().out
    assert ("note: level 1 is kept, but level 2 above it lacks a part" in told) == (there == (0, 4, 0) and 2 in levels)


def test_a_level_above_that_is_too_short(three_levels: VQVAE, tmp_path: Path) -> None:
    counts = [0, 0, 40]
    path = write_codes(tmp_path / "data.pth.tar", [torch.ones(2, count, dtype=torch.int64) for count in counts])
    asked = options(f"--mode=continue --codes_file={path} --sample_length_in_seconds=.64")
    with pytest.raises(UserError, match=r"has 0\.32 s of codes at level 2, and the levels below cannot become longer"):
        request.beginning(asked, three_levels, [0, 1])
