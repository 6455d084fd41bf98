"""gsm_lab: prune a network while it trains, with Global Sparse Momentum SGD, and look at what happens.

    import gsm_lab as gl
    run = gl.Run(model="lenet300", data="digits", compression=60)
    run.train()
    gl.Playground(run)

The names below are the public surface. They are imported when first used, and so is torch: figures of stored results
and the command line's help need none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gsm_lab._version import __version__ as __version__

if TYPE_CHECKING:
    from gsm_lab import data, deploy, distributed, figures, knobs, methods, models, optim, studies
    from gsm_lab.data import Dataset, load
    from gsm_lab.metric import Metric
    from gsm_lab.notebook import expect
    from gsm_lab.notebook.compare import Compare
    from gsm_lab.notebook.explore import explore
    from gsm_lab.notebook.playground import Playground
    from gsm_lab.optim import GSM, cut, param_groups
    from gsm_lab.training.run import Run

_WHERE = {
    "GSM": "gsm_lab.optim",
    "cut": "gsm_lab.optim",
    "param_groups": "gsm_lab.optim",
    "Dataset": "gsm_lab.data",
    "load": "gsm_lab.data",
    "Metric": "gsm_lab.metric",
    "Run": "gsm_lab.training.run",
    "Compare": "gsm_lab.notebook.compare",
    "Playground": "gsm_lab.notebook.playground",
    "explore": "gsm_lab.notebook.explore",
}
_LIVE = ("Compare", "Playground", "explore")
_PUBLIC = ("data", "deploy", "distributed", "figures", "knobs", "methods", "models", "optim", "studies")
_MODULES = {
    **{name: f"gsm_lab.{name}" for name in _PUBLIC},
    "checkpoint": "gsm_lab.training.checkpoint",
    "expect": "gsm_lab.notebook.expect",
    "playground": "gsm_lab.notebook.playground",
}

__all__ = [
    "GSM", "Compare", "Dataset", "Metric", "Playground", "Run",
    "cut", "data", "deploy", "distributed", "expect", "explore", "figures", "knobs", "load", "methods", "models",
    "optim", "param_groups", "studies",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LIVE:  # the page reads plotly.js while torch is imported
        importlib.import_module("gsm_lab.notebook.browser").plotly_js()
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'gsm_lab' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
