"""Numbers below 1.2e-38 are zero while a run trains, or long runs would crawl.

A passive weight halves at every half-life, and after some hundred of these it is a *denormal* number, between 1e-45 and
1.2e-38, where rounding keeps it for ever. A processor takes ten times as long for a product with such a number, and
most weights become one. No accuracy, estimate or choice of the gate can be told from zeros in their place.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from gsm_lab.training.interrupts import uninterrupted
from gsm_lab.training.threads import openmp

_held = threading.local()  # whether this thread is inside already
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# Where numpy looks first at what the smallest number is, and it is zero, it would warn of that.
np.finfo(np.float32), np.finfo(np.float64)


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Meanwhile they are, in this thread and in those that PyTorch computes with for it; afterwards as before.

    PyTorch's `set_flush_denormal` is for the calling thread and for such as it starts later. Those that have computed
    for it before are told here where their OpenMP is GNU's, as it is on Linux. (A thread of one's own that begins
    meanwhile, as one of a pool in a callback, keeps it.) Does nothing where the processor cannot.
    """
    if getattr(_held, "inside", False):
        yield
        return
    before: dict[int, bool] = {}

    def begin(_: object) -> None:
        before[threading.get_ident()] = flushed()
        torch.set_flush_denormal(True)

    def end(_: object) -> None:
        torch.set_flush_denormal(before.get(threading.get_ident(), False))

    threads = torch.get_num_threads()
    try:
        with uninterrupted():  # what is raised where C calls Python is lost
            _by_each(begin, threads)
            _held.inside = True
        yield
    finally:
        with uninterrupted():
            _held.inside = False
            if before:
                _by_each(end, threads)


def flushed() -> bool:
    """Whether denormal numbers are zero in the calling thread."""
    return not bool(torch.tensor(1e-40, dtype=torch.float32, device="cpu").mul(2))  # whatever the defaults are


def _by_each(task: object, threads: int) -> None:
    """Have this thread do something, and each of those that compute for it where there are such."""
    library = openmp() if threads > 1 else None
    if library is None:
        task(None)
    else:
        library.GOMP_parallel(_TASK(task), None, ctypes.c_uint(threads), ctypes.c_uint(0))
