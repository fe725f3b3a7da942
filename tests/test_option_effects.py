"""Every option that the Japanese fork's training programs have does something here, through the command's own path.

``tests/test_migration.py`` names these options and holds what the page says of each; here each is given, and what
training then does is compared with what it does without.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils import data as torch_data
from torch.utils.data import default_collate

import train
from hparams import HPARAMS_REGISTRY, KNOBS, renamed, training_command
from songbloom import distributed
from songbloom.data.jsonl import read_lines, write_lines
from songbloom.errors import UserError
from songbloom.published import fetch
from songbloom.published.songbloom.prior import to_published
from songbloom.sketch.codebook import SketchCodebook, load_codebook
from songbloom.training import checkpoint
from songbloom.training.loop import Trainer
from tests.sketch.test_muq import _folder as write_muq
from tests.sketch.tiny import muq, muq_features, sound
from tests.songs import codebook, write_codec, write_corpus
from tests.test_migration import CODEBOOK, TRAINING
from tests.test_train_sketch import write_sung
from tests.training.runs import latest

RUN = ["--hps=tiny_songbloom", "--train", "--log_steps=1", "--sample_iters=0", "--use_cache", "--cache_dir=kept"]
PRIOR = [*RUN, "--prior", "--data-jsonl=songs.jsonl"]
BASE = f"logs/base/{checkpoint.LATEST}"
LORA = [*RUN, "--use-lora", "--lora-rank=2", "--data-jsonl=songs.jsonl", f"--restore_prior={BASE}"]
CODES = ["--hps=tiny_sketch", "--vq", "--train", "--log_steps=1", "--save_iters=100", "--audio_files_dir=sung"]
NETWORK = ["--sketch_hidden=12", "--sketch_start_step=0"]


class Case(NamedTuple):
    """What an option does: what is looked at with ``words`` is not what is seen with ``without``."""

    words: list[str]
    look: Callable[[list[str]], Any]
    without: Sequence[str] = ()
    base: Sequence[str] = ()

    def seen(self, usual: list[str]) -> tuple[Any, Any]:
        """What is seen with the option, and without."""
        base = self.base or usual
        return self.look([*base, *self.words]), self.look([*base, *self.without])


# --- ways of looking; each gets the words of a command ---------------------------------------------------------------


def built(words: list[str]) -> Trainer:
    if not any(word.startswith("--name") for word in words):
        shutil.rmtree("logs/x", ignore_errors=True)
        words = [*words, "--name=x"]
    return train.build(training_command(words).hps)


def of_trainer(look: Callable[[Trainer], Any]) -> Callable[[list[str]], Any]:
    return lambda words: look(built(words))


def refusal(words: list[str]) -> str:
    try:
        built(words)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return "nothing"


def said(part: str) -> Callable[[list[str]], bool]:
    """Whether a command is refused in a line with ``part`` in it."""
    return lambda words: part in refusal(words)


def trained(words: list[str], steps: int = 1) -> dict[str, Any]:
    """The checkpoint after ``steps`` steps."""
    ends = ("--train_steps", "--max-steps", "--epochs", "--max-epochs")
    more = [] if any(word.startswith(ends) for word in words) else [f"--train_steps={steps}"]
    assert built([*words, *more]).run() == 0
    return latest(Path("logs"), "x")


def weights(words: list[str], steps: int = 1) -> list[float]:
    """A number a tensor of what was trained."""
    return [float(tensor.double().sum()) for tensor in trained(words, steps)["model"].values()]


def begun(words: list[str]) -> list[float]:
    """A number a tensor of what training begins with."""
    return [float(tensor.detach().double().sum()) for tensor in built(words).task.model.parameters()]


def which_model(words: list[str]) -> tuple[float, int, list[float]]:
    """What published models differ in: turns of positions, room for lyrics, weights."""
    config = built(words).task.model.config
    return config.rotary_base, config.lyric_tokens, begun(words)


def text_of(value: Any) -> str:
    """A value as a person would give it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def item(words: list[str]) -> Any:
    return built(words).train_set[0]


def part_of_item(name: str) -> Callable[[list[str]], Any]:
    return lambda words: torch.as_tensor(item(words)[name]).tolist()


def loss(words: list[str]) -> float:
    """Of the first song, in training, with everything hidden that training hides."""
    trainer = built(words)
    batch = trainer.task.batch_of(default_collate([trainer.train_set[0]]), torch.device("cpu"))
    trainer.task.train()
    with torch.no_grad():
        return float(trainer.task(*trainer.task.prepare(batch))[0])


def songs(trainer: Trainer) -> tuple[list[str], list[str]]:
    """Names of the songs to train on, and of those to evaluate on."""
    sides = [trainer.train_set, trainer.test_set]
    return tuple([str(s.song.idx) for s in side.songs] if side is not None else [] for side in sides)  # type: ignore[return-value]


def entries(words: list[str]) -> tuple[int, int]:
    """Files in two folders for a cache, after both are emptied."""
    for folder in ("kept_elsewhere", "home/training"):
        shutil.rmtree(folder, ignore_errors=True)
    built(words)
    return tuple(len(list(Path(folder).rglob("*.npz"))) for folder in ("kept_elsewhere", "home/training"))  # type: ignore[return-value]


def rewritten(words: list[str]) -> bool:
    """Whether the entries of the cache are made anew."""
    built(PRIOR)
    times = [sorted(path.stat().st_mtime_ns for path in Path("kept").rglob("*.npz"))]
    built(words)
    times.append(sorted(path.stat().st_mtime_ns for path in Path("kept").rglob("*.npz")))
    return times[0] != times[1]


def loaders(words: list[str]) -> set[int]:
    """How many processes loaded what was trained on."""
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        original = torch_data.DataLoader.__init__

        def init(self: Any, *given: Any, **named: Any) -> None:
            seen.add(named.get("num_workers", 0))
            original(self, *given, **named)

        patch.setattr(torch_data.DataLoader, "__init__", init)
        trained(words)
    return seen


def where(words: list[str]) -> str:
    """The device, or what is wrong with it."""
    try:
        return str(distributed.start(training_command([*words, "--name=x"]).hps.device or None).device)
    except UserError as error:
        return str(error)
    finally:
        distributed.start("cpu")


def told_wandb(words: list[str]) -> dict[str, Any] | None:
    """What W&B is begun with; None if it isn't."""
    Path("begun").unlink(missing_ok=True)
    trained(words)
    sys.modules.pop("wandb", None)
    return json.loads(Path("begun").read_text()) if Path("begun").is_file() else None


def wandb(key: str) -> Callable[[list[str]], Any]:
    return lambda words: (told_wandb(words) or {}).get(key)


def adapters(look: Callable[[Any], Any]) -> Callable[[list[str]], Any]:
    """What is true of the first adapter."""
    return lambda words: look(next(m for m in built(words).task.model.modules() if type(m).__name__ == "LowRank"))


def trainable(words: list[str]) -> list[str]:
    return [name for name, parameter in built(words).task.model.named_parameters() if parameter.requires_grad]


def of_a_network(words: list[str]) -> list[float]:
    """Weights after the codebook has started, which takes three steps."""
    return weights(words, 5)


def vectors(words: list[str], steps: int = 3) -> list[float]:
    trained(words, steps)
    return load_codebook("logs/x/sketch_codebook.pt").vectors.sum(1).tolist()


def made_elsewhere(words: list[str]) -> bool:
    Path("made/book.pt").unlink(missing_ok=True)
    trained(words, 3)
    return Path("made/book.pt").is_file()


def numbered(words: list[str]) -> int:
    trained(words)
    return len(list(Path("logs/x").glob("checkpoint_step_*.pth.tar")))


def verified(words: list[str]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        from songbloom.training import songbloom_data

        patch.setattr(songbloom_data, "say", lines.append)
        built(words)
    return [line for line in lines if line.startswith("[verify] checked")]


# --- the options -----------------------------------------------------------------------------------------------------

SKETCHED = "--data-jsonl=sketched.jsonl"
PRECOMPUTED = ["--sketch-mode=precomputed", "--restore_sketch=", SKETCHED]
MUQ = ["--sketch-mode=muq", "--muq-vq-path=muq.pt"]
WANDB = ["--wandb", "--wandb-mode=offline"]
PUBLISHED = [word for word in PRIOR if not word.startswith("--hps")]
# Published models as small as the tiny one; what tells one from the other is left to their sets.
SIZES = {key: value for key, value in HPARAMS_REGISTRY["tiny_songbloom"].items() if key != "lyric_tokens"}
TINY = [*PUBLISHED, *(f"--{key}={text_of(value)}" for key, value in SIZES.items()), "--sketch_mode=builtin"]
FILES = {150: "SongBloom/songbloom_full_150s.pt", 240: "SongBloom_long/songbloom_full_240s.pt"}

EFFECTS: dict[str, Case] = {
    "model-name": Case(["--model-name=songbloom_full_240s"], which_model, ["--model-name=songbloom_full_150s"], TINY),
    "local-dir": Case(
        ["--local-dir=theirs"], said("put it at theirs/"), ["--local-dir=ours"], [*PUBLISHED, "--hps=songbloom_150s"]
    ),
    "data-jsonl": Case(["--data-jsonl=two.jsonl"], of_trainer(songs)),
    "val-jsonl": Case(["--val-jsonl=two.jsonl"], of_trainer(songs), [], [*PRIOR, "--data-jsonl=others.jsonl"]),
    "val-split": Case(["--val-split=0.5"], of_trainer(songs)),
    "split-seed": Case(["--val-split=0.5", "--split-seed=2"], of_trainer(songs), ["--val-split=0.5", "--split-seed=3"]),
    "output-dir": Case(["--output-dir=elsewhere"], of_trainer(lambda trainer: str(trainer.folder))),
    "batch-size": Case(["--batch-size=1"], lambda words: trained([*words, "--epochs=1"])["step"]),
    "accumulate-grad-batches": Case(
        ["--accumulate-grad-batches=2"], lambda words: trained([*words, "--epochs=1"])["step"]
    ),
    "max-epochs": Case(["--max-epochs=2"], lambda words: trained(words)["position"]["epoch"], ["--max-epochs=1"]),
    "max-steps": Case(["--max-steps=2"], lambda words: trained(words)["step"], ["--max-steps=1"]),
    "lr": Case(["--lr=0.01"], weights),
    "weight-decay": Case(["--weight-decay=0.5"], weights),
    "lambda-flow": Case(["--lambda-flow=0.9"], loss),
    "warmup-steps": Case(["--warmup-steps=50"], lambda words: weights(words, 2)),
    "num-workers": Case(["--num-workers=1"], loaders),
    "precision": Case(["--precision=bf16-mixed"], loss),
    "device": Case(["--device=nowhere"], where),
    "prompt-len": Case(["--prompt-len=0.12"], part_of_item("valid")),
    "max-duration": Case(["--max-duration=0.48"], part_of_item("length")),
    "segment-strategy": Case(
        ["--segment-strategy=random", "--sample_length=3840"], of_trainer(lambda trainer: len(trainer.train_set)),
        ["--sample_length=3840"],
    ),
    "cache-dir": Case(["--cache-dir=kept_elsewhere"], entries),
    "use-cache": Case(["--use-cache", "--cache_dir="], entries, ["--no-use-cache", "--cache_dir="]),
    "rebuild-cache": Case(["--rebuild-cache"], rewritten),
    "clean-lyrics": Case(["--clean-lyrics"], part_of_item("lyrics")),
    "process-lyrics": Case(
        ["--process-lyrics"], part_of_item("lyrics"), ["--no-process-lyrics"], [*PRIOR, "--data-jsonl=words.jsonl"]
    ),
    "init-from-pretrained": Case(
        ["--init-from-pretrained"], begun, ["--no-init-from-pretrained"], [*TINY, "--hps=songbloom_240s"]
    ),
    "resume-from": Case([f"--resume-from={BASE}"], begun),
    "seed": Case(["--seed=1234"], weights),
    "sketch-mode": Case(["--sketch-mode=precomputed"], part_of_item("tokens"), [], [*PRIOR, SKETCHED]),
    "muq-model-id": Case(["--muq-model-id=muq"], refusal, ["--muq-model-id=nothing"], [*PRIOR, *MUQ]),
    "muq-sr": Case(["--muq-sr=16000"], refusal, ["--muq-sr=24000"], [*PRIOR, *MUQ, "--muq-model-id=muq"]),
    "muq-embed-dim": Case(["--muq-embed-dim=7"], said("sketch_width=7")),
    "muq-codebook-size": Case(["--muq-codebook-size=12"], said("has 16 codes")),
    "muq-vq-path": Case(["--muq-vq-path=other.pt"], part_of_item("tokens")),
    # A codebook learns in its own run alone; there the two count.
    "muq-vq-decay": Case(["--muq-vq-decay=0.5"], vectors, [], CODES),
    "muq-commitment-weight": Case(["--muq-commitment-weight=9"], of_a_network, [], [*CODES, *NETWORK]),
    "require-vq-path": Case(["--require-vq-path"], said("--require_vq_path"), [], [*PRIOR, *PRECOMPUTED]),
    "require-length-match": Case(["--require-length-match"], said("sketch has 80 codes"), [], [*PRIOR, *PRECOMPUTED]),
    "verify-lengths": Case(["--verify-lengths"], verified, [], [*PRIOR, *PRECOMPUTED]),
    "verify-lengths-max": Case(["--verify-lengths-max=1"], verified, [], [*PRIOR, *PRECOMPUTED, "--verify-lengths"]),
    "no-wandb": Case(["--no-wandb"], told_wandb, [], [*PRIOR, *WANDB]),
    "wandb-project": Case(["--wandb-project=p"], wandb("project"), [], [*PRIOR, *WANDB]),
    "wandb-entity": Case(["--wandb-entity=e"], wandb("entity"), [], [*PRIOR, *WANDB]),
    "wandb-name": Case(["--wandb-name=n"], wandb("name"), [], [*PRIOR, *WANDB]),
    "wandb-mode": Case(["--wandb-mode=disabled"], wandb("mode"), [], [*PRIOR, "--wandb"]),
    "use-lora": Case(
        ["--use-lora"], of_trainer(lambda trainer: trainer.task.kind), [], [*PRIOR, *LORA[-1:], "--lora-rank=2"]
    ),
    "lora-rank": Case(["--lora-rank=3"], adapters(lambda adapter: adapter.rank), [], LORA),
    "lora-alpha": Case(["--lora-alpha=7"], adapters(lambda adapter: adapter.scale), [], LORA),
    "lora-dropout": Case(["--lora-dropout=0.5"], weights, ["--lora-dropout=0"], [*LORA, "--train_steps=2"]),
    "lora-target-modules": Case(["--lora-target-modules=to_qkv"], trainable, [], LORA),
    "lora-train-all": Case(["--lora-train-all"], trainable, [], LORA),
    "h-dropout": Case(["--h-dropout=1"], loss),
    "timestep-sampler": Case(["--timestep-sampler=uniform"], loss),
}  # fmt: skip
OF_CODEBOOKS: dict[str, Case] = {
    "data-dir": Case(["--data-dir=sung"], refusal, ["--data-dir=nowhere"], [w for w in CODES if "audio" not in w]),
    "output": Case(["--output=made/book.pt"], made_elsewhere),
    "muq-model-id": Case(["--muq-model-id=muq"], of_trainer(lambda trainer: trainer.task.model.features.width)),
    "muq-sr": Case(["--muq-sr=24000"], said("--muq_sr=24000"), ["--muq-sr=8000"]),
    "embedding-dim": Case(["--embedding-dim=7"], said("sketch_width=7")),
    "codebook-size": Case(["--codebook-size=12"], lambda words: len(vectors(words))),
    "decay": Case(["--decay=0.5"], vectors),
    "commitment-weight": Case(["--commitment-weight=9"], of_a_network, [], [*CODES, *NETWORK]),
    "epochs": Case(["--epochs=2"], lambda words: trained(words)["position"]["epoch"], ["--epochs=1"]),
    "lr": Case(["--lr=0.1"], weights),
    "chunk-size": Case(["--chunk-size=50"], of_trainer(lambda trainer: trainer.train_set.sample_length)),
    "min-frames": Case(["--min-frames=76"], refusal),
    "save-every": Case(["--save-every=1", "--epochs=2"], numbered, ["--epochs=2"]),
    "device": Case(["--device=nowhere"], where),
    "no-wandb": Case(["--no-wandb"], told_wandb, [], [*CODES, *WANDB]),
    "wandb-project": Case(["--wandb-project=p"], wandb("project"), [], [*CODES, *WANDB]),
    "wandb-entity": Case(["--wandb-entity=e"], wandb("entity"), [], [*CODES, *WANDB]),
    "wandb-name": Case(["--wandb-name=n"], wandb("name"), [], [*CODES, *WANDB]),
}  # fmt: skip

WANDB_PACKAGE = """
import json
class Audio:
    def __init__(self, *given, **named): pass
class Run:
    def log(self, values, step): pass
    def finish(self): pass
def init(**named):
    open("begun", "w").write(json.dumps({key: value for key, value in named.items() if key != "config"}))
    return Run()
"""


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Songs, codecs of both kinds, a base to adapt; the working directory of this module's tests."""
    folder = tmp_path_factory.mktemp("options")
    write_corpus(folder, lyrics="[verse] さ…くら やよい")
    write_codec(folder)
    write_sung(folder / "sung", 2)
    codebook(seed=5).save(folder / "other.pt")
    rows = read_lines(folder / "songs.jsonl", "songs")
    for number in range(4):
        np.save(folder / f"{number}.npy", np.full(80, number))
    sketched = [{**row, "sketch_path": f"{n}.npy"} for n, row in enumerate(rows)]
    phonemes = [{**row, "lyrics": "[verse] s a k u r a"} for row in rows]
    lists = {"two": rows[:2], "others": rows[2:], "sketched": sketched, "words": phonemes}
    for name, lines in lists.items():
        write_lines(folder / f"{name}.jsonl", lines, folder)
    (folder / "muq").mkdir()
    write_muq(folder / "muq", muq(), True)
    features = muq_features()
    rows_of = features.extract(sound(1, 2.0, 24000), 24000)[0][:16]
    SketchCodebook(rows_of, features.identity()).save(folder / "muq.pt")
    (folder / "packages").mkdir()
    (folder / "packages" / "wandb.py").write_text(WANDB_PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SONGBLOOM_CACHE", str(folder / "home"))
        patch.syspath_prepend(str(folder / "packages"))
        assert built([*PRIOR, "--name=base", "--train_steps=1", "--seed=9"]).run() == 0
        for seconds, name in FILES.items():
            drawn = built([*PRIOR, f"--seed={seconds}", "--name=published"]).task.model
            place = folder / "home" / "CypressYang" / name
            place.parent.mkdir(parents=True)
            torch.save(to_published(drawn.state_dict()), place)
        yield folder
    sys.modules.pop("wandb", None)


@pytest.fixture(autouse=True)
def no_folder_of_another_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_folder", [])


def ignored(flag: str) -> bool:
    (ours,) = renamed([f"--{flag.removeprefix('no-')}"])
    return bool(KNOBS[ours.removeprefix("--").replace("-", "_")].ignored)


def test_every_option_that_counts_has_a_case() -> None:
    assert set(EFFECTS) == {flag for flag in TRAINING if flag == "model-name" or not ignored(flag)}
    assert set(OF_CODEBOOKS) == set(CODEBOOK)


@pytest.mark.parametrize("flag", EFFECTS)
def test_it_changes_what_a_priors_run_does(flag: str) -> None:
    case = EFFECTS[flag]
    assert any(word.partition("=")[0] == f"--{flag}" for word in case.words)
    given, without = case.seen(PRIOR)
    assert given != without


def test_published_sets_begin_with_their_files_and_settings() -> None:
    for seconds, expected in {150: (20000.0, 600), 240: (40000.0, 1000)}.items():
        found = which_model([*TINY, f"--model-name=songbloom_full_{seconds}s", "--init-from-pretrained"])
        content = torch.load(Path("home/CypressYang") / FILES[seconds], weights_only=True)
        assert found[:2] == expected
        assert sum(found[2]) == pytest.approx(sum(float(tensor.double().sum()) for tensor in content.values()))


def test_weights_that_are_insisted_on_must_be_named() -> None:
    assert refusal([*PRIOR, "--init-from-pretrained"]).startswith("--init_from_pretrained: the sets name no weights")


@pytest.mark.parametrize("flag", OF_CODEBOOKS)
def test_it_changes_what_a_codebooks_run_does(flag: str) -> None:
    case = OF_CODEBOOKS[flag]
    assert any(word.partition("=")[0] == f"--{flag}" for word in case.words)
    given, without = case.seen(CODES)
    assert given != without


def test_the_same_words_do_the_same(workplace: Path) -> None:
    """Or differences would say nothing."""
    assert os.getcwd() == str(workplace)  # noqa: PTH109
    assert weights(PRIOR) == weights(PRIOR) and loss(PRIOR) == loss(PRIOR)
    assert vectors(CODES) == vectors(CODES) and of_a_network([*CODES, *NETWORK]) == of_a_network([*CODES, *NETWORK])
    assert weights([*LORA, "--train_steps=2"]) == weights([*LORA, "--train_steps=2"])
