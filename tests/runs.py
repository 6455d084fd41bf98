"""What many tests train: small networks and data, and all there is in a run, compared to the bit."""

import copy
import math
import signal
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import Dataset, Run


class Net(nn.Module):
    """What a user might bring: dropout, batch norm, and a name for nothing."""

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(drop), nn.Linear(16, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def net(seed: int = 0, drop: float = 0.3) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(drop)


def mine(seed: int = 0) -> Dataset:
    """Four noisy classes around four corners; 10 batches of 8 an epoch."""
    rng = np.random.default_rng(seed)
    y = np.arange(120) % 4
    x = (rng.normal(size=(4, 8))[y] + rng.normal(size=(120, 8))).astype(np.float32)
    return Dataset(x[:80], y[:80], x[80:], y[80:], name="corners")


def tiny(model: nn.Module | None = None, **knobs: object) -> Run:
    """A run of 368 weights that takes a moment."""
    small = {"batch_size": 8, "pretrain": 1, "epochs": 6, "compression": 4.0, "evaluate_every": 7}
    return Run(model if model is not None else net(), mine(), **small | knobs)


def everything(run: Run) -> dict[str, object]:
    """All there is in a run, copied."""
    frame = run.history.frame().drop(columns=["evaluate_every"])
    return {
        "weights": copy.deepcopy(run.model.state_dict()),
        "momentum": [copy.deepcopy(state) for state in run.opt.state_dict()["state"].values()],
        # not the groups' learning rate, which every step sets anew
        "groups": [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in run.opt.param_groups],
        "random": run.random_state.clone(),
        "history": frame.drop(columns=[c for c in frame if c.endswith("accuracy") or c.startswith("kept")]),
        "evaluations": run.history.evaluation_frame(),
        "events": copy.deepcopy(run.history.events),
        "counters": (run.steps, run.dense_steps, run.base, run.magnitude, run.history.reactivations),
        "knobs": dict(run.knobs),
    }


def differs(a: dict[str, object], b: dict[str, object], ignore: tuple[str, ...] = ()) -> list[str]:
    """What is not the same to the bit."""
    return [part for part in a if part not in ignore and not equal(a[part], b[part])]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def accuracy(model: nn.Module, data: Dataset) -> float:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return (model(data.test_x).argmax(1) == data.test_y).double().mean().item()


def cosine(share: float) -> float:
    return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.two(torch.tanh(self.one(x)))))


def interrupt_at(model: nn.Module, call: int, how: Callable[[], None]) -> None:
    """Send an interrupt from the middle of the `call`-th forward pass in training."""
    calls = iter(range(1, 10_000))

    def hook(module: nn.Module, *_: object) -> None:
        if module.training and next(calls) == call:
            how()

    model.register_forward_hook(hook)


def raised() -> None:
    signal.raise_signal(signal.SIGINT)


class Breaks:
    """Cross entropy that is NaN (or infinite) in calls of its choice, of those for a training batch, 8 rows here."""

    def __init__(self, *bad_calls: int, by: float = math.nan) -> None:
        self.calls, self.bad, self.by = 0, bad_calls, by

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) != 8:  # such as the rows that a run tries when it is made
            return F.cross_entropy(logits, labels)
        self.calls += 1
        return F.cross_entropy(logits, labels) * (self.by if self.calls in self.bad else 1.0)


def plain(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
