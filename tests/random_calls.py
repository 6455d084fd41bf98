"""Calls of public functions in which one argument is junk: what they may do, for `test_random_calls` and its soak.

Every function here has a way to be called that works. In each call one of its arguments is replaced by something that
nobody would give it, or hardly. It may take that; or it raises a TypeError, ValueError or OSError that names the
argument. Nothing else, and nothing that takes long.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import expect, knobs, methods, models, optim
from gsm_lab.data import Batches, fetch
from gsm_lab.knobs import KNOBS
from tests.random_figure_calls import FIGURE_CALLS, closed
from tests.random_inputs import (
    EXTREME,
    SMALL,
    Calls,
    Made,
    data,
    figure,
    folder,
    model,
    optimizer,
    run,
    saved,
    steps_on,
)
from tests.random_study_calls import STUDY_CALLS

ALLOWED = (TypeError, ValueError, OSError)
_OF_PYTHON = re.compile("unexpected keyword argument|positional argument|multiple values|keywords must be strings")
OF_OPTIM = ("GSM", "cut(", "keep_masks", "param_groups", "prunable", "budget", "top_q")


def knob_calls() -> Calls:
    found: Calls = {}
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


def _cut_with(optimizer: Any) -> None:
    """The model that the optimizer trains, if it is one."""
    whole = model()
    if isinstance(optimizer, gl.GSM):
        optimizer = gl.GSM(gl.param_groups(whole), compression=4.0)
    gl.cut(whole, optimizer=optimizer)


def _active(p: Any) -> Any:
    own = optimizer()
    return own.active(own.param_groups[0]["params"][0] if isinstance(p, torch.nn.Parameter) else p)


def method_calls() -> Calls:
    """The options of every rival."""
    found: Calls = {}
    for method in methods.METHODS:
        for knob in methods.kind(method).options:
            call = lambda method=method, **kw: methods.build(method, model=model(), data=data(), **SMALL | kw)  # noqa: E731
            found[f"build({method!r}, {knob.name}=)"] = (call, {knob.name: knob.default})
    return found


CALLS: Calls = {
    **knob_calls(),
    **method_calls(),
    **STUDY_CALLS,
    **FIGURE_CALLS,
    "Run": (
        lambda **kw: gl.Run(**SMALL, **kw),
        {
            "model": Made(model), "data": data(), "loss": F.cross_entropy, "metric": F.cross_entropy, "output": None,
            "include": None, "exclude": None,
        },
    ),
    "Run.step": (lambda n: run().step(n), {"n": 1}),
    "Run.train": (lambda **kw: run().train(**kw), {"epochs": 0.2, "progress": False}),
    "Run.pretrain": (lambda most: gl.Run(model(), data(), **SMALL).pretrain(most), {"most": 2}),
    "Run.evaluate": (lambda cut: run().evaluate(cut=cut), {"cut": False}),
    "Run.save": (lambda folder: run().save(folder), {"folder": None}),
    "Run.resume": (
        gl.Run.resume,
        {"folder": None, "model": Made(model), "data": data(), "loss": F.cross_entropy, "output": None},
    ),
    "reset(model=)": (lambda model: run().reset(model=model), {"model": "lenet300"}),
    "reset(data=)": (lambda data: run().reset(model="lenet300", data=data), {"data": "digits"}),
    "load": (gl.load, {"name": "digits", "root": "/nowhere"}),
    "Dataset": (
        gl.Dataset,
        {
            "train_x": data().train_x, "train_y": data().train_y, "test_x": data().test_x, "test_y": data().test_y,
            "name": "mine",
        },
    ),
    "Metric": (
        gl.Metric,
        {
            "name": "loss", "fn": F.cross_entropy, "higher_is_better": False, "unit": "nat", "percent": False,
            "tolerance": 0.01,
        },
    ),
    "Dataset.validation": (lambda **kw: data().validation(**kw), {"n": 5, "seed": 0}),
    "knobs.knob": (knobs.knob, {"name": "lr"}),
    "knobs.table": (knobs.table, {"names": ["lr"]}),
    **{
        f"knobs.{one.__name__}": (one, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3})
        for one in (knobs.half_life, knobs.oscillates)
    },
    "Batches": (Batches, {"dataset": data(), "batch_size": 8, "seed": 0}),
    "fetch": (fetch, {"name": "digits", "root": "/nowhere"}),
    "models.copied": (models.copied, {"model": Made(model)}),
    "models.resnet56": (models.resnet56, {"shape": (1, 8, 8), "classes": 3, "mean": 0.1, "std": 0.3}),
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
    "GSM(lr=)": (lambda lr: gl.GSM(gl.param_groups(model()), lr=lr), {"lr": 0.1}),
    "GSM.active": (_active, {"p": Made(lambda: next(model().parameters()))}),
    "param_groups": (gl.param_groups, {"model": Made(model), "include": None, "exclude": "2"}),
    "prunable": (models.prunable, {"model": Made(model), "include": None, "exclude": "2"}),
    "budget": (optim.budget, {"weights": 100, "compression": 4.0}),
    "budget(nonzeros=)": (lambda nonzeros: optim.budget(100, nonzeros=nonzeros), {"nonzeros": 5}),
    "top_q": (optim.top_q, {"metric": np.ones(9, np.float32), "q": 2}),
    "cut(model=)": (
        lambda **kw: gl.cut(**kw, nonzeros=4), {"model": Made(model), "include": None, "exclude": None},
    ),
    "cut(optimizer=)": (_cut_with, {"optimizer": Made(optimizer)}),
    "cut(compression=)": (lambda compression: gl.cut(model(), compression=compression), {"compression": 4.0}),
    "cut(nonzeros=)": (lambda nonzeros: gl.cut(model(), nonzeros=nonzeros), {"nonzeros": 4}),
    "keep_masks(model=)": (
        lambda **kw: optim.keep_masks(**kw, nonzeros=4), {"model": Made(model), "include": None, "exclude": None},
    ),
    "keep_masks": (lambda nonzeros: optim.keep_masks(model(), nonzeros=nonzeros), {"nonzeros": 4}),
    "methods.kind": (methods.kind, {"method": "dns"}),
    "methods.build": (lambda method: methods.build(method, model=model(), data=data(), **SMALL), {"method": "dns"}),
    "methods.build(compression=)": (
        lambda compression: methods.build("dns", model=model(), data=data(), **SMALL | {"compression": compression}),
        {"compression": 4.0},
    ),
    "methods.prune": (
        lambda **kw: methods.prune(**kw, **SMALL),
        {"method": "dns", "progress": False, "model": Made(model), "data": data()},
    ),
    "methods.finish": (methods.finish, {"run": Made(run)}),
    "methods.weights": (methods.weights, {"run": Made(steps_on)}),
    "models.build": (
        models.build,
        {"name": "lenet300", "shape": (1, 4, 4), "classes": 3, "mean": 0.1, "std": 0.3, "seed": 0},
    ),
    "models.lenet300": (models.lenet300, {"shape": (1, 4, 4), "classes": 3, "mean": 0.1, "std": 0.3}),
    "models.lenet5": (models.lenet5, {"shape": (1, 28, 28), "classes": 3, "mean": 0.1, "std": 0.3}),
}  # fmt: skip

calls = st.sampled_from([(name, argument) for name, (_, valid) in CALLS.items() for argument in valid])


# what an argument goes by in an error, where not by its name; and the calls that are refused, the last thing they do
OTHER_WORDS = {
    ("knobs.knob", "name"): "there is no knob",
    ("knobs.table", "names"): "there is no knob",
    ("models.build", "name"): "model must be",
    ("Playground.load_state", "line"): "a state is one line",
    ("cut(optimizer=)", "optimizer"): "exactly one of compression",
    ("GSM(lr=)", "lr"): "learning rate",
    ("explore", "draw"): "is an invalid keyword argument for",
}
OF_DEFAULTS = {("zero_out_speed(run)", "run")}  # settings, too: without any of them the run is one that takes a minute
REFUSED = {
    "local_gradients": "timeout must be", "with_hook": "timeout must be", "reproduce": "cannot be written",
    "fetch": "comes with scikit-learn",
}  # fmt: skip


def called(name: str, **replaced: Any) -> Any:
    """Call it with what works, but for what is replaced. Raises what it raises."""
    function, valid = CALLS[name]
    arguments = {k: v.make() if isinstance(v, Made) else v for k, v in (valid | replaced).items()}
    if "folder" in valid and arguments["folder"] is None and "folder" not in replaced:
        arguments["folder"] = saved() if name == "Run.resume" else Path(folder()) / "other"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(**arguments)


def complaint(name: str, argument: str, value: Any) -> str:
    """What is wrong with what this call does; "" where nothing is."""
    if any(value is one for one in EXTREME) and name.startswith(OF_OPTIM):
        return ""  # the optimizer stands for itself, and prints what it is given
    if isinstance(value, dict) and not value and (name, argument) in OF_DEFAULTS | {(name, "settings")}:
        return ""  # asks for LeNet-300-100 on the digits
    if isinstance(value, str | Path) and argument in ("folder", "root", "out") and str(value).strip():
        value = (closed() if argument == "out" else Path(folder()) / "new") / str(value)  # not here
    try:
        called(name, **{argument: value})
    except AssertionError as error:
        if name.startswith("expect") and "If the change is meant" in str(error):
            return ""
        return f"{name}({argument}=...): AssertionError: {error}"
    except ALLOWED as error:
        said = str(error)
        if len(said) > 1000 and argument not in ("folder", "out") and not isinstance(error, OSError):  # which name it
            return f"{name}({argument}=...): an error of {len(said):,} characters"
        words = (argument, OTHER_WORDS.get((name, argument), argument), REFUSED.get(name, argument))
        words += ("there is no knob",) if argument == "settings" or name.startswith("zero_out_speed") else ()
        named = any(word in said for word in words) or (argument in ("folder", "out") and str(value) in said)
        if not (named or isinstance(error, OSError) or _OF_PYTHON.search(said)):
            return f"{name}({argument}=...): {type(error).__name__} does not name it: {said[:200]}"
    except Exception as error:
        where = inspect.trace()[-1]
        return f"{name}({argument}=...): {type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}"
    return ""
