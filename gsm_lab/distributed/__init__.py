"""Runs over several processes: how these join, and where the model and its batches then are.

    with gsm_lab.distributed.joined():                    # in every process that torchrun started
        run = gsm_lab.Run(data="mnist", compression=60, placement=gsm_lab.distributed.DDP())

Names come when they are used: to import torch's own modules for it takes a while.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gsm_lab.checks import one_of

_WHERE = {"DDP": "placement", "FSDP": "fsdp", "joined": "world"}
__all__ = ["kind", *_WHERE]


def kind(name: str) -> type[Any]:
    """`DDP` for "ddp", `FSDP` for "fsdp". Raises ValueError for another name."""
    return __getattr__(one_of("parallel", name, ("ddp", "fsdp")).upper())


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
