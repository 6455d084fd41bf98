"""Files that are whole or not there: written in one go, tidied up after a kill, and one process a folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"  # in a folder that a process writes to
_PROBE = "can-it-be-written"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_guard = threading.Lock()
_PATIENCE = 0.5  # seconds: a save of another process, not a run of one
_WAYS_OUT = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "have it mounted for writing",
    errno.EACCES: "get the right to write there",
    errno.EPERM: "get the right to write there",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: "have the disk looked at",
}


@dataclass
class _Hold:
    lock: FileLock | None
    made: bool  # the folder, for this
    count: int = 0


_held: dict[Path, _Hold] = {}  # what this process holds


class FolderInUse(OSError):
    """Another process writes to the folder; the message says which."""


def sha256(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment `path` holds either all of the old content or all of the new."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what `write_atomically` left when it was killed on its way to these names.

    Only for the one process that writes them: another one's may still be under way.
    """
    parts = re.compile(rf"\.({'|'.join(map(re.escape, (_PROBE, *names)))})\.\w{{8}}")  # and what it appends
    for path in folder.iterdir():
        if parts.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """An OSError in the block is about writing to `place`, and gets a message that says so, and what can be done."""
    try:
        yield
    except FolderInUse:
        raise
    except OSError as error:
        if getattr(error, "place_named", False):  # by a block inside this one
            raise
        kind = type(error) if type(error).__module__ == "builtins" else OSError
        way = f"{out} or " if (out := _WAYS_OUT.get(error.errno or 0)) else ""
        sentence = kind(f"{place} cannot be written ({error.strerror or error}): {way}name another place")
        sentence.errno, sentence.place_named = error.errno, True
        raise sentence from None


def must_be_writable(folder: Path) -> None:
    """Try it, making the folder if need be. Raises OSError, as `writing` has it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{_PROBE}.") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """This process's to write to while the block lasts, made if need be; yields False where it was so before.

    A lock of the operating system's on a file in the folder: it ends with the process, however that ends. (On NFS it
    holds between computers where the server keeps locks; where there are none a warning says so.) Of ranks only rank 0
    may ask for it.

    Raises FolderInUse where another process holds the folder, OSError where it cannot be written.
    """
    with writing(folder), _guard:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        key = folder.resolve()
        first = key not in _held
        if first:
            _held[key] = _Hold(_locked(folder), made)
        hold = _held[key]
        hold.count += 1
    try:
        yield first
    finally:
        with _guard:
            hold.count -= 1
            if not hold.count:
                del _held[key]
                _let_go(key, hold)


def _locked(folder: Path) -> FileLock | None:
    """The lock of a folder, or None where there can be none."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.resolve() / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use: {_holder(folder / LOCK)} writes to it; let it come to its end, or name another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{folder} is on a file system without locks: see to it that no other process writes there", stacklevel=5
        )
        return None
    with contextlib.suppress(OSError):  # for the message to whoever comes next
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def _let_go(folder: Path, hold: _Hold) -> None:
    if hold.lock is not None:
        # Removed while it is locked: who has opened it before finds it gone, and makes a new one.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        hold.lock.release()
    if hold.made:
        with contextlib.suppress(OSError):  # not empty, as it should be
            folder.rmdir()


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return lock.read_text().strip() or "another process"
    return "another process"
