"""The one place that says whether there is numba: modules that it compiles are imported here, or not at all."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def compiled(name: str) -> ModuleType | None:
    """The module of this name, whose functions numba compiles. The first import ever takes seconds, later ones half.

    None, from then on, where it cannot be had: numba is not installed, or too old or new for something else that is, or
    it finds no folder to keep compiled code in. Everything has a way without, which is slower.
    """
    try:
        return import_module(name)
    except ImportError as missing:
        if (missing.name or "").partition(".")[0] == "gsm_lab":  # a mistake of our own
            raise
    except (OSError, RuntimeError):  # the latter, "cannot cache function", where no folder can be written
        pass
    return None
