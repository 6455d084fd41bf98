"""The rivals of GSM, all on one interface: settings in, a `Run` out, whose model is sparse and which has its history.

    run = gl.methods.prune("dns", model="lenet300", data="mnist", compression=55.6, seed=0)
    run.evaluate(), run.history.frame()

A method is an object that a run holds: `Run(method=kind("dns")())`. Whatever takes a run (recorders, the player,
figures of the studies) takes it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from gsm_lab import checks
from gsm_lab.checks import shown
from gsm_lab.training.method import GSMMethod, Method
from gsm_lab.training.run import Run

# name -> (module, class)
METHODS: dict[str, tuple[str, str]] = {
    "gsm": ("gsm_lab.training.method", "GSMMethod"),
    "magnitude": ("gsm_lab.methods.magnitude", "Magnitude"),
    "l1": ("gsm_lab.methods.l1", "L1"),
    "admm": ("gsm_lab.methods.admm", "ADMM"),
    "dns": ("gsm_lab.methods.dns", "DNS"),
    "lobs": ("gsm_lab.methods.lobs", "LOBS"),
    "fisher": ("gsm_lab.methods.fisher", "Fisher"),
    "gates": ("gsm_lab.methods.gates", "Gates"),
    "random": ("gsm_lab.methods.random", "Random"),
}
_MODULES = (*(name for name in METHODS if name != "gsm"), "base", "tickets")
_ALL = {**METHODS, "tickets": ("gsm_lab.methods.tickets", "Ticket")}

__all__ = ["METHODS", "build", "kind", "prune", "resume", *_MODULES]


def kind(method: str) -> type[Method]:
    """The class of a method. Raises ValueError listing all of them.

    "tickets" has one, too, for `resume`: tickets are made by `tickets.ticket`.
    """
    if not isinstance(method, str) or method not in _ALL:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {shown(method)}")
    module, name = _ALL[method]
    return getattr(import_module(module), name)


def resume(folder: str | Path, *args: Any, **more: Any) -> Run:
    """The run in a folder, of whatever method; arguments and errors are those of `Run.resume`, but for `method`."""
    # GSM where there is no method of that name: who compares the names says what is wrong.
    return Run.resume(folder, *args, method=lambda name: kind(name)() if name in _ALL else GSMMethod(), **more)


def build(method: str, **settings: Any) -> Run:
    """A run of a method, not trained yet.

    Args:
        method: one of `METHODS`; "gsm" is a plain `Run`.
        settings: arguments of `Run`, and options of the method.

    Raises ValueError: an unknown method, a setting out of range, or a budget of fewer weights than there are outputs:
    some output could then not be told from the others by any weight.
    """
    if isinstance(method, str) and method == "tickets":
        raise ValueError("tickets are made by gsm_lab.methods.tickets.ticket(...)")
    run = Run(method=kind(method)(), **settings)
    if run.nonzeros < run.data.outputs:
        most = run.opt.weights / run.data.outputs
        raise ValueError(
            f"compression must leave a weight for each of the {run.data.outputs} outputs, at most {most:,.0f}, "
            f"got {run.settings.compression:g}, which leaves {run.nonzeros}"
        )
    return run


def prune(method: str, progress: bool = True, **settings: Any) -> Run:
    """Train with a method to the end of the plan, and cut: the run's model has Q weights that are not zero, or fewer.

    Arguments and errors are those of `build`. A layer that is left empty brings a warning with its name.
    """
    progress = checks.flag("progress", progress)
    run = build(method, **settings)
    run.train(progress=progress)
    finish(run)
    return run


def finish(run: Run) -> int:
    """Cut a run's model; returns how many weights stay. Warns of layers that are left empty."""
    return checks.kind("run", run, Run, "a Run").cut()


def weights(run: Run) -> list[Tensor]:
    """The prunable tensors of a run's model."""
    return list(checks.kind("run", run, Run, "a Run").tensors)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
