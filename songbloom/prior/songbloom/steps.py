"""The diffusion transformer's steps on a CPU without a compiler: ``DiffusionTransformer.velocity``, to rounding.

Where there is a compiler, ``native.py`` is faster.

The same patch is looked at dozens of times, and only its latents and the time change between two looks. So whatever the
first layer makes of the other positions (norm, queries, keys, values) is computed once a patch, and what it makes of
the time token once a run. Later layers mix all positions, and nothing of them can be kept. In the last one only the
latents' positions have readers: queries, output and feed-forward are computed there alone.

The products are those of some hundred rows with matrices of megabytes. They are a fifth faster where matrices lie with
the inputs' axis first and where the feed-forward goes through its hidden channels in tiles, so that a tile of the
matrices and what comes of it stay in the processor's second cache (measured, docs/benchmarks.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.prior.songbloom.layers import LAYER_NORM_EPS, LayerNorm, TiledMLP, joint_rotation, rotate_in_place
from songbloom.transformer.lora import effective_weight

if TYPE_CHECKING:
    from songbloom.prior.songbloom.dit import DiffusionLayer, DiffusionTransformer

# Matrices are copied, inputs' axis first, where all of them together take at most this many bytes; those of larger
# models are read as they lie, and memory does not grow.
COPIED_BYTES = 1 << 28


class Moment(NamedTuple):
    """What depends on the diffusion time alone.

    Attributes:
        time: ``[W]``, embedded.
        first: ``[3 W]``, the time token's query, key (turned) and value in the first layer; None without that token.
        gates: for each layer the six vectors ``[W]`` of ``adaln`` (1 + scale, shift and gate of attention, then of the
            feed-forward); empty without it.
    """

    time: Tensor
    first: Tensor | None
    gates: list[tuple[Tensor, ...]]


class LayerMatrices:
    """One layer's matrices, inputs' axis first: ``query_key_value [W, 3 W]``, ``output [W, W]``, ``mlp``."""

    def __init__(self, layer: DiffusionLayer, copied: bool) -> None:
        def turned(module: nn.Module) -> Tensor:
            weight = effective_weight(module).detach().float().t()
            return weight.contiguous() if copied else weight

        self.query_key_value, self.output = turned(layer.query_key_value), turned(layer.attention_output)
        self.mlp = TiledMLP(layer.mlp, copied=copied)
        self.attention_norm, self.mlp_norm = layer.attention_norm, layer.mlp_norm
        self.modulation = layer.modulation


def _normed(norm: LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, LAYER_NORM_EPS)


class DiffusionSteps:
    """Velocities of patch after patch; :meth:`begin` each patch, then call :meth:`velocity` for its steps.

    Make it again when the weights have changed.

    Args:
        diffusion: its weights, in float32 on a CPU.
    """

    def __init__(self, diffusion: DiffusionTransformer) -> None:
        self.diffusion, self.config = diffusion, diffusion.config
        config = self.config
        layer_floats = 4 * config.prior_width**2 + 3 * config.prior_width * config.mlp_width
        copied = 4 * config.dit_depth * layer_floats <= COPIED_BYTES
        self.layers = [LayerMatrices(layer, copied) for layer in diffusion.diffusion_layers()]
        self.prepended = config.time_conditioning == "prepend"
        self.positions = 1 + 3 * config.patch_size + self.prepended
        self.table = joint_rotation(diffusion.rotary(self.positions, diffusion.project_in.weight.device))
        self.moments: dict[float, Moment] = {}
        self.sequence = self.first = torch.empty(0)

    def _turn(self, x: Tensor, at: slice) -> None:
        """Turn ``x [N, T, k W]``, queries or keys of the positions ``at``, where they lie."""
        rotate_in_place(x.unflatten(-1, (-1, self.config.head_width)), self.table[:, at])

    def _moment(self, t: Tensor) -> Moment:
        """What depends on ``t`` alone, computed at the first step of the run that has it."""
        found = self.moments.get(float(t))
        if found is None:
            time = self.diffusion.time(t.to(self.table.device)[None])
            first, width = None, self.config.prior_width
            if self.prepended:
                begin = self.layers[0]
                first = torch.mm(_normed(begin.attention_norm, time), begin.query_key_value)
                self._turn(first[None, :, : 2 * width], slice(0, 1))
            gates: list[tuple[Tensor, ...]] = []
            for layer in self.layers:
                if layer.modulation is not None:
                    six = layer.modulation(F.silu(time))[0].chunk(6)
                    kept = torch.sigmoid(1 - six[2]), torch.sigmoid(1 - six[5])
                    gates.append((1 + six[0], six[1], kept[0], 1 + six[3], six[4], kept[1]))
            found = self.moments[float(t)] = Moment(time[0], None if first is None else first[0], gates)
        return found

    def begin(self, known: Tensor) -> None:
        """Take what does not change over the steps of a patch, ``[N, 1 + 2 patch_size, W]``."""
        n, length, width = known.shape
        start = int(self.prepended)
        self.sequence = known.new_zeros(n, self.positions, width)
        self.sequence[:, start : start + length] = known
        if self.prepended:
            layer = self.layers[0]
            self.first = known.new_zeros(n, self.positions, 3 * width)
            made = torch.mm(_normed(layer.attention_norm, known).reshape(-1, width), layer.query_key_value)
            made = made.view(n, length, -1)
            self._turn(made[..., : 2 * width], slice(start, start + length))
            self.first[:, start : start + length] = made

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [N, patch_size, latent_width]`` at the time ``t`` (a scalar) → velocity like x.

        The rows are those of the patch that was begun.
        """
        moment, (n, size) = self._moment(t), x.shape[:2]
        self.sequence[:, -size:] = self.diffusion.project_in(x)
        if self.prepended:
            self.sequence[:, 0] = moment.time
        y = self.sequence
        for index, layer in enumerate(self.layers):
            gates = moment.gates[index] if moment.gates else ()
            last = index + 1 == len(self.layers)
            if index == 0 and moment.first is not None:
                query, key, value = self._first_layer(y, moment.first, size)
                query = query[:, -size:] if last else query
            else:
                query, key, value = self._queries_keys_values(layer, y, gates, size if last else 0)
            heads = (part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(-1, y.shape[-1])
            y = self._finish(layer, y[:, -size:] if last else y, attended, gates)
        return self.diffusion.project_out(y).view(n, size, -1)

    def _first_layer(self, y: Tensor, time: Tensor, size: int) -> tuple[Tensor, ...]:
        """Queries, keys and values of the first layer ``[N, T, W]``: those of the patch, with the step's own put in."""
        layer, width = self.layers[0], y.shape[-1]
        own = y[:, -size:]
        made = torch.mm(_normed(layer.attention_norm, own).reshape(-1, width), layer.query_key_value)
        made = made.view(len(y), size, -1)
        self._turn(made[..., : 2 * width], slice(self.positions - size, self.positions))
        self.first[:, -size:] = made
        self.first[:, 0] = time
        return self.first.chunk(3, dim=-1)

    def _queries_keys_values(
        self, layer: LayerMatrices, y: Tensor, gates: tuple[Tensor, ...], last: int
    ) -> tuple[Tensor, ...]:
        """Queries (only of the ``last`` positions, unless that is 0), keys and values, ``[N, T, W]``."""
        n, positions, width = y.shape
        normed = _normed(layer.attention_norm, y)
        if gates:
            normed = normed * gates[0] + gates[1]
        if not last:
            made = torch.mm(normed.view(-1, width), layer.query_key_value).view(n, positions, -1)
            self._turn(made[..., : 2 * width], slice(0, positions))
            return made.chunk(3, dim=-1)
        made = torch.mm(normed.view(-1, width), layer.query_key_value[:, width:]).view(n, positions, -1)
        self._turn(made[..., :width], slice(0, positions))
        query = torch.mm(normed[:, -last:].reshape(-1, width), layer.query_key_value[:, :width]).view(n, last, -1)
        self._turn(query, slice(positions - last, positions))
        return query, *made.chunk(2, dim=-1)

    def _finish(self, layer: LayerMatrices, y: Tensor, attended: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        """The rest of a layer over ``y [N, T, W]`` and what attention gave, ``[N T, W]``."""
        flat = y.reshape(-1, y.shape[-1])
        if not gates:
            flat = torch.addmm(flat, attended, layer.output)  # a new tensor: the sequence stays as it is
            return layer.mlp.add_to(flat, _normed(layer.mlp_norm, flat)).view(y.shape)
        flat = flat + torch.mm(attended, layer.output) * gates[2]
        normed = _normed(layer.mlp_norm, flat) * gates[3] + gates[4]
        branch = layer.mlp.add_to(torch.zeros_like(flat), normed)
        return flat.addcmul_(branch, gates[5]).view(y.shape)
