"""Files of the published SongBloom models: from the hub into the cache folder, or from a folder of one's own.

``hf://OWNER/NAME/FILE`` names a file of the hub. It is looked for in ``{cache folder}/OWNER/NAME/FILE`` first, which is
also where to put it by hand; only if it is not there, and the ``huggingface_hub`` package is, it is downloaded, and
what belongs beside it with it. ``hf://OWNER/NAME`` and a folder stand for the file of weights in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from songbloom.distributed import gather_objects, world
from songbloom.errors import UserError
from songbloom.published import safetensors
from songbloom.published.songbloom.prior import codec_state, settings_from_published
from songbloom.published.songbloom.yaml_files import read_settings

SCHEME = "hf://"
SETTINGS, VOCABULARY = ".yaml", "vocab_g2p.yaml"
CODEC = "autoencoder_music_dsp1920.ckpt"
COMPANIONS = (VOCABULARY, CODEC)
ELSEWHERE = {"CypressYang/SongBloom_long": "CypressYang/SongBloom"}  # repository → the one that has its companions
PARTS = ("model", "inference", "max_dur")  # of a yaml; the rest is about training, in places that are not here


def is_hub(path: str) -> bool:
    """Whether ``path`` names a file of the hub."""
    return path.startswith(SCHEME)


def parts_of(path: str) -> tuple[str, str]:
    """Repository and file of a hub name.

    Raises:
        UserError: it has not both.
    """
    owner, _, rest = path.removeprefix(SCHEME).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file) or ".." in file.split("/"):
        raise UserError(f"{path}: names no file of the hub; write {SCHEME}OWNER/NAME/FILE")
    return f"{owner}/{name}", file


def file_of(path: str, *usual: str) -> str:
    """The file of a prior's weights that ``path`` names: itself, or the one in a folder or a repository of the hub.

    Args:
        path: a file, a folder, ``hf://OWNER/NAME/FILE`` or ``hf://OWNER/NAME``.
        usual: what such files are called; the first is that of a repository.

    Raises:
        UserError: a folder without such a file, or with several.
    """
    if is_hub(path):
        repository = path.removeprefix(SCHEME).strip("/")
        return f"{SCHEME}{repository}/{usual[0]}" if repository.count("/") == 1 and usual and usual[0] else path
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        return path
    found = [name for name in usual if name and (folder / name).is_file()][:1]
    found = found or sorted(each.name for each in folder.iterdir() if each.suffix in (".pt", safetensors.SUFFIX))
    if len(found) != 1:
        there = f"several files of weights ({', '.join(found[:5])})" if found else "no .pt and no .safetensors"
        raise UserError(f"{path}: a folder with {there}: name the file of the prior's weights")
    return str(folder / found[0])


def place_of(path: str, cache: Path) -> Path:
    """Where the file of a hub name is kept."""
    repository, file = parts_of(path)
    return cache / repository / file


def fetch(path: str, cache: Path) -> Path:
    """The local file of a hub name, downloaded if it is not there; all ranks call it together.

    Args:
        path: ``hf://OWNER/NAME/FILE``.
        cache: the folder of downloads.

    Raises:
        UserError: it is not there and cannot be downloaded; every rank raises it.
    """
    target = place_of(path, cache)
    problem = None
    if world().local_rank == 0 and not target.is_file():
        try:
            _download(path, target)
        except UserError as error:
            problem = str(error)
    problems = [each for each in gather_objects(problem) if each]
    if problems:
        raise UserError(problems[0])
    return target


def _download(path: str, target: Path) -> None:
    repository, file = parts_of(path)
    advice = f"put it at {target} by hand, with what belongs beside it (docs/songbloom.md), or name a file of your own"
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"{path}: is not there; pip install huggingface_hub to download it, or {advice}") from None
    folder = target.parents[file.count("/")]  # the repository's
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [file]
    if file.endswith((".pt", safetensors.SUFFIX)):
        wanted += [str(PurePosixPath(file).with_suffix(SETTINGS))]
        wanted += [str(PurePosixPath(file).with_name(name)) for name in COMPANIONS]
    for name in wanted:
        try:
            hf_hub_download(repository, name, local_dir=str(folder))
        except Exception as error:  # the package's errors, and those of all that it downloads with, share no base
            if name == file:
                reason = next(iter(str(error).split("\n")), "")[:120].strip(" .") or type(error).__name__
                raise UserError(f"{path}: cannot be downloaded ({reason}); {advice}") from error
            if repository in ELSEWHERE and name in COMPANIONS:
                with suppress(Exception):  # what is still missing is told where it is needed
                    hf_hub_download(ELSEWHERE[repository], name, local_dir=str(folder))


def beside(weights: Path, name: str) -> Path | None:
    """The file called ``name`` in the folder of the weights, if it is there."""
    found = weights.parent / name
    return found if found.is_file() else None


def codec_of(weights: Path, content: Mapping[str, Any]) -> str:
    """The file of the VAE that belongs to published weights: the same one, or the VAE's own beside it.

    Raises:
        UserError: there is none.
    """
    if codec_state(content):
        return str(weights)
    found = beside(weights, CODEC)
    if found is None:
        raise UserError(f"{weights}: holds no VAE: put {CODEC} beside it, or give --restore_vae=FILE")
    return str(found)


def settings_of(weights: Path) -> dict[str, Any]:
    """What the files beside published weights say of the prior, by our hyperparameters' names.

    The yaml of the same name tells shapes, ``vocab_g2p.yaml`` is the vocabulary; either may be missing.

    Raises:
        UserError: the yaml cannot be read.
    """
    told: dict[str, Any] = {}
    words = beside(weights, VOCABULARY)
    if words is not None:
        told["lyrics_vocab"] = str(words)
    found = beside(weights, weights.stem + SETTINGS)
    if found is None:
        return told
    content = read_settings(found, only=PARTS)
    told |= settings_from_published(content["model"] if isinstance(content.get("model"), Mapping) else content)
    for derived in ("lyric_vocabulary", "structure_tokens", "section_token", "sentence_token"):
        told.pop(derived, None)  # these follow from the vocabulary
    if "latent_width" in told:
        told["vae_latent_dim"] = told.pop("latent_width")
    if isinstance(content.get("max_dur"), (int, float)):
        told["sample_length_in_seconds"] = content["max_dur"]
    return told
