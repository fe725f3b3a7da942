"""Published files: fetched once into a cache folder, whole or not at all, and looked over again before they are used.

A download is written beside its place. When it breaks off it goes on from there, in the same process or in a later
one, provided that the server still has the same file (``ETag`` or ``Last-Modified``). It takes its place when it has
the size that the server stated, the MD5 that the server stated (some do), the weights that it must hold
(:mod:`songbloom.published.jukebox.files`) and, where ``NAME.sha256`` lies beside it, that checksum. Otherwise such a
file is written then, so that later damage is noticed: each process looks a file over before its first use. A comment in
it says of what size and time of change the file was when it was last found to be right.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tqdm import tqdm

from songbloom.distributed import gather_objects, say, world
from songbloom.errors import UserError
from songbloom.files import write_text
from songbloom.published.jukebox.files import smallest_size
from songbloom.published.songbloom import files as hub

REMOTE_PREFIX = "https://openaipublic.azureedge.net/"
CACHE, MIRROR = "SONGBLOOM_CACHE", "SONGBLOOM_MIRROR"  # environment variables
ATTEMPTS = 4  # in a row that bring no byte more, before a download is given up
PAUSE = 1.0  # seconds before the second attempt; twice as many before each further one
_CHUNK = 1 << 20  # bytes read at once
_TIMEOUT = 60  # seconds without a byte
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_folder: list[Path] = []  # what use_cache_folder was told last
_checked: dict[Path, tuple[int, int]] = {}  # files that this process, or a rank of it, has looked over


# --- where files are ------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloads are kept: :func:`use_cache_folder`'s, or ``$SONGBLOOM_CACHE``, or ``~/.cache/songbloom``."""
    return _folder[-1] if _folder else Path(os.environ.get(CACHE) or Path.home() / ".cache" / "songbloom")


def use_cache_folder(folder: str | Path) -> None:
    """Keep downloads of this process in ``folder``; an empty name changes nothing."""
    if str(folder):
        _folder[:] = [Path(folder).expanduser()]


def is_address(path: str) -> bool:
    """Whether ``path`` is the address of a published file, or names one of the hub."""
    return path.startswith(REMOTE_PREFIX) or hub.is_hub(path)


def target_of(path: str) -> Path:
    """Where the file of an address is kept, or ``path`` itself if it is none.

    Raises:
        UserError: an address that names no file.
    """
    if hub.is_hub(path):
        return hub.place_of(path, cache_folder())
    if not is_address(path):
        return Path(path)
    relative = PurePosixPath(path.removeprefix(REMOTE_PREFIX))
    if ".." in relative.parts or not relative.name:
        raise UserError(f"{path}: not the address of a file")
    return cache_folder() / relative


def checksum_beside(path: Path) -> Path:
    """The file with the SHA-256 of ``path``, as ``sha256sum`` writes and reads it."""
    return path.with_name(path.name + ".sha256")


def was_checked(path: Path) -> bool:
    """Whether this process has fetched or looked over ``path``, and it has not changed since."""
    return path in _checked and path.is_file() and _checked[path] == _stamp(path)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# --- fetching -------------------------------------------------------------------------------------------------------


def fetch(path: str) -> Path:
    """The local file of ``path``; an address under :data:`REMOTE_PREFIX` is downloaded unless it is there already.

    One rank of each host downloads, or looks over what is there, while the others wait.

    Raises:
        UserError: another address, a download that failed, or a file that is damaged; every rank raises it.
    """
    if hub.is_hub(path):
        return hub.fetch(path, cache_folder())
    if not is_address(path):
        if "://" in path:
            raise UserError(f"{path}: only addresses under {REMOTE_PREFIX} are downloaded; give a file instead")
        return Path(path)
    target = target_of(path)
    problem = None
    if world().local_rank == 0 and not was_checked(target):
        try:
            _obtain(path, target)
        except UserError as error:
            problem = str(error)
        except (OSError, http.client.HTTPException) as error:  # a URLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            advice = "free space or choose another --cache_dir" if _of_the_disk(error) else "try again"
            problem = f"{path}: download failed ({reason}); {advice}, or put the file at {target}"
    problems = [each for each in gather_objects(problem) if each]
    if problems:
        raise UserError(problems[0])
    if checksum_beside(target).is_file():
        with contextlib.suppress(OSError):  # should it be gone again, loading tells
            _checked[target] = _stamp(target)
    return target


def _obtain(address: str, target: Path) -> None:
    """Download ``address``, or look over the file that is there; other processes that want it wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target) as alone:
        if target.is_file():
            look_over(target)
            return
        _download(address, target, alone)
    _checked[target] = _stamp(target)


def look_over(path: Path) -> None:
    """Compare a file with the checksum beside it, if there is one.

    Raises:
        UserError: it is not what was fetched.
    """
    beside = checksum_beside(path)
    if not beside.is_file() or was_checked(path):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file, _bar(path.stat().st_size, 0, f"checking {path.name}") as bar:
        _hash(file, digest, bar)
    if digest.hexdigest() != _pinned(path):
        raise UserError(
            f"{path}: is damaged (its SHA-256 is not the one in {beside.name}); delete the file to download it again"
        )
    _checked[path] = _stamp(path)
    with contextlib.suppress(OSError):  # a cache that this process may not write
        _remember(path, path, digest.hexdigest())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; read from beside a download that has not changed since it was found to be right.

    Raises:
        OSError: it cannot be read.
    """
    beside = checksum_beside(path)
    with contextlib.suppress(OSError, UnicodeDecodeError, UserError):
        same = was_checked(path) or _remembrance(path) in beside.read_text(encoding="utf-8").splitlines()
        if same and (pinned := _pinned(path)):
            return pinned
    digest = hashlib.sha256()
    with path.open("rb") as file, _bar(path.stat().st_size, 0, f"reading {path.name}") as bar:
        _hash(file, digest, bar)
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """32 digits that stand for what a file holds; copying or touching it does not change them.

    Of an archive they are of the checksums that the archive keeps, so that little is read; of another file they are its
    SHA-256's (:func:`sha256_of`).

    Raises:
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return sha256_of(path)[:32]
    digest = hashlib.blake2b(digest_size=16)
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            name = record.filename.partition("/")[2]  # before it: what the file was called when written
            digest.update(f"{name}\0{record.CRC}\0{record.file_size}\0".encode())
    return digest.hexdigest()


def content_key(path: Path) -> str:
    """As :func:`content_digest`, without ever reading a file from end to end: of one without checksums it is where the
    file lies, its size and its time of change."""
    if zipfile.is_zipfile(path):
        return content_digest(path)
    if was_checked(path) and (pinned := _pinned(path)):
        return pinned
    return f"{path.resolve()} {_stamp(path)}"


def check_together(paths: Iterable[Path], look: Callable[[Path], object]) -> None:
    """Look files over on one rank of each host, so that the others need not; all ranks call it together.

    Args:
        paths: the same on all ranks.
        look: reads a file from end to end, and raises a :class:`UserError` for one that is damaged.

    Raises:
        UserError: a file is damaged; every rank raises it.
    """
    paths, problem = list(paths), None
    if world().local_rank == 0:
        try:
            for path in paths:
                if not was_checked(path):
                    look(path)
        except UserError as error:
            problem = str(error)
    if problems := [each for each in gather_objects(problem) if each]:
        raise UserError(problems[0])
    for path in paths:
        with contextlib.suppress(OSError):  # should it be gone by now, loading tells
            _checked[path] = _stamp(path)


def _remembrance(path: Path) -> str:
    """The comment beside a file that was right when it had this size and this time of change."""
    size, changed = _stamp(path)
    return f"# right when it had {size} bytes and was changed at {changed} ns"


def _remember(path: Path, file: Path, digest: str) -> None:
    """Write the checksum of ``path``, which ``file`` has, beside it; what a person wrote there stays."""
    beside = checksum_beside(path)
    lines = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else [f"{digest}  {path.name}"]
    kept = [line for line in lines if not line.startswith("# right when")]
    if (comment := _remembrance(file)) not in lines:
        write_text(beside, "".join(f"{line}\n" for line in [*kept, comment]))


def _pinned(path: Path) -> str:
    """The checksum that ``path`` must have; empty where nobody says."""
    try:
        words = checksum_beside(path).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return ""
    if not words or len(words[0]) != 64:
        raise UserError(f"{checksum_beside(path)}: is no SHA-256 of 64 digits; correct or delete it")
    return words[0].lower()


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[bool]:
    """Whether other processes are kept from ``target`` within; where the file system has no locks they are not."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{target.name}: another process is fetching it; waiting for that")
                fcntl.flock(lock, fcntl.LOCK_EX)
        except (ImportError, OSError):  # Windows; some network file systems
            yield False
            return
        yield True


# --- downloading ----------------------------------------------------------------------------------------------------


class _BrokenOff(OSError):
    """The connection ended before the file did."""


def _download(address: str, target: Path, alone: bool) -> None:
    """Download beside ``target`` and rename; what an earlier try left is continued.

    Raises:
        OSError: the network or the disk failed.
        UserError: there is no room for it, or what came is not the file.
    """
    mine = "" if alone else f".{socket.gethostname()}.{os.getpid()}"
    partial = target.with_name(f".{target.name}{mine}.partial")
    mirror = os.environ.get(MIRROR, "")
    source = mirror.rstrip("/") + "/" + address.removeprefix(REMOTE_PREFIX) if mirror else address
    idle = 0
    while True:
        before = _size(partial)
        try:
            digest, md5 = _attempt(source, partial, target.name)
            break
        except (OSError, http.client.HTTPException) as error:
            idle = 0 if _size(partial) > before else idle + 1
            if idle >= ATTEMPTS or not _worth_another(error):
                raise
            time.sleep(PAUSE * 2 ** max(idle - 1, 0))
    _accept(address, target, partial, digest, md5)


def _worth_another(error: Exception) -> bool:
    """Whether trying again may help: not where the server refuses, or the disk."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return not _of_the_disk(error)


def _of_the_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def _attempt(source: str, partial: Path, name: str) -> tuple[str, str]:
    """One connection: bring ``partial`` to its end; its SHA-256, and its MD5 if the server stated another ("" if not).

    Raises:
        OSError, HTTPException: it did not come to its end.
    """
    noted = _noted(partial)
    have = 0 if noted is None else _size(partial)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if have and noted and noted["validator"]:
        headers["If-Range"] = noted["validator"]
    try:
        response = urllib.request.urlopen(urllib.request.Request(source, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing lies beyond what is there
            raise
        return _at_the_end(source, partial, name, have, error.headers)
    with response:
        begins, total = _span(response, have)
        if begins and noted and noted["size"] != total:
            _forget(partial)
            raise _BrokenOff(f"the file had {noted['size']} bytes, and has {total} now")
        have = begins  # 0 where the server sends the whole file, because it has no ranges or another file by now
        _room_for(partial, None if total is None else total - have, name)
        sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        stated = _stated_md5(response) or (noted["md5"] if noted and have else "")
        with partial.open("r+b" if have else "w+b") as file, _bar(total, 0, name) as bar:
            _note(partial, response.headers, total, stated)
            _hash(file, sha, bar, md5)
            _copy(response, file, bar, sha, md5)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and (size := _size(partial)) != total:
            raise _BrokenOff(f"got {size} of {total} bytes")
    return sha.hexdigest(), stated if stated and stated != md5.hexdigest() else ""


def _at_the_end(source: str, partial: Path, name: str, have: int, headers: Any) -> tuple[str, str]:
    """What :func:`_attempt` gives when the server has no more: the file is whole, or it is no good beginning."""
    if headers.get("Content-Range", "").rpartition("/")[2] != str(have):
        _forget(partial)
        return _attempt(source, partial, name)
    stated = (_noted(partial) or {"md5": ""})["md5"]
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with partial.open("rb") as file, _bar(have, 0, name) as bar:
        _hash(file, sha, bar, md5)
    return sha.hexdigest(), stated if stated and stated != md5.hexdigest() else ""


def _span(response: Any, have: int) -> tuple[int, int | None]:
    """Where the bytes of a response begin, and how many the whole file has."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, int(length) if length else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    begins = int(span.partition("-")[0]) if span else have
    if begins != have:
        raise _BrokenOff(f"asked for what follows byte {have}, and the server sent what follows byte {begins}")
    if total.isdigit():
        return begins, int(total)
    return begins, begins + int(length) if length else None


def _copy(response: Any, file: BinaryIO, bar: Any, *digests: Any) -> None:
    """All of ``response`` behind what ``file`` has."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            raise
        if not chunk:
            return
        file.write(chunk)
        for digest in digests:
            digest.update(chunk)
        bar.update(len(chunk))


def _hash(file: BinaryIO, digest: Any, bar: Any, *others: Any) -> None:
    """Read ``file`` from where it stands to its end."""
    while chunk := file.read(_CHUNK):
        for each in (digest, *others):
            each.update(chunk)
        bar.update(len(chunk))


def _accept(address: str, target: Path, partial: Path, digest: str, wrong_md5: str) -> None:
    """Give a download that is what it should be its place, its checksum beside it.

    Raises:
        UserError: it is not; it is thrown away.
    """
    problem, size, smallest = "", _size(partial), smallest_size(address.removeprefix(REMOTE_PREFIX))
    pinned = _pinned(target)
    if wrong_md5:
        problem = f"its MD5 is not {wrong_md5}, as the server says: try again"
    elif size < smallest:
        problem = f"it has {size:,} bytes, and the weights alone are {smallest:,}: this is not the published file"
    elif pinned and digest != pinned:
        beside = checksum_beside(target)
        problem = f"its SHA-256 is {digest}, and {beside} says {pinned}: delete that if the file was published anew"
    if problem:
        _forget(partial)
        raise UserError(f"{address}: not what it should be: {problem}")
    _remember(target, partial, digest)
    partial.replace(target)
    _forget(partial)


def _room_for(partial: Path, missing: int | None, name: str) -> None:
    free = shutil.disk_usage(partial.parent).free
    if missing is not None and missing > free:
        raise OSError(
            errno.ENOSPC, f"{name} needs {missing / 1e9:.1f} GB more, and {partial.parent} has {free / 1e9:.1f} GB free"
        )


# --- what is known of a download that is not whole ------------------------------------------------------------------


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _note(partial: Path, headers: Any, total: int | None, md5: str) -> None:
    """Remember by what the server names this state of the file, and the MD5 that it stated."""
    tag = headers.get("ETag", "")
    validator = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    write_text(_notes(partial), json.dumps({"validator": validator, "size": total, "md5": md5}))


def _noted(partial: Path) -> dict[str, Any] | None:
    """What :func:`_note` wrote; None where nobody knows what the partial file is the beginning of."""
    try:
        noted = json.loads(_notes(partial).read_text(encoding="utf-8"))
        return {"validator": str(noted["validator"]), "size": noted["size"], "md5": str(noted.get("md5", ""))}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stated_md5(response: Any) -> str:
    """The MD5 of the whole file in hexadecimal, if the server states it; "" if not."""
    stated = response.headers.get("x-ms-blob-content-md5")
    if not stated and response.status == 200:
        stated = response.headers.get("Content-MD5")
    try:
        return base64.b64decode(stated, validate=True).hex() if stated else ""
    except ValueError:
        return ""


def _bar(total: int | None, initial: int, name: str) -> Any:
    """A progress bar on rank 0, for what takes a while."""
    quiet = not world().is_main or (total is not None and total < 8 * _CHUNK)
    return tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=name, disable=quiet)
