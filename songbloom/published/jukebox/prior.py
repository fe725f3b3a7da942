"""Names and layouts of whole priors as Jukebox's checkpoints have them, and as they are here.

Both directions only rename and transpose, so they are exact and work on meta tensors. ``prior.*`` is our
``autoregressive.*``, ``conditioner_blocks.0.*`` our ``conditioner.*``, ``y_emb.*`` our ``label_conditioner.*``, and
``prime_*`` our ``lyric_encoder.*``.

Where output layer and embedding are one (every prior but the merged decoders), a published file holds the tensor under
both names; we hold it once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.published.jukebox import transformer
from songbloom.published.jukebox.vqvae import upsampling_block_from_published, upsampling_block_to_published

State = dict[str, Tensor]

_NAMES = {
    "prior.x_emb.weight": "autoregressive.embedding.weight",
    "prior.pos_emb.pos_emb": "autoregressive.positions",
    "prior.start_token": "autoregressive.start",
    "prior.x_out.weight": "autoregressive.output.weight",
    "conditioner_blocks.0.x_emb.weight": "conditioner.embedding.weight",
    "conditioner_blocks.0.ln.weight": "conditioner.norm.weight",
    "conditioner_blocks.0.ln.bias": "conditioner.norm.bias",
    "y_emb.artist_emb.emb.weight": "label_conditioner.artist.weight",
    "y_emb.bow_genre_emb.emb.weight": "label_conditioner.genre.weight",
    "y_emb.total_length_emb.emb.weight": "label_conditioner.total_length.embedding.weight",
    "y_emb.absolute_pos_emb.emb.weight": "label_conditioner.absolute_position.embedding.weight",
    "y_emb.relative_pos_emb.emb.weight": "label_conditioner.relative_position.embedding.weight",
    "prime_prior.x_emb.weight": "lyric_encoder.model.embedding.weight",
    "prime_prior.pos_emb.pos_emb": "lyric_encoder.model.positions",
    "prime_prior.start_token": "lyric_encoder.model.start",
    "prime_state_proj.b": "lyric_encoder.project.bias",
    "prime_state_ln.weight": "lyric_encoder.norm.weight",
    "prime_state_ln.bias": "lyric_encoder.norm.bias",
    "prime_x_out.weight": "lyric_encoder.output.weight",
}
# Matrices of linear maps, which are published as [in, out] and ours as [out, in].
_TURNED = {"prime_state_proj.w": "lyric_encoder.project.weight"}
_OURS = {ours: published for published, ours in _NAMES.items()}
_OURS_TURNED = {ours: published for published, ours in _TURNED.items()}
_TRANSFORMERS = {
    "prior.transformer.": "autoregressive.transformer.",
    "prime_prior.transformer.": "lyric_encoder.model.transformer.",
}
_UPSAMPLE = ("conditioner_blocks.0.cond.", "conditioner.upsample.")
EMBEDDING, OUTPUT = "prior.x_emb.weight", "prior.x_out.weight"


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` has a published prior's names (a leading ``module.`` allowed)."""
    return any(key.removeprefix("module.") == EMBEDDING for key in state)


def is_tied(state: Mapping[str, Tensor]) -> bool:
    """Whether a published state's output layer is its embedding: one tensor or, where there is data, equal numbers."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    output, embedding = state.get(OUTPUT), state[EMBEDDING]
    if output is None or output is embedding:
        return True
    if output.shape != embedding.shape or output.is_meta or embedding.is_meta:
        return False
    return torch.equal(output, embedding)


def from_published(state: Mapping[str, Tensor], *, tied: bool | None = None) -> State:
    """A published prior's state under our names, as views; a leading ``module.`` is dropped.

    Args:
        state: the published ``model``.
        tied: whether the output layer is the embedding (``not merged_decoder``), in which case it isn't given back a
            second time; None looks (:func:`is_tied`), which different tensors on the meta device cannot tell.

    Raises:
        UserError: a name that no published prior has, or an output layer that ``tied`` denies.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if EMBEDDING not in state:
        raise UserError(f"{EMBEDDING!r} is missing: this is no checkpoint of a published prior")
    if tied is None:
        tied = is_tied(state)
    elif tied and not (state.get(OUTPUT, state[EMBEDDING]).is_meta or is_tied(state)):
        raise UserError(f"{OUTPUT!r} differs from {EMBEDDING!r}: this checkpoint needs --merged_decoder=True")
    ours: State = {}
    block: State = {}
    for theirs, mine in _TRANSFORMERS.items():
        inner = {key.removeprefix(theirs): tensor for key, tensor in state.items() if key.startswith(theirs)}
        ours |= {mine + key: tensor for key, tensor in transformer.from_published(inner).items()}
    for key, tensor in state.items():
        if key.startswith(tuple(_TRANSFORMERS)):
            continue
        if key.startswith(_UPSAMPLE[0]):
            block[key.removeprefix(_UPSAMPLE[0])] = tensor
        elif key in _TURNED:
            ours[_TURNED[key]] = tensor.t()
        elif key not in _NAMES:
            raise UserError(f"{key!r} is no name of a published prior's weights: is this another model's checkpoint?")
        elif not (key == OUTPUT and tied):
            ours[_NAMES[key]] = tensor
    ours |= {_UPSAMPLE[1] + key: tensor for key, tensor in upsampling_block_from_published(block).items()}
    return ours


def to_published(state: Mapping[str, Tensor], *, container: str = "blocks") -> State:
    """Our prior's ``state_dict()`` under the published names.

    Args:
        state: weights under our names.
        container: what the conditioner's residual stacks are called: ``"blocks"`` (``cond_c_res`` 1, as the published
            upsamplers) or ``"model"``.

    Raises:
        UserError: a name that no prior of ours has.
    """
    published: State = {}
    block: State = {}
    for theirs, mine in _TRANSFORMERS.items():
        inner = {key.removeprefix(mine): tensor for key, tensor in state.items() if key.startswith(mine)}
        published |= {theirs + key: tensor for key, tensor in transformer.to_published(inner).items()}
    for key, tensor in state.items():
        if key.startswith(tuple(_TRANSFORMERS.values())):
            continue
        if key.startswith(_UPSAMPLE[1]):
            block[key.removeprefix(_UPSAMPLE[1])] = tensor
        elif key in _OURS_TURNED:
            published[_OURS_TURNED[key]] = tensor.t().contiguous()
        elif key in _OURS:
            published[_OURS[key]] = tensor
        else:
            raise UserError(f"{key!r} is no name of our prior's weights: give the state_dict of a songbloom Prior")
    if EMBEDDING in published:
        published.setdefault(OUTPUT, published[EMBEDDING])
    published |= {_UPSAMPLE[0] + key: t for key, t in upsampling_block_to_published(block, container).items()}
    return published
