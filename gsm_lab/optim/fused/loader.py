"""The one place that says whether there is numba: modules that it compiles are imported here, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

STEP = "gsm_lab.optim.fused.step"  # the whole step of GSM, on CPUs


@cache
def compiled(name: str) -> ModuleType | None:
    """The module of this name, whose functions numba compiles. The first import ever takes seconds, later ones half.

    None, from then on, where it cannot be had: numba is not installed, or too old or new for something else that is, or
    it finds no folder to keep compiled code in. Everything has a way without, which is slower.
    """
    try:
        with _blas_looked_for_later():
            return import_module(name)
    except ImportError as missing:
        if (missing.name or "").partition(".")[0] == "gsm_lab":  # a mistake of our own
            raise
    except (OSError, RuntimeError):  # the latter, "cannot cache function", where no folder can be written
        pass
    return None


@contextlib.contextmanager
def _blas_looked_for_later() -> Iterator[None]:
    """Meanwhile numba takes SciPy for granted where it is installed.

    It imports SciPy's linear algebra before it loads the first compiled function, whichever that is: half a second and
    15 MB. What calls BLAS looks for it anew when it is compiled.
    """
    try:
        from numba.np import linalg

        there, look = find_spec("scipy") is not None, linalg.ensure_blas
    except (ImportError, AttributeError):  # there is no numba, or one that does it otherwise
        yield
        return
    linalg.ensure_blas = lambda: None if there else look()
    try:
        import numba.np.arraymath  # noqa: F401  (which looks)

        yield
    finally:
        linalg.ensure_blas = look
