"""A playground on networks of all kinds: it trains, draws, looks closely or says why not, and begins again."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from gsm_lab import Dataset, Playground, Run

SECONDS = 120


def data(features: int) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.normal(size=(3, features))[y] + rng.normal(size=(60, features))).astype(np.float32)
    return Dataset(x[:40], y[:40], x[40:], y[40:], name="corners")


class Several(nn.Module):
    """Says more than its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.one(x).relu()
        return {"logits": self.two(hidden), "hidden": hidden}


class Recurrent(nn.Module):
    """Reads its features one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x.unsqueeze(-1))[0][:, -1])


class Failing(nn.Module):
    """Goes wrong in its `at`-th training step."""

    def __init__(self, how: str, at: int) -> None:
        super().__init__()
        self.one, self.how, self.left = nn.Linear(6, 3), how, at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.training:
            self.left -= 1
        if self.left < 0 and self.how == "raises":
            raise RuntimeError("out of <luck>")
        return self.one(x) * (math.nan if self.left < 0 else 1.0)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3))


def played(pg: Playground, steps: int) -> None:
    pg.play()
    deadline = time.monotonic() + SECONDS
    while pg.player.playing and pg.run.steps < steps:
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    pg.pause()
    pg._draw()


SETTINGS = {"hold": 1.0, "pretrain": 0, "batch_size": 10, "compression": 2.0}


@pytest.mark.parametrize(
    ("make", "features", "more"),
    [
        (Several, 6, {"output": lambda model, x: model(x)["logits"]}),
        (Recurrent, 6, {}),
        (normed, 6, {}),
        (lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)), 2, {}),
    ],
    ids=["dictionary", "recurrent", "batch norm and dropout", "two features"],
)
def test_plays_and_begins_again(make: Callable[[], nn.Module], features: int, more: dict) -> None:
    pg = Playground(Run(make(), data(features), **more, **SETTINGS))
    try:
        pg.step(3)
        played(pg, 12)
        assert pg.player.error is None and not pg.failure.value and pg.run.steps >= 12
        assert pg.figure.data[0].x[-1] == pg.run.steps
        text = pg.taylor.text.value
        assert text.startswith("<b>Step ") or "could not be looked at: " in text
        pg.reset()
        pg.step(2)
        assert pg.run.steps == 2 and not pg.failure.value
    finally:
        pg.close()


@pytest.mark.parametrize(
    ("how", "said"), [("raises", "RuntimeError: out of &lt;luck&gt;"), ("nan", "FloatingPointError")]
)
def test_what_goes_wrong_in_training_is_said(how: str, said: str) -> None:
    pg = Playground(Run(Failing(how, 12), data(6), **SETTINGS), hide=["taylor"])
    try:
        played(pg, 1000)
        assert not pg.player.playing and f"Training stopped after step {pg.run.steps}." in pg.failure.value
        assert said in pg.failure.value and 0 < pg.run.steps < 13
        assert pg.set(lr=0.02) is None and pg.run.knobs["lr"] == 0.02  # and all else still answers
    finally:
        pg.close()
