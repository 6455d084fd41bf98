"""What `random_calls` calls with: junk, and small things that work."""

from __future__ import annotations

import copy
import datetime
import decimal
import fractions
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from hypothesis import strategies as st
from torch import nn

import gsm_lab as gl


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
    pd.DataFrame(), pd.DataFrame({"a": [1]}), pd.Series([1.0, 2.0]),
)  # fmt: skip
EXTREME = tuple(
    one for one in JUNK if type(one) is Stubborn or (type(one) in (str, list, int) and len(_text(one)) > 999)
)
junk = st.one_of(
    st.sampled_from(JUNK),
    st.floats(),
    st.integers(-5, 5),
    st.text(max_size=5),
    st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=2)), max_size=3),
)


class Made:
    """An argument that works, made when it is needed: a model of one's own, or a table that takes a training."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]  # name -> (function, arguments that work)


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
def steps_on() -> gl.Run:
    run = gl.Run(model(), data(), **SMALL)
    run.step(3)
    return run


def run() -> gl.Run:
    """A run some steps on, and one's own."""
    return copy.deepcopy(steps_on())


@cache
def folder() -> str:
    return tempfile.mkdtemp(prefix="gsm-lab-random-")


@cache
def saved() -> Path:
    return steps_on().save(Path(folder()) / "saved")


def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[1.0, 2.0, 4.0], name="line"))


def optimizer() -> gl.GSM:
    return gl.GSM(gl.param_groups(model()), lr=0.1, compression=4.0)
