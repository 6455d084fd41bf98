"""The studies: plain functions from a model or run, and a batch, to tables (pandas)."""

from importlib import import_module
from types import ModuleType

__all__ = ["communication", "convergence", "network", "reactivation", "sensitivity", "taylor", "trajectories"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
