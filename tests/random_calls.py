"""Calls of public functions in which one argument is junk: what they may do, for `test_random_calls` and its soak.

Every function here has a way to be called that works. In each call one of its arguments is replaced by something that
nobody would give it, or hardly. It may take that; or it raises a TypeError, ValueError or OSError that names the
argument. Nothing else, and nothing that takes long.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import decimal
import fractions
import inspect
import io
import re
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import expect, knobs, methods, models, optim
from gsm_lab.knobs import KNOBS
from gsm_lab.studies import taylor

ALLOWED = (TypeError, ValueError, OSError)
_OF_PYTHON = re.compile("unexpected keyword argument|positional argument|multiple values|keywords must be strings")


class Stubborn:
    """Has no repr, no length, no truth."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


def _text(value: Any) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):
        return " " * 1000


JUNK = (
    None, True, False, "", "x", "3", "nan", "lenet300", "digits", "\0", "a" * 3000, b"bytes", (), [], [[]], [1, [2]],
    {}, {"a": 1}, set(), object(), Stubborn(), int, Exception("?"), print, lambda *_: None, nested(3000), ...,
    -1, 0, 1, 2, 10**400, -(10**400), 10**5000, 0.5, -0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    -float("inf"), 1j, fractions.Fraction(1, 3), decimal.Decimal("0.1"), datetime.date(2026, 1, 1), Path("nowhere"),
    np.float32(0.25), np.float64("nan"), np.int64(3), np.bool_(True), np.array([]), np.array([1.0, 2.0]),
    np.array(["a"]), np.array([object()]), np.zeros((2, 2)), torch.tensor(0.5), torch.tensor([]), torch.tensor(True),
    torch.ones(3, 3), torch.tensor(float("nan")), torch.tensor([1 + 1j]), torch.float64, torch.device("cpu"),
    nn.Linear(2, 2), nn.Flatten(), slice(None), range(3), iter(()), NotImplemented,
)  # fmt: skip
EXTREME = tuple(
    one for one in JUNK if type(one) is Stubborn or (type(one) in (str, list, int) and len(_text(one)) > 999)
)
OF_OPTIM = ("GSM", "cut(", "keep_masks")
junk = st.one_of(
    st.sampled_from(JUNK),
    st.floats(),
    st.integers(-5, 5),
    st.text(max_size=5),
    st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=2)), max_size=3),
)


@cache
def data() -> gl.Dataset:
    drawn = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 2 * torch.randn(3, 6, generator=drawn)[y] + torch.randn(60, 6, generator=drawn)
    return gl.Dataset(x[:40], y[:40], x[40:], y[40:])


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


SMALL = {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 4.0, "evaluate_every": 5}


@cache
def _run() -> gl.Run:
    run = gl.Run(model(), data(), **SMALL)
    run.step(3)
    return run


def run() -> gl.Run:
    """A run some steps on, and one's own."""
    return copy.deepcopy(_run())


@cache
def folder() -> str:
    return tempfile.mkdtemp(prefix="gsm-lab-random-")


@cache
def saved() -> Path:
    return _run().save(Path(folder()) / "saved")


def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[1.0, 2.0, 4.0], name="line"))


def optimizer() -> gl.GSM:
    return gl.GSM(gl.param_groups(model()), lr=0.1, compression=4.0)


def knob_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for name, knob in KNOBS.items():
        if name in ("model", "data"):
            continue
        value = SMALL.get(name, knob.default)
        found[f"Run({name}=)"] = (lambda **kw: gl.Run(model(), data(), **SMALL | kw), {name: value})
        found[f"reset({name}=)"] = (lambda **kw: run().reset(**kw), {name: value})
        if knob.live:
            found[f"set({name}=)"] = (lambda **kw: _moved(run(), kw), {name: value})
    return found


def _moved(one: gl.Run, kw: dict[str, Any]) -> None:
    """What was taken must do for a step; what was refused must have changed nothing."""
    before = dict(one.knobs)
    try:
        one.set(**kw)
    except ALLOWED:
        assert one.knobs == before
        one.step()
        raise
    with contextlib.suppress(FloatingPointError):  # a rate or decay that blows up is a right result
        one.step()


# name -> (function, arguments that work)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **knob_calls(),
    "Run": (
        lambda **kw: gl.Run(**SMALL, **kw),
        {"model": model(), "data": data(), "loss": F.cross_entropy, "output": None},
    ),
    "Run.step": (lambda n: run().step(n), {"n": 1}),
    "Run.train": (lambda epochs: run().train(epochs, progress=False), {"epochs": 0.2}),
    "Run.pretrain": (lambda most: gl.Run(model(), data(), **SMALL).pretrain(most), {"most": 2}),
    "Run.evaluate": (lambda cut: run().evaluate(cut=cut), {"cut": False}),
    "Run.save": (lambda folder: run().save(folder), {"folder": None}),
    "Run.resume": (
        lambda folder, model, data, loss: gl.Run.resume(folder, model=model, data=data, loss=loss),
        {"folder": None, "model": model(), "data": data(), "loss": F.cross_entropy},
    ),
    "load": (gl.load, {"name": "digits", "root": "/nowhere"}),
    "Dataset": (
        gl.Dataset,
        {
            "train_x": data().train_x, "train_y": data().train_y, "test_x": data().test_x, "test_y": data().test_y,
            "name": "mine",
        },
    ),
    "Dataset.validation": (lambda **kw: data().validation(**kw), {"n": 5, "seed": 0}),
    "knobs.knob": (knobs.knob, {"name": "lr"}),
    "knobs.checked": (lambda lr: knobs.checked({"lr": lr}), {"lr": 0.1}),
    "knobs.resolve": (lambda momentum: knobs.resolve({"momentum": momentum}, "digits", "lenet300"), {"momentum": 0.9}),
    "expect": (expect, {"name": "it", "value": 1.0, "stored": 1.0, "tolerance": 0.1}),
    "expect.at_least": (expect.at_least, {"name": "it", "value": [1.0, 2.0], "bound": 0.5}),
    "expect.at_most": (expect.at_most, {"name": "it", "value": [1.0, 2.0], "bound": 3}),
    "expect.trace": (expect.trace, {"figure": figure(), "stored": expect.digest(figure())}),
    "expect.digest": (expect.digest, {"figure": figure()}),
    "GSM": (
        lambda **kw: gl.GSM(gl.param_groups(model()), **kw),
        {"compression": 4.0, "smoothing": 0.0},  # what SGD has besides, SGD refuses in its own words
    ),
    "GSM(nonzeros=)": (lambda nonzeros: gl.GSM(gl.param_groups(model()), nonzeros=nonzeros), {"nonzeros": 5}),
    "GSM.compression": (lambda compression: setattr(optimizer(), "compression", compression), {"compression": 5.0}),
    "GSM.nonzeros": (lambda nonzeros: setattr(optimizer(), "nonzeros", nonzeros), {"nonzeros": 5}),
    "GSM.smoothing": (lambda smoothing: setattr(optimizer(), "smoothing", smoothing), {"smoothing": 0.5}),
    "GSM.candidates": (
        lambda candidates: setattr(optimizer(), "candidates", candidates),
        {"candidates": torch.ones(72, dtype=torch.bool)},
    ),
    "cut(compression=)": (lambda compression: gl.cut(model(), compression=compression), {"compression": 4.0}),
    "cut(nonzeros=)": (lambda nonzeros: gl.cut(model(), nonzeros=nonzeros), {"nonzeros": 4}),
    "keep_masks": (lambda nonzeros: optim.keep_masks(model(), nonzeros=nonzeros), {"nonzeros": 4}),
    "methods.kind": (methods.kind, {"method": "dns"}),
    "methods.build": (lambda method: methods.build(method, model=model(), data=data(), **SMALL), {"method": "dns"}),
    "methods.prune(until=)": (
        lambda until: methods.prune("dns", progress=False, model=model(), data=data(), until=until, **SMALL),
        {"until": 0.5},
    ),
    "models.build": (
        models.build,
        {"name": "lenet300", "shape": (1, 4, 4), "classes": 3, "mean": 0.1, "std": 0.3, "seed": 0},
    ),
    "models.lenet300": (models.lenet300, {"shape": (1, 4, 4), "classes": 3, "mean": 0.1, "std": 0.3}),
    "models.lenet5": (models.lenet5, {"shape": (1, 28, 28), "classes": 3, "mean": 0.1, "std": 0.3}),
    "taylor.of_run": (lambda samples: taylor.of_run(_run(), samples=samples), {"samples": 8}),
}  # fmt: skip

calls = st.sampled_from([(name, argument) for name, (_, valid) in CALLS.items() for argument in valid])


OTHER_WORDS = {("knobs.knob", "name"): "there is no knob", ("models.build", "name"): "model must be"}


def complaint(name: str, argument: str, value: Any) -> str:
    """What is wrong with what this call does; "" where nothing is."""
    function, valid = CALLS[name]
    arguments = {k: copy.deepcopy(v) if isinstance(v, nn.Module) else v for k, v in valid.items()}
    if "folder" in arguments:
        arguments["folder"] = saved() if name == "Run.resume" else Path(folder()) / "other"
    arguments[argument] = value
    if function.__module__ == __name__ and any(value is one for one in EXTREME) and name.startswith(OF_OPTIM):
        return ""  # the optimizer stands for itself, and prints what it is given
    if isinstance(value, str | Path) and argument in ("folder", "root") and str(value).strip():
        arguments[argument] = Path(folder()) / "new" / str(value)  # not into the working directory
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except AssertionError as error:
        if name.startswith("expect") and "If the change is meant" in str(error):
            return ""
        return f"{name}({argument}=...): AssertionError: {error}"
    except ALLOWED as error:
        if len(str(error)) > 1000 and argument != "folder" and not isinstance(error, OSError):  # these name the path
            return f"{name}({argument}=...): an error of {len(str(error)):,} characters"
        named = argument in str(error) or OTHER_WORDS.get((name, argument), argument) in str(error)
        named = named or (argument == "folder" and str(arguments[argument]) in str(error))
        if not (named or isinstance(error, OSError) or _OF_PYTHON.search(str(error))):
            return f"{name}({argument}=...): {type(error).__name__} does not name it: {str(error)[:200]}"
    except Exception as error:
        where = inspect.trace()[-1]
        return f"{name}({argument}=...): {type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}"
    return ""
