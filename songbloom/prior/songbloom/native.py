"""The steps of a song in C++, on a CPU: tokens of the language model, looks of the diffusion transformer.

The numbers are those of the plain modules, to rounding, and what is computed for a song depends on nothing but that
song, bit by bit. Weights are read as the model keeps them, in float32 or bfloat16; sums, and what goes from layer to
layer, are float32, but for looks of songs in bf16 on a processor with AVX512-FP16: these multiply in float16, scaled
row by row, and add up runs of 32 products in it. See ``songbloom/transformer/native/diffusion.h``, ``half_panels.h``
and ``language.h``.

Make these again when the weights have changed or moved.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.prior.songbloom.layers import Linear
from songbloom.transformer.lora import effective_weight
from songbloom.transformer.native import loader

if TYPE_CHECKING:
    from songbloom.prior.songbloom.dit import DiffusionTransformer
    from songbloom.prior.songbloom.llama import Cache, LanguageModel

DTYPES = (torch.float32, torch.bfloat16)
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Bytes that a processor's table of small pages reaches, more or less; large pages bring nothing for fewer.
_REACH = 1 << 24
_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def available(x: Tensor) -> bool:
    """Whether steps of this can be native: on a CPU, without gradients, float32 or bfloat16, and with a compiler.

    Builds the library the first time.
    """
    fits = x.device.type == "cpu" and x.dtype in DTYPES and not torch.is_grad_enabled()
    return fits and loader.library("song") is not None


def multiplies_halves() -> bool:
    """Whether the library multiplies in half precision (float16): on processors with AVX512-FP16, by a compiler that
    knows it. Ask :func:`available` first."""
    return bool(_library().song_halves())


def _library() -> ctypes.CDLL:
    found = loader.library("song")
    assert found is not None, "ask available() first"
    return found


def _pointers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _POINTER) for name in names)


def _ints(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _INT) for name in names)


class _Matrix(ctypes.Structure):
    _fields_ = (*_pointers("weight", "bias", "panels", "scales"), *_ints("outputs", "inputs", "kind", "gated"))


def _matrices(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _Matrix) for name in names)


class _DiffusionLayer(ctypes.Structure):
    _fields_ = (
        *_matrices("query", "key_value", "output", "gate_up", "down"),
        *_pointers("norm_weight", "norm_bias", "mlp_norm_weight", "mlp_norm_bias"),
    )


class _Diffusion(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_DiffusionLayer)),
        *_matrices("project_in", "project_out"),
        *_ints("depth", "songs", "positions", "own", "latent", "width", "heads", "hidden", "rotated", "prepended"),
        *_ints("threads", "blind"),
        *_pointers("table", "known", "time", "gates", "x", "velocity", "first", "scratch"),
    )


class _LanguageLayer(ctypes.Structure):
    _fields_ = (
        *_matrices("query_key_value", "output", "gate_up", "down"),
        *_pointers("norm", "mlp_norm", "prefix_keys", "prefix_values", "keys", "values"),
    )


class _Language(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_LanguageLayer)),
        *_pointers("norm"),
        *_ints("depth", "rows", "width", "heads", "hidden", "entry_kind", "threads", "runs"),
        *((name, _LONG) for name in ("prefix", "capacity", "position")),
        *_pointers("run", "table", "x", "scratch"),
    )


class _Maps(ctypes.Structure):
    _fields_ = (
        *_matrices("hidden", "output"),
        *_ints("rows", "threads"),
        *_pointers("x", "made", "scratch"),
    )


STRUCTURES = (_Matrix, _DiffusionLayer, _Diffusion, _LanguageLayer, _Language, _Maps)


class _Weights:
    """Addresses of weights for C++; whatever they point to is kept alive here."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def address(self, tensor: Tensor) -> int:
        """Of a tensor as it lies, kept."""
        self.kept.append(tensor)
        return tensor.data_ptr()

    def vector(self, tensor: Tensor) -> int:
        """Of a norm or a bias, in float32."""
        return self.address(tensor.detach().float().contiguous())

    def matrix(self, to: _Matrix, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False) -> None:
        """Fill in a matrix ``[outputs, inputs]``; the model's own memory wherever that can be read."""
        weight = weight.detach()
        weight = (weight if weight.dtype in DTYPES else weight.float()).contiguous()
        to.weight, to.kind, to.gated = self.address(weight), _KINDS[weight.dtype], gated
        to.outputs, to.inputs = weight.shape[0] // (1 + gated), weight.shape[1]
        to.bias = None if bias is None else self.vector(bias)

    def linear(self, to: _Matrix, module: nn.Module, *, gated: bool = False) -> None:
        """Fill in a linear map as its adapters make it."""
        assert isinstance(module, Linear)
        self.matrix(to, effective_weight(module), module.bias, gated=gated)

    def large_pages(self) -> None:
        """Have all that has been named lie in large pages: it is read faster by a seventh from there. This takes no
        memory, and one or two seconds a GB the first time."""
        large = [tensor for tensor in self.kept if tensor.nbytes >= _REACH >> 6]
        if sum(tensor.nbytes for tensor in large) >= _REACH:
            for tensor in large:
                _library().song_collapse_pages(tensor.data_ptr(), tensor.nbytes)

    def scales(self, matrices: list[_Matrix]) -> None:
        """Have these multiplied in half precision, by what each row is divided by there."""
        library = _library()
        for each in matrices:
            room = torch.empty(library.song_scales_size(ctypes.addressof(each)))
            library.song_find_scales(ctypes.addressof(each), room.data_ptr())
            each.scales = self.address(room)

    def panels(self, matrices: list[_Matrix]) -> None:
        """Lay matrices as the products read them, once for all, in the order in which they are read."""
        library = _library()
        sizes = [library.song_panels_size(ctypes.addressof(each)) for each in matrices]  # whole cache lines
        room = _aligned(sum(sizes))
        library.song_large_pages(room.data_ptr(), room.nbytes)
        place = self.address(room)
        for each, size in zip(matrices, sizes, strict=True):
            library.song_lay_panels(ctypes.addressof(each), place)
            each.panels, place = place, place + 4 * size


def _check(given: Tensor, *shape: int) -> None:
    """Refuse what C++ would read beyond its end.

    Raises:
        ValueError: another shape.
    """
    if given.shape != shape:
        raise ValueError(f"{tuple(given.shape)} is given where {shape} is expected")


def _aligned(floats: int) -> Tensor:
    """Room that begins at a whole cache line."""
    room = torch.empty(floats + 16)
    return room[(-room.data_ptr() // 4) % 16 :]


class NativeDiffusion:
    """Velocities of patch after patch; :meth:`begin` each patch, then call :meth:`velocity` for its steps.

    Args:
        diffusion: its weights, on a CPU.
        copied_bytes: matrices that take at most this much together, as they are multiplied, are copied in the order in
            which they are read; larger ones are laid so at each step, which takes a quarter more time and no memory.
        half: multiply the layers' matrices in half precision where :func:`multiplies_halves`: numbers have 11 bits,
            sums are float32 from run to run. What goes from layer to layer, norms and attention stay float32.
    """

    def __init__(self, diffusion: DiffusionTransformer, *, copied_bytes: int, half: bool = False) -> None:
        self.diffusion, self.config = diffusion, diffusion.config
        config, weights = self.config, _Weights()
        self._weights, self._library = weights, _library()
        self._layers = (_DiffusionLayer * config.dit_depth)()
        matrices: list[_Matrix] = []
        for to, layer in zip(self._layers, diffusion.diffusion_layers(), strict=True):
            weight = effective_weight(layer.query_key_value).detach()
            weights.matrix(to.query, weight[: config.prior_width])
            weights.matrix(to.key_value, weight[config.prior_width :])
            weights.linear(to.output, layer.attention_output)
            weights.linear(to.gate_up, layer.mlp.gate_up, gated=True)
            weights.linear(to.down, layer.mlp.down)
            for prefix, norm in (("norm", layer.attention_norm), ("mlp_norm", layer.mlp_norm)):
                setattr(to, f"{prefix}_weight", weights.vector(norm.weight))
                setattr(to, f"{prefix}_bias", weights.vector(norm.bias))
            matrices += [to.key_value, to.query, to.output, to.gate_up, to.down]
        self.prepended = config.time_conditioning == "prepend"
        self.positions = 1 + 3 * config.patch_size + self.prepended
        self._step = step = _Diffusion(
            layers=self._layers,
            depth=config.dit_depth,
            positions=self.positions,
            own=config.patch_size,
            latent=config.latent_width,
            width=config.prior_width,
            heads=config.heads,
            hidden=config.mlp_width,
            rotated=config.rotated,
            prepended=self.prepended,
            table=weights.address(diffusion.rotary(self.positions, torch.device("cpu"))),
        )
        weights.linear(step.project_in, diffusion.project_in)
        weights.linear(step.project_out, diffusion.project_out)
        self.half = half and multiplies_halves()
        if self.half:
            weights.scales(matrices)
        itemsize = 2 if self.half else 4
        if itemsize * sum(each.outputs * each.inputs * (1 + each.gated) for each in matrices) <= copied_bytes:
            weights.panels([*matrices, step.project_in, step.project_out])
        self._address = ctypes.addressof(step)
        self._moments: dict[float, tuple[Tensor, Tensor | None]] = {}
        self._rooms = self._known = torch.empty(0)

    def _moment(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """What depends on ``t`` alone, computed at the first step of the run that has it: the time embedded ``[W]``
        and for ``adaln`` ``[dit_depth, 6, W]``: 1 + scale, shift and gate of attention, then of the feed-forward."""
        found = self._moments.get(float(t))
        if found is None:
            time = self.diffusion.time(t.to("cpu")[None]).float()
            gates = []
            for layer in self.diffusion.diffusion_layers():
                if layer.modulation is not None:
                    six = F.linear(F.silu(time), effective_weight(layer.modulation).float())[0].chunk(6)
                    kept = torch.sigmoid(1 - six[2]), torch.sigmoid(1 - six[5])
                    gates.append(torch.stack([1 + six[0], six[1], kept[0], 1 + six[3], six[4], kept[1]]))
            found = self._moments[float(t)] = time[0].contiguous(), torch.stack(gates) if gates else None
        return found

    def begin(self, known: Tensor) -> None:
        """Take what does not change over the steps of a patch, ``[N, 1 + 2 patch_size, W]``.

        Raises:
            ValueError: another shape.
        """
        _check(known, len(known), 1 + 2 * self.config.patch_size, self.config.prior_width)
        step, threads = self._step, torch.get_num_threads()
        if (step.songs, step.threads) != (len(known), threads):
            step.songs, step.threads = len(known), threads
            kept = self._library.song_diffusion_kept(self._address)
            self._rooms = _aligned(kept + 16 + self._library.song_diffusion_scratch(self._address))
            step.first = self._rooms.data_ptr()
            step.scratch = step.first + (kept + 15) // 16 * 64
        step.blind = self._blind_from(known)
        self._known = known.float().contiguous()
        step.known = self._known.data_ptr()
        self._library.song_diffusion_begin(self._address)

    def _blind_from(self, known: Tensor) -> int:
        """The first of the songs at the end whose hidden vector and sketch are zeros, as guidance has them; none where
        the first layer makes something of zeros."""
        first = next(self.diffusion.diffusion_layers())
        if not self.prepended or bool(first.attention_norm.bias.any()):
            return len(known)
        told = known[:, : 1 + self.config.patch_size].flatten(1).any(1)
        return int(told.nonzero().max()) + 1 if bool(told.any()) else 0

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [N, patch_size, latent_width]`` at the time ``t`` (a scalar) → velocity like x, float32.

        The rows are those of the patch that was begun.

        Raises:
            ValueError: they are not.
        """
        step, x = self._step, x.float().contiguous()
        _check(x, step.songs, self.config.patch_size, self.config.latent_width)
        if not len(x):
            return x
        time, gates = self._moment(t)
        made = torch.empty_like(x)
        step.time, step.gates = time.data_ptr(), None if gates is None else gates.data_ptr()
        step.x, step.velocity = x.data_ptr(), made.data_ptr()
        self._library.song_diffusion_velocity(self._address)
        return made


class NativeLanguage:
    """Single positions of the language model with one cache, which torch's steps of several positions share.

    Args:
        model: its weights, on a CPU.
        cache: of :meth:`LanguageModel.begin`.
    """

    def __init__(self, model: LanguageModel, cache: Cache) -> None:
        config, weights = model.config, _Weights()
        self._weights, self._cache, self._library = weights, cache, _library()
        self._layers = (_LanguageLayer * config.prior_depth)()
        for index, (to, layer) in enumerate(zip(self._layers, model.language_layers(), strict=True)):
            weights.linear(to.query_key_value, layer.query_key_value)
            weights.linear(to.output, layer.attention_output)
            weights.linear(to.gate_up, layer.mlp.gate_up, gated=True)
            weights.linear(to.down, layer.mlp.down)
            to.norm, to.mlp_norm = weights.vector(layer.attention_norm.weight), weights.vector(layer.mlp_norm.weight)
            to.prefix_keys = self._each([keys.transpose(-1, -2) for keys in cache.prefix_keys[index]])
            to.prefix_values = self._each(cache.prefix_values[index])
        weights.large_pages()
        self._step = _Language(
            layers=self._layers,
            norm=weights.vector(model.norm.weight),
            depth=config.prior_depth,
            width=config.prior_width,
            heads=config.heads,
            hidden=config.mlp_width,
            entry_kind=_KINDS[cache.keys.dtype],
            prefix=cache.prefix_keys[0][0].shape[1],
            capacity=cache.keys.shape[3],
        )
        self._address = ctypes.addressof(self._step)
        self._bound: Tensor | None = None
        self._run = self._scratch = torch.empty(0)

    def _each(self, parts: Any) -> int:
        """The address of the addresses of what each condition has, in one piece."""
        addresses = [self._weights.address(part.contiguous()) for part in parts]
        return self._weights.address(torch.tensor(addresses, dtype=torch.int64))

    def _bind(self) -> None:
        """Take the addresses of the songs' keys and values, which are others when songs have left."""
        cache, step = self._cache, self._step
        for index, to in enumerate(self._layers):
            to.keys, to.values = cache.keys[index].data_ptr(), cache.values[index].data_ptr()
        self._run = torch.tensor(cache.runs, dtype=torch.int32).view(-1, 3)
        step.run, step.runs, step.rows = self._run.data_ptr(), len(cache.runs), len(cache.rows)
        step.threads = torch.get_num_threads()
        self._scratch = _aligned(self._library.song_language_scratch(self._address))
        step.scratch = self._scratch.data_ptr()
        self._bound = cache.keys

    def step(self, x: Tensor) -> Tensor:
        """The next position: ``x [rows, 1, W]`` → like x; the cache remembers it.

        Raises:
            ValueError: other rows than those of the cache.
        """
        cache, step = self._cache, self._step
        _check(x, len(cache.rows), 1, step.width)
        if self._bound is not cache.keys or step.threads != torch.get_num_threads():
            self._bind()
        made = x.float().clone(memory_format=torch.contiguous_format)
        table = cache.table[:, cache.length].contiguous()
        step.position, step.table, step.x = cache.length, table.data_ptr(), made.data_ptr()
        self._library.song_language_step(self._address)
        cache.length += 1
        return made.to(x.dtype)


class NativeMaps:
    """Two linear maps with SiLU between, for a few rows: the classifier of tokens, the encoder of a patch.

    Args:
        hidden, output: the maps, on a CPU.
    """

    def __init__(self, hidden: Linear, output: Linear) -> None:
        self._weights, self._library = _Weights(), _library()
        self._step = _Maps()
        self._weights.linear(self._step.hidden, hidden)
        self._weights.linear(self._step.output, output)
        self._weights.large_pages()
        self._address = ctypes.addressof(self._step)
        self._scratch = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """``[rows, inputs]`` → ``[rows, outputs]``, float32.

        Raises:
            ValueError: another number of inputs.
        """
        step, x = self._step, x.float().contiguous()
        _check(x, len(x), step.hidden.inputs)
        if (step.rows, step.threads) != (len(x), torch.get_num_threads()):
            step.rows, step.threads = len(x), torch.get_num_threads()
            self._scratch = _aligned(self._library.song_maps_scratch(self._address))
            step.scratch = self._scratch.data_ptr()
        made = torch.empty(len(x), step.output.outputs)
        step.x, step.made = x.data_ptr(), made.data_ptr()
        self._library.song_map(self._address)
        return made
