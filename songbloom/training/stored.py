"""Checkpoint files whose tensors stay on disk until they are asked for, one at a time.

Files that torch writes today (zip archives) are mapped into memory: every process of a machine that maps one shares its
pages, and a tensor of the right type and place needs no memory of its own. Files of before torch 1.6, such as those of
the Jukebox release, are one long stream in which numbers are not even aligned; of these only the description is read,
and each tensor's numbers when it is asked for.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from songbloom.transformer.layers import Linear

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how a stream of torch before 1.6 begins
_DONTNEED = 4  # of madvise(2)


class CutShort(ValueError):
    """A file ends before its tensors do."""


class Stored:
    """A checkpoint file that is open.

    Attributes:
        content: what it holds. The tensors of a stream are on the meta device: :meth:`numbers` reads them.
        mapped: whether tensors lie in mapped pages of the file.
        adapters: how many adapters the file holds beside the weights in ``content``.
    """

    adapters = 0

    def __init__(self, content: Any, *, mapped: bool, path: Path | str = "", places: Mapping[int, Any] | None = None):
        self.content, self.mapped = content, mapped
        self._path, self._places = Path(path), dict(places or {})
        self._storages: set[int] | None = None

    def numbers(self, tensor: Tensor, room: Tensor | None = None) -> Tensor:
        """A tensor of the content, or a view of one, with its numbers on the CPU.

        Args:
            tensor: which.
            room: uint8, used for the numbers if they have to be read and fit; otherwise memory of their own is.

        Raises:
            CutShort: the file has become shorter.
        """
        if not tensor.is_meta:
            return tensor
        _, offset = self._places[_identity(tensor)]
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        count = last + 1 if tensor.numel() else 0
        size = count * tensor.itemsize
        raw = torch.empty(size, dtype=torch.uint8) if room is None or len(room) < size else room[:size]
        missing = raw.numpy().data
        with self._path.open("rb") as file:
            file.seek(offset + tensor.storage_offset() * tensor.itemsize)
            while missing:
                got = file.readinto(missing)  # less than asked for, where that is more than the system reads at once
                if not got:
                    raise CutShort("ends within a tensor")
                missing = missing[got:]
        return raw.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is one of the content or a view of one; not if it was made of them, as joined ones are."""
        if self._storages is None:
            self._storages = {_identity(each) for each in _tensors(self.content)}
        return _identity(tensor) in self._storages

    def let_go(self, tensor: Tensor) -> None:
        """Give back the memory of mapped pages that hold ``tensor``; it is read from the file again when it is used."""
        if not self.mapped or tensor.is_meta or not tensor.numel() or not self.holds(tensor):
            return  # what is in no file would be lost
        page = mmap.PAGESIZE
        storage = tensor.untyped_storage()
        start, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        start, end = -(-start // page) * page, end // page * page
        if end > start and hasattr(_libc(), "madvise"):
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _libc() -> Any:
    """The C library of this process; without ``madvise`` where there is none that can be asked (Windows)."""
    try:
        return ctypes.CDLL(None)
    except (TypeError, OSError):
        return None


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, list, tuple)):
        for each in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(each)


def is_stream(path: Path) -> bool:
    """Whether ``path`` was written by torch before 1.6, or in that way."""
    with path.open("rb") as file:
        try:
            return bool(_unpickler(file).load() == _MAGIC)
        except Exception:  # bytes that are none can make an unpickler raise anything
            return False


def open_stream(path: Path) -> Stored:
    """Read the description of such a file, without executing code.

    Raises:
        CutShort: it ends before its tensors do.
        pickle.UnpicklingError: it holds something other than plain data.
    """
    places: dict[int, tuple[Any, int]] = {}  # of each storage; it is kept, so that its identity stays its own
    by_key: dict[str, Any] = {}

    def storage_of(description: tuple[Any, ...]) -> Any:
        _, kind, key, _, count, view = description
        if view is not None:
            raise pickle.UnpicklingError("holds views of storages, which no torch since 0.4 writes")
        if key not in by_key:
            raw = torch.UntypedStorage(count * kind.dtype.itemsize, device="meta")
            by_key[key] = torch.storage.TypedStorage(wrap_storage=raw, dtype=kind.dtype, _internal=True)
        return by_key[key]

    with path.open("rb") as file:
        if _unpickler(file).load() != _MAGIC or _unpickler(file).load() != _PROTOCOL:
            raise pickle.UnpicklingError("is no stream of torch")
        if not _unpickler(file).load().get("little_endian", True):
            raise pickle.UnpicklingError("was written on a big-endian machine")
        described = _unpickler(file)
        described.persistent_load = storage_of
        content = described.load()
        keys = _unpickler(file).load()
        offset, size = file.tell(), path.stat().st_size
        for key in keys:
            storage = by_key[key]
            file.seek(offset)
            header = file.read(8)
            length = storage._untyped_storage.nbytes()
            if len(header) < 8 or offset + 8 + length > size:
                raise CutShort(f"has {size:,} bytes, and its tensors go on to byte {offset + 8 + length:,}")
            if struct.unpack("<q", header)[0] * storage.dtype.itemsize != length:
                raise CutShort("the lengths of its tensors do not agree")
            places[int(storage._untyped_storage._cdata)] = (storage, offset + 8)
            offset += 8 + length
    return Stored(content, mapped=False, path=path, places=places)


def _unpickler(file: BinaryIO) -> Any:
    """Torch's unpickler for plain data, which builds nothing but what is on its list."""
    from torch._weights_only_unpickler import Unpickler

    return Unpickler(file, encoding="utf-8")


# --- into a model ---------------------------------------------------------------------------------------------------


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    stored: Stored,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Give a module its weights, tensor by tensor, so that no more than one is in memory twice.

    A module on the meta device gets tensors of its own on ``device``: the file's mapped pages themselves where these
    are of the right type and layout and on the right device, otherwise copies. Any other module is copied into.

    Args:
        module: what to fill.
        state: a tensor for each of the module's, by its names; of the content of ``stored``, or views.
        stored: the file.
        dtype: of the matrices of linear maps in a module on the meta device; None leaves the module's. All else is
            float32, as in published half-precision priors.
        device: for a module on the meta device.
    """
    device = torch.device(device)
    room = None
    if not stored.mapped:  # one place for all that is read, since memory that is freed may not be given back at once
        largest = max((tensor.numel() * tensor.itemsize for tensor in state.values() if tensor.is_meta), default=0)
        room = torch.empty(largest, dtype=torch.uint8)
    wanted = wanted_types(module, dtype)
    for name, own in list(module.state_dict(keep_vars=True).items()):
        numbers = stored.numbers(state[name], room)
        if not own.is_meta:
            with torch.no_grad():
                own.copy_(numbers)
        else:
            prefix, _, leaf = name.rpartition(".")
            parent = module.get_submodule(prefix)
            kind = wanted[name]
            if stored.mapped and device.type == "cpu" and numbers.dtype == kind and numbers.is_contiguous():
                _put(parent, leaf, own, numbers)
                continue
            _put(parent, leaf, own, torch.empty(own.shape, dtype=kind, device=device).copy_(numbers))
        del numbers
        stored.let_go(state[name])


def wanted_types(module: nn.Module, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What :func:`fill` keeps each tensor of a module on the meta device in.

    A module may say which of its tensors are matrices of linear maps, by a method ``matrices`` that gives their names.
    """
    if hasattr(module, "matrices"):
        matrices = set(cast(Callable[[], Iterable[str]], module.matrices)())
    else:
        found = ((where, each) for where, each in module.named_modules() if isinstance(each, Linear))
        matrices = {f"{where}.weight" if where else "weight" for where, _ in found}
    return {
        name: dtype if dtype and name in matrices else own.dtype
        for name, own in module.state_dict(keep_vars=True).items()
    }


def _put(parent: nn.Module, leaf: str, own: Tensor, tensor: Tensor) -> None:
    """Replace a parameter or a buffer."""
    if isinstance(own, nn.Parameter):
        parent.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=own.requires_grad))
    else:
        parent._buffers[leaf] = tensor.detach()
