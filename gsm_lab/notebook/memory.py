"""Memory that a kernel holds and does not need, given back to the system: on Linux with glibc, nothing elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from functools import cache
from pathlib import Path

_MAPS = Path("/proc/self/smaps")
_DROP = 4  # MADV_DONTNEED
_PLACE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) .*?(/.*)?$")
_CHANGED = re.compile(r"Anonymous: +([1-9]\d*) kB$")


def give_back() -> None:
    """Give the system what was freed, some milliseconds' work, and once LLVM's instructions.

    Tensors of a moment leave holes in what the C library holds. LLVM, with which numba puts functions into memory, is
    60 MB, and asked nothing afterwards; should it be, the system has it in its cache, or in its file.
    """
    if (trim := getattr(_libc(), "malloc_trim", None)) is not None:
        trim(0)
    if "llvmlite.binding" in sys.modules:
        _drop_instructions("libllvmlite")


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


@cache
def _drop_instructions(library: str) -> None:
    """Forget what is as in a library's file; who needs a page of it again has it read."""
    with contextlib.suppress(OSError, AttributeError):
        advise = _libc().madvise
        advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for start, end in instructions(_MAPS.read_text(), library):
            advise(start, end - start, _DROP)


def instructions(maps: str, library: str) -> list[tuple[int, int]]:
    """Where the instructions of a library lie, [start, end), in Linux's list of what a process has in memory.

    Without places where a page is not as in the file any more.
    """
    found: list[tuple[int, int]] = []
    ours = False
    for line in maps.splitlines():
        if place := _PLACE.match(line):
            start, end, may, file = place.groups()
            ours = may == "r-xp" and Path(file or "").name.startswith(library)
            if ours:
                found.append((int(start, 16), int(end, 16)))
        elif ours and _CHANGED.match(line):
            found.pop()
            ours = False
    return found
