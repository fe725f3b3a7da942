"""The language model: a Llama-style causal decoder over vectors, whole or a few positions at a time.

Source: Touvron et al. 2023, *LLaMA*; pre-norm RMSNorm, rotary positions, SwiGLU, no biases. The positions of the
conditions ("prefix") come first and are computed once a prompt; every sample of that prompt reads the same keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from songbloom.prior.songbloom.config import SongBloomConfig
from songbloom.prior.songbloom.layers import (
    GatedMLP,
    Linear,
    RMSNorm,
    TiledMLP,
    can_step_fast,
    joint_rotation,
    merge_heads,
    rotary_table,
    rotate_in_place,
    turned_heads,
)
from songbloom.transformer import halves
from songbloom.transformer.recomputation import Recomputation

TILED_FROM_ROWS = 32  # rows from which a feed-forward in tiles is the faster one
CHUNK = 256  # positions of a long continuation that are computed at once; bounds the memory of attention's scores


class Prefix(NamedTuple):
    """Keys and values ``[heads, L, D]`` of one condition's positions, layer by layer."""

    keys: list[Tensor]
    values: list[Tensor]


class LanguageModelLayer(nn.Module):
    """One layer: ``x += attention(norm(x)); x += mlp(norm(x))``."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        width, std = config.prior_width, config.init_std
        self.heads = config.heads
        self.attention_norm = RMSNorm(width)
        self.query_key_value = Linear(width, 3 * width, std=std)
        self.attention_output = Linear(width, width, std=std)
        self.mlp_norm = RMSNorm(width)
        self.mlp = GatedMLP(width, config.mlp_width, std=std)

    def queries_keys_values(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [N, T, W]`` → queries, keys (both turned) and values ``[N, heads, T, D]``."""
        return turned_heads(self.query_key_value(self.attention_norm(x)), table, self.heads)

    def queries_keys_values_fast(
        self, x: Tensor, joint: Tensor, *, half: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of float32 without gradients; ``joint`` is the table's ``joint_rotation``, ``half`` as in
        :meth:`finish_fast`."""
        normed = self.attention_norm.fused(x)
        projected = self.query_key_value.in_halves(normed) if half else self.query_key_value(normed)
        projected = projected.unflatten(-1, (3 * self.heads, -1))
        rotate_in_place(projected[:, :, : 2 * self.heads], joint)
        query, key, value = projected.transpose(1, 2).chunk(3, dim=1)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer after ``attended [N, heads, T, D]``."""
        x, normed = self.mlp_norm.of_sum(x, self.attention_output(merge_heads(attended)))
        return x + self.mlp(normed)

    def finish_fast(self, x: Tensor, attended: Tensor, *, half: bool = False) -> Tensor:
        """The same of float32 without gradients.

        Args:
            half: multiply in half precision, where the processor is fast in that (``transformer/halves.py``).
        """
        if half:
            x = x + self.attention_output.in_halves(merge_heads(attended))
            gate, up = self.mlp.gate_up.in_halves(self.mlp_norm.fused(x)).chunk(2, dim=-1)
            return self.mlp.down.in_halves(F.silu(gate).mul_(up)).add_(x)
        x = x + self.attention_output(merge_heads(attended))
        normed = self.mlp_norm.fused(x)
        if x.shape[0] * x.shape[1] < TILED_FROM_ROWS:
            return self.mlp(normed).add_(x)
        return TiledMLP(self.mlp).add_to(x.flatten(0, 1), normed.flatten(0, 1)).view(x.shape)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, T, W]`` → the layer's output, its keys and its values."""
        x, normed = self.attention_norm.of_sum(x)
        query, key, value = turned_heads(self.query_key_value(normed), table, self.heads)
        return self.finish(x, halves.attention(query, key, value, causal=True)), key, value


class LanguageModel(nn.Module):
    """The decoder with its final norm, on vectors ``[N, T, prior_width]``."""

    def __init__(self, config: SongBloomConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(LanguageModelLayer(config) for _ in range(config.prior_depth))
        self.norm = RMSNorm(config.prior_width)
        self.recomputation = Recomputation(config.c_res, config.kept_numbers, config.prior_depth)

    def language_layers(self) -> Iterator[LanguageModelLayer]:
        """The layers, first to last."""
        for layer in self.layers:
            assert isinstance(layer, LanguageModelLayer)
            yield layer

    def positions(self, start: int, stop: int, device: torch.device) -> Tensor:
        """The rotary table of a range of positions."""
        return rotary_table(torch.arange(start, stop, device=device), self.config.head_width, self.config.rotary_base)

    def forward(self, x: Tensor) -> Tensor:
        """All positions at once, each seeing itself and those before it: ``[N, T, W]`` → ``[N, T, W]``."""
        table = self.positions(0, x.shape[1], x.device)
        again = self.training and self.recomputation.wanted(x)
        for layer in self.language_layers():
            if again:
                x = checkpoint(layer, x, table, use_reentrant=False)[0]
            else:
                x = layer(x, table)[0]
        return self.norm(x)

    def attention_weights(self, x: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """The attention of some (layer, head) pairs over the whole sequence: ``[len(wanted), N, T, T]``, float32."""
        table, found = self.positions(0, x.shape[1], x.device), {}
        after = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for index, layer in enumerate(self.language_layers()):
            for head in {head for at, head in wanted if at == index}:
                query, key, _ = layer.queries_keys_values(x, table)
                scores = query[:, head].float() @ key[:, head].float().transpose(-1, -2) * query.shape[-1] ** -0.5
                found[index, head] = scores.masked_fill(after, float("-inf")).softmax(-1)
            x = layer(x, table)[0]
        return torch.stack([found[pair] for pair in wanted])

    def read(self, prefix: Tensor, *, fast: bool = True) -> Prefix:
        """One condition's positions ``[L, W]``, to begin any number of songs with.

        Args:
            fast: take the fast path, the same to rounding, where it can be.
        """
        dtype, half = prefix.dtype, False
        if fast and halves.slower_than_float32(prefix):
            half = halves.usable(dtype, prefix.device)
            prefix = prefix.float()
        table, x = self.positions(0, len(prefix), prefix.device), prefix[None]
        fast = fast and can_step_fast(prefix)
        joint, keys, values = joint_rotation(table), [], []
        # Zeros, the beginning of all songs without a style prompt, stay zeros in every layer: nothing has a bias.
        zeros = int((prefix != 0).any(-1).byte().argmax()) if fast else 0
        x, joint = x[:, zeros:], joint[:, zeros:]
        for index, layer in enumerate(self.language_layers()):
            if fast:
                parts = layer.queries_keys_values_fast(x, joint, half=half)
                query, key, value = (F.pad(part, (0, 0, zeros, 0)) for part in parts) if zeros else parts
            else:
                query, key, value = layer.queries_keys_values(x, table)
            if index + 1 < self.config.prior_depth:  # nobody asks for the output of the last layer
                if half:
                    attended = halves.softmax_attention(query, key, value, causal=True)
                else:
                    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                attended = attended[:, :, zeros:]
                x = layer.finish_fast(x, attended, half=half) if fast else layer.finish(x, attended)
            # Steps read keys channel by channel and values position by position; copies let the projection go.
            keys.append(key[0].to(dtype).transpose(-1, -2).contiguous().transpose(-1, -2))
            values.append(value[0].to(dtype).contiguous())
        return Prefix(keys, values)

    def begin(self, prefix: Tensor | Sequence[Prefix], rows: Sequence[int], capacity: int) -> Cache:
        """Compute the conditions' positions once each and make room for the song.

        Args:
            prefix: ``[G, L, W]``, a row for each different condition; or what :meth:`read` gave of each.
            rows: which of the G conditions each row that will be fed reads; rows of one condition stand together.
            capacity: positions after the prefix that the cache must hold.
        """
        keys: list[Sequence[Tensor]] = []
        values: list[Sequence[Tensor]] = []
        if isinstance(prefix, Tensor):
            table, x = self.positions(0, prefix.shape[1], prefix.device), prefix
            for layer in self.language_layers():
                x, key, value = layer(x, table)
                keys.append(list(key))
                values.append(list(value))
        else:
            keys = [list(parts) for parts in zip(*(each.keys for each in prefix), strict=True)]
            values = [list(parts) for parts in zip(*(each.values for each in prefix), strict=True)]
        config, like = self.config, keys[0][0]
        length = like.shape[1]
        shape = (config.prior_depth, len(rows), config.heads, capacity, config.head_width)
        own = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in (0, 1)]
        tables = self.positions(length, length + capacity, like.device)
        return Cache(keys, values, own[0], own[1], list(rows), tables)

    def step(self, x: Tensor, cache: Cache, *, fast: bool = True) -> Tensor:
        """The next positions: ``x [rows, m, W]`` → ``[rows, m, W]``; the cache remembers them.

        Args:
            fast: take the fast path, the same to rounding, where it can be.
        """
        outputs, fast = [], fast and can_step_fast(x)
        for part in x.split(CHUNK, dim=1):
            start, stop = cache.length, cache.length + part.shape[1]
            table = cache.table[:, start:stop]
            joint = cache.joint[:, start:stop]
            for index, layer in enumerate(self.language_layers()):
                if fast:
                    query, key, value = layer.queries_keys_values_fast(part, joint)
                    part = layer.finish_fast(part, cache.attend(index, query, key, value))
                else:
                    query, key, value = layer.queries_keys_values(part, table)
                    part = layer.finish(part, cache.attend(index, query, key, value))
            cache.length = stop
            outputs.append(self.norm.fused(part) if fast else self.norm(part))
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


class Cache:
    """Keys and values of the prefix (once a condition) and of the song so far (a row each, in room made once).

    Attributes:
        rows: for each row the condition whose prefix it reads.
        length: positions of the song so far.
        table: the rotary table of the song's positions; ``joint`` the same for ``rotate_in_place``.
    """

    def __init__(
        self,
        prefix_keys: Sequence[Sequence[Tensor]],
        prefix_values: Sequence[Sequence[Tensor]],
        keys: Tensor,
        values: Tensor,
        rows: list[int],
        table: Tensor,
    ) -> None:
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values
        self.keys, self.values = keys, values
        self.rows, self.table, self.length = rows, table, 0
        self.joint = joint_rotation(table)
        self.runs = self._runs()

    def _runs(self) -> list[tuple[int, int, int]]:
        """``(condition, first row, end row)`` of neighbours that read the same prefix."""
        runs: list[tuple[int, int, int]] = []
        for row, condition in enumerate(self.rows):
            if runs and runs[-1][0] == condition:
                runs[-1] = (condition, runs[-1][1], row + 1)
            else:
                runs.append((condition, row, row + 1))
        return runs

    def select(self, kept: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        index = torch.tensor(list(kept), dtype=torch.int64, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.rows = [self.rows[row] for row in kept]
        self.runs = self._runs()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Remember m new positions and attend from them to the prefix and to the song up to themselves.

        Args:
            query, key, value: ``[rows, heads, m, D]``, turned.

        Returns:
            ``[rows, heads, m, D]``. Softmax in float32 over prefix and song together.
        """
        start, stop, m = self.length, self.length + query.shape[2], query.shape[2]
        self.keys[layer, :, :, start:stop] = key
        self.values[layer, :, :, start:stop] = value
        query = query * query.shape[-1] ** -0.5
        own = query @ self.keys[layer, :, :, :stop].transpose(-1, -2)
        if m > 1:
            after = torch.ones(m, stop, dtype=torch.bool, device=query.device).triu(start + 1)
            own = own.masked_fill(after, float("-inf"))
        return self.weighed(layer, query, own, self.values[layer, :, :, :stop])

    def weighed(self, layer: int, query: Tensor, own: Tensor, values: Tensor) -> Tensor:
        """What queries see in the prefix and in the song.

        Args:
            query: ``[rows, heads, m, D]``, turned and scaled.
            own: ``[rows, heads, m, T]``, scores of the song's positions, -inf where nothing may be seen.
            values: ``[rows, heads, T, D]`` of these positions.
        """
        scores = torch.cat([self._of_prefix(query, self.prefix_keys[layer], turned=True), own], dim=-1)
        weights = scores.float().softmax(-1).to(query.dtype)
        prefix = scores.shape[-1] - own.shape[-1]
        seen = self._of_prefix(weights[..., :prefix], self.prefix_values[layer], turned=False)
        return seen + weights[..., prefix:] @ values

    def _of_prefix(self, x: Tensor, prefix: Sequence[Tensor], *, turned: bool) -> Tensor:
        """``x [rows, heads, m, A]`` times its row's part of ``prefix [heads, B, C]``, one product a condition."""
        heads, m = x.shape[1:3]
        found = []
        for condition, first, end in self.runs:
            matrix = prefix[condition].transpose(-1, -2) if turned else prefix[condition]
            stacked = x[first:end].transpose(0, 1).reshape(heads, (end - first) * m, x.shape[-1])
            found.append((stacked @ matrix).unflatten(1, (end - first, m)).transpose(0, 1))
        return torch.cat(found) if len(found) > 1 else found[0]
