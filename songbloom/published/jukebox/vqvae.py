"""Names of the published Jukebox VQ-VAE checkpoint, translated to ours and back.

Only names differ; every tensor keeps its shape and layout. In the published names a stack's container is called
``model``, except where it was trained with activation checkpointing (the upsamplers' conditioners): there it is
``blocks``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from songbloom.errors import UserError

_CONVOLUTION = {"1": "dilated", "3": "pointwise"}  # a published residual block: 0 and 2 are its ReLUs
_OURS = {ours: published for published, ours in _CONVOLUTION.items()}
_LEAF = r"(?P<leaf>weight|bias)"

# Inside one convolutional block. Published downsampling: model.{stage}.0 = convolution, .1 = residual stack,
# model.{last} = projection. Upsampling: model.0 = projection, model.{stage + 1}.0 = residual stack, .1 = convolution.
_PUBLISHED_STACK = re.compile(
    rf"model\.(?P<stage>\d+)\.(?P<part>[01])\.(?P<container>model|blocks)\.(?P<block>\d+)\.model\.(?P<conv>[13])\.{_LEAF}"
)
_PUBLISHED_RESAMPLE = re.compile(rf"model\.(?P<stage>\d+)\.(?P<part>[01])\.{_LEAF}")
_PUBLISHED_PROJECT = re.compile(rf"model\.(?P<stage>\d+)\.{_LEAF}")
_OUR_STACK = re.compile(
    rf"stages\.(?P<stage>\d+)\.residual\.blocks\.(?P<block>\d+)\.(?P<conv>dilated|pointwise)\.{_LEAF}"
)
_OUR_RESAMPLE = re.compile(rf"stages\.(?P<stage>\d+)\.resample\.{_LEAF}")
_OUR_PROJECT = re.compile(rf"project\.{_LEAF}")

_PUBLISHED_BLOCK = re.compile(
    r"(?P<side>encoders|decoders)\.(?P<level>\d+)\.level_blocks\.(?P<block>\d+)\.(?P<rest>.+)"
)
_PUBLISHED_OUTPUT = re.compile(rf"decoders\.(?P<level>\d+)\.out\.{_LEAF}")
_PUBLISHED_CODEBOOK = re.compile(r"bottleneck\.level_blocks\.(?P<level>\d+)\.k")
_OUR_BLOCK = re.compile(r"(?P<side>encoders|decoders)\.(?P<level>\d+)\.blocks\.(?P<block>\d+)\.(?P<rest>.+)")
_OUR_OUTPUT = re.compile(rf"decoders\.(?P<level>\d+)\.output\.{_LEAF}")
_OUR_CODEBOOK = re.compile(r"bottleneck\.levels\.(?P<level>\d+)\.codebook")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has the published VQ-VAE's names (a leading ``module.`` allowed)."""
    return any(_PUBLISHED_BLOCK.fullmatch(key.removeprefix("module.")) for key in state)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published VQ-VAE's state under our names; a leading ``module.`` is dropped.

    Raises:
        UserError: a key that no published VQ-VAE has.
    """
    return {_from_published_name(key.removeprefix("module.")): tensor for key, tensor in state.items()}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our VQ-VAE's ``state_dict()`` under the published names.

    Raises:
        UserError: a key that no VQ-VAE of ours has.
    """
    # (side, level, block) -> number of stages, which is the published index of a downsampling block's projection
    blocks: dict[tuple[str, str, str], int] = {}
    for key in state:
        if (found := _OUR_BLOCK.fullmatch(key)) and (stage := re.match(r"stages\.(\d+)\.", found["rest"])):
            place = (found["side"], found["level"], found["block"])
            blocks[place] = max(blocks.get(place, 0), int(stage[1]) + 1)

    def rename(key: str) -> str:
        if found := _OUR_CODEBOOK.fullmatch(key):
            return f"bottleneck.level_blocks.{found['level']}.k"
        if found := _OUR_OUTPUT.fullmatch(key):
            return f"decoders.{found['level']}.out.{found['leaf']}"
        if found := _OUR_BLOCK.fullmatch(key):
            side, level, block, rest = found.group("side", "level", "block", "rest")
            stages = blocks.get((side, level, block), 0)
            name = _to_published_in_block(rest, up=side == "decoders", stages=stages, container="model")
            if name is not None:
                return f"{side}.{level}.level_blocks.{block}.{name}"
        raise UserError(f"{key!r} is no name of our VQ-VAE's weights: give the state_dict of a songbloom VQVAE")

    return {rename(key): tensor for key, tensor in state.items()}


def upsampling_block_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One published upsampling block under the names of ``UpsamplingBlock``; either container name is understood.

    ``state`` is a conditioner's ``cond``, its prefix cut off.

    Raises:
        UserError: a key that no published upsampling block has.
    """
    return _rename(state, lambda key: _from_published_in_block(key, up=True), "a published upsampling block")


def upsampling_block_to_published(state: Mapping[str, Tensor], container: str = "blocks") -> dict[str, Tensor]:
    """The state of an ``UpsamplingBlock`` under the published names, without prefix.

    Args:
        state: its ``state_dict()``.
        container: ``"blocks"`` as in the published upsamplers (trained with activation checkpointing), or ``"model"``.

    Raises:
        UserError: a key that no ``UpsamplingBlock`` has.
    """
    if container not in ("blocks", "model"):
        raise UserError(f"container is {container!r}: published residual stacks are called 'blocks' or 'model'")
    return _rename(
        state,
        lambda key: _to_published_in_block(key, up=True, stages=0, container=container),
        "an UpsamplingBlock of ours",
    )


def _rename(state: Mapping[str, Tensor], rename: Callable[[str], str | None], owner: str) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        name = rename(key)
        if name is None:
            raise UserError(f"{key!r} is no name of {owner}: give its state_dict with the prefix cut off")
        renamed[name] = tensor
    return renamed


def _from_published_name(key: str) -> str:
    if found := _PUBLISHED_CODEBOOK.fullmatch(key):
        return f"bottleneck.levels.{found['level']}.codebook"
    if found := _PUBLISHED_OUTPUT.fullmatch(key):
        return f"decoders.{found['level']}.output.{found['leaf']}"
    if found := _PUBLISHED_BLOCK.fullmatch(key):
        name = _from_published_in_block(found["rest"], up=found["side"] == "decoders")
        if name is not None:
            return f"{found['side']}.{found['level']}.blocks.{found['block']}.{name}"
    raise UserError(f"{key!r} is no name of a published VQ-VAE's weights: is this the checkpoint of another model?")


def _from_published_in_block(key: str, *, up: bool) -> str | None:
    """Our name of a published name inside one convolutional block, or None."""
    first = 1 if up else 0  # published index of the first stage
    stack_part = "0" if up else "1"
    if (found := _PUBLISHED_STACK.fullmatch(key)) and found["part"] == stack_part and int(found["stage"]) >= first:
        convolution = _CONVOLUTION[found["conv"]]
        stage = int(found["stage"]) - first
        return f"stages.{stage}.residual.blocks.{found['block']}.{convolution}.{found['leaf']}"
    if (found := _PUBLISHED_RESAMPLE.fullmatch(key)) and found["part"] != stack_part and int(found["stage"]) >= first:
        return f"stages.{int(found['stage']) - first}.resample.{found['leaf']}"
    if (found := _PUBLISHED_PROJECT.fullmatch(key)) and (not up or found["stage"] == "0"):
        return f"project.{found['leaf']}"
    return None


def _to_published_in_block(key: str, *, up: bool, stages: int, container: str) -> str | None:
    """The published name of our name inside one convolutional block of ``stages`` stages, or None."""
    first = 1 if up else 0
    if found := _OUR_STACK.fullmatch(key):
        stage = int(found["stage"]) + first
        convolution = _OURS[found["conv"]]
        return f"model.{stage}.{0 if up else 1}.{container}.{found['block']}.model.{convolution}.{found['leaf']}"
    if found := _OUR_RESAMPLE.fullmatch(key):
        return f"model.{int(found['stage']) + first}.{1 if up else 0}.{found['leaf']}"
    if found := _OUR_PROJECT.fullmatch(key):
        return f"model.{0 if up else stages}.{found['leaf']}"
    return None
