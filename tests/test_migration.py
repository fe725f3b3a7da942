"""docs/migration.md: every option and command of ours that it names is understood, and no flag of theirs is missing."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

import align
import evaluate
import hparams
from make_models import MODELS
from songbloom.errors import UserError
from songbloom.sampling import request

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
HOW = {"same", "renamed", "ignored", "write ours", "leave out"}

# Every option of the fork's training program, with a value that is not our default. The names are facts about it.
TRAINING = {
    **{"model-name": "songbloom_full_150s", "local-dir": "a", "data-jsonl": "a", "val-jsonl": "a", "val-split": ".2"},
    **{"split-seed": "3", "overwrite-split": "", "output-dir": "a", "batch-size": "2", "accumulate-grad-batches": "4"},
    **{"max-epochs": "3", "max-steps": "9", "lr": "2e-4", "weight-decay": ".02", "lambda-flow": ".2"},
    **{"warmup-steps": "7", "num-workers": "0", "precision": "bf16-mixed", "device": "cpu", "devices": "2"},
    **{"strategy": "ddp", "prompt-len": "10.0", "max-duration": "60", "segment-strategy": "random", "cache-dir": "a"},
    **{"use-cache": "", "rebuild-cache": "", "clean-lyrics": "", "process-lyrics": "", "lyric-processor": "pinyin"},
    **{"init-from-pretrained": "", "resume-from": "a", "seed": "1234", "sketch-mode": "muq", "muq-model-id": "a"},
    **{"muq-device": "cpu", "muq-sr": "24000", "muq-embed-dim": "1024", "muq-codebook-size": "16384"},
    **{"muq-vq-path": "a", "muq-vq-decay": ".9", "muq-commitment-weight": "1.0", "muq-freeze-codebook": ""},
    **{"require-vq-path": "", "require-length-match": "", "log-length-mismatch": "", "max-mismatch-logs": "5"},
    **{"verify-lengths": "", "verify-lengths-max": "9", "no-wandb": "", "wandb-project": "a", "wandb-entity": "a"},
    **{"wandb-name": "a", "wandb-mode": "offline", "use-lora": "", "lora-rank": "8", "lora-alpha": "16"},
    **{"lora-dropout": ".1", "lora-target-modules": "to_qkv", "lora-train-all": "", "h-dropout": ".1"},
    **{"timestep-sampler": "uniform"},
}
CODEBOOK = {
    **{"data-dir": "a", "output": "a", "muq-model-id": "a", "muq-sr": "24000", "embedding-dim": "1024"},
    **{"codebook-size": "64", "decay": ".9", "commitment-weight": "1.0", "epochs": "5", "lr": "1e-3"},
    **{"chunk-size": "500", "min-frames": "50", "save-every": "10", "device": "cpu", "no-wandb": ""},
    **{"wandb-project": "a", "wandb-entity": "a", "wandb-name": "a"},
}
OLDER_CODEBOOK = {
    **{"data-jsonl": "a", "output-path": "a", "model-id": "a", "sample-rate": "24000", "max-duration": "30"},
    **{"segment-strategy": "random", "batch-size": "2", "num-workers": "0", "embedding-dim": "1024"},
    **{"codebook-size": "64", "steps": "9", "lr": "1e-3", "decay": ".9", "commitment-weight": "1.0", "device": "cpu"},
}
INFERENCE = [
    "input-jsonl",
    "model-name",
    "local-dir",
    "output-dir",
    "n-samples",
    "output-format",
    "dtype",
    "device",
    "max-duration",
    "ckpt-path",
    "use-lora",
    "lora-rank",
    "lora-alpha",
    "lora-dropout",
    "lora-target-modules",
]
SECTIONS = {
    "`train_japanese.py` → `train.py`": (TRAINING, ["--name=x", "--train", "--prior", "--data-jsonl=a"]),
    "`train_vq_codebook.py` → `train.py`": (CODEBOOK, ["--name=x", "--train", "--vq", "--hps=sketch_vq"]),
    "`SongBloom.training.train_vq` → `train.py`": (OLDER_CODEBOOK, ["--name=x", "--train", "--vq", "--hps=sketch_vq"]),
}


def section(title: str) -> str:
    return re.split(r"\n##", PAGE.split(f"# {title}\n", 1)[1])[0]


def rows(text: str) -> list[list[str]]:
    cells = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in cells if row[0].strip() not in ("theirs", "word")]


def flags(text: str) -> list[str]:
    return re.findall(r"`--([a-zA-Z0-9_-]+)", text)


def key(flag: str) -> str:
    return flag.replace("-", "_").removeprefix("no_")


ROWS = {title: {flags(row[0])[0]: row for row in rows(section(title))} for title in SECTIONS}
CASES = [(title, flag) for title, (given, _) in SECTIONS.items() for flag in given]
COMMANDS = re.findall(r"^    (?:mpiexec -n \d )?python (.+)$", PAGE, re.MULTILINE)
COMMANDS += re.findall(r"`python ((?:evaluate\.py|-m songbloom)[^`…]+)`", PAGE)


@pytest.mark.parametrize("title", SECTIONS)
def test_every_flag_has_a_row(title: str) -> None:
    assert set(ROWS[title]) == set(SECTIONS[title][0])


@pytest.mark.parametrize(("title", "flag"), CASES)
def test_a_flag_is_what_its_row_says(title: str, flag: str) -> None:
    given, base = SECTIONS[title]
    _, ours, how, _ = ROWS[title][flag]
    word = f"--{flag}={given[flag]}" if given[flag] else f"--{flag}"
    more = ["--restore_sketch=a"] if flag == "require-vq-path" else []
    if "--prior" in base and flag != "model-name":
        more.append("--hps=songbloom_150s")
    if "--vq" in base and flag not in ("data-dir", "data-jsonl"):
        more.append("--audio_files_dir=a")
    if how in ("write ours", "leave out"):
        if ours:
            assert key(flags(ours)[0]) in hparams.KNOBS
        return
    command = hparams.training_command([*base, *more, word])
    name = key(flags(ours)[0])
    assert (name == key(flag)) is (how != "renamed")
    if name == "hps":
        assert command.hps.songbloom and command.hps.prior_depth == 36
        return
    assert command.hps.sources[name] == "command line"
    ignored = bool(hparams.KNOBS[name].ignored)
    assert ignored is (how == "ignored")
    told = any(line.startswith(f"note: {name}=") for line in command.notices)
    assert told is (ignored and command.hps[name] != hparams.KNOBS[name].default)


def test_frames_become_seconds_and_precisions_ours() -> None:
    hps = hparams.training_command(
        ["--vq", "--hps=sketch_vq", "--name=x", "--train", "--data-dir=a", "--chunk-size=500", "--min-frames=50"]
    ).hps
    assert (hps.sample_length_in_seconds, hps.min_duration) == (20, 2)
    base = ["--prior", "--model-name=songbloom_full_150s", "--name=x", "--train", "--data-jsonl=a"]
    for theirs, ours in {"32": "fp32", "16-mixed": "fp16", "bf16-mixed": "bf16"}.items():
        assert hparams.training_command([*base, f"--precision={theirs}"]).hps.precision == ours


def test_words_of_the_tables() -> None:
    tables = rows(PAGE.split("## Jukebox", 1)[1])
    assert {row[2] for row in tables} == HOW
    assert all(len(row) == 4 for row in tables)


def test_keys_that_do_nothing_are_all_told() -> None:
    told = re.search(r"are \*ignored\*: (.+?)\.\n", PAGE, re.DOTALL)
    assert told is not None
    ignored = {name for one in hparams.JUKEBOX_GROUPS for name, knob in one.knobs.items() if knob.ignored}
    assert set(re.findall(r"`(\w+)`", told[1])) == ignored


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "train.py":
        assert hparams.training_command(arguments).notices == []
    elif program == "sample.py":
        assert request.command_line(arguments, MODELS).model in MODELS
    elif program in ("align.py", "evaluate.py"):
        assert (align if program == "align.py" else evaluate).KNOBS.parse(arguments)
    else:
        assert program == "-m"
        assert importlib.import_module(arguments[0])._parser().parse_args(arguments[1:])


def test_options_of_ours_exist() -> None:
    of_training = {*hparams.KNOBS, *hparams.TRAIN_COMMAND.knobs}
    of_sampling = set(request.knobs(MODELS))
    ours = {
        "Training → `train.py`": of_training,
        "Sampling → `sample.py`": of_sampling,
        "Alignment → `align.py`": set(align.KNOBS),
        "SongBloom: `infer.py` → `sample.py`": of_sampling,
        **dict.fromkeys(SECTIONS, of_training),
    }
    for title, known in ours.items():
        text = section(title)
        in_tables = [flag for row in rows(text) for flag in flags(row[0] * (row[1] == "the same") + row[1])]
        assert in_tables
        assert {key(flag) for flag in in_tables} <= known, title
        remarks = [flag for row in rows(text) for flag in flags(row[3])]
        assert {key(flag) for flag in remarks} <= known, title
        around = re.sub(r"(?m)^(\||    ).*$", "", text)
        assert {key(flag) for flag in flags(around)} <= known, title


def test_inference_flags() -> None:
    table = {flag: row for row in rows(section("SongBloom: `infer.py` → `sample.py`")) for flag in flags(row[0])}
    assert set(table) == set(INFERENCE)
    known = request.knobs(MODELS)
    for flag, (_, ours, how, _) in table.items():
        assert (how == "same") is (key(flag) in known and [key(each) for each in flags(ours)] == [key(flag)]), flag


def test_preparation_takes_every_option() -> None:
    for row in rows(section("Preparation → `python -m songbloom.data.…`")):
        module = importlib.import_module("songbloom.data." + row[0].split("→ `")[1].rstrip("`"))
        assert {f"--{flag}" for flag in flags(row[1])} <= set(module._parser()._option_string_actions), row[0]


def test_an_option_that_must_be_written_anew_is_refused() -> None:
    with pytest.raises(UserError, match="no option is named --sample-rate"):
        hparams.training_command(["--vq", "--hps=sketch_vq", "--name=x", "--train", "--sample-rate=24000"])
    with pytest.raises(UserError, match="no option is named --ckpt-path"):
        request.command_line(["--model=songbloom_150s", "--name=x", "--ckpt-path=a"], MODELS)
