"""The loop that every client is held to: the same network, batches and optimizer, in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl

CLASSES, FEATURES, SAMPLES, BATCH = 4, 20, 96, 16
COMPRESSION = 5


def network() -> nn.Module:
    """Two layers, 720 weights that compete; the same ones every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 30), nn.ReLU(), nn.Linear(30, CLASSES))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """x [96, 20] and classes [96]; the same ones every time."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, FEATURES, generator=draw)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=draw)).argmax(1)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """An epoch: the samples in their order, 16 at a time."""
    return list(zip(*(t.split(BATCH) for t in samples()), strict=True))


def gsm(model: nn.Module, **settings: object) -> gl.GSM:
    """The optimizer, as its users make it."""
    given = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "compression": COMPRESSION, **settings}
    return gl.GSM(gl.param_groups(model), **given)


class Watched:
    """After each of an optimizer's steps: all weights that compete, who was active, and the threshold."""

    def __init__(self, optimizer: gl.GSM) -> None:
        self.weights, self.active, self.thresholds, self.counts = [], [], [], []
        optimizer.register_step_post_hook(self._look)

    def _look(self, optimizer: gl.GSM, *_: object) -> None:
        competing = [p for group in optimizer.param_groups if group["prunable"] for p in group["params"]]
        self.weights.append(torch.cat([p.detach().reshape(-1) for p in competing]))
        self.active.append(optimizer.active_mask().clone())
        self.thresholds.append(optimizer.threshold)
        self.counts.append(optimizer.nonzeros)

    def same_as(self, other: "Watched", last: int | None = None) -> None:
        """Assert that these are the (last so many) steps of the other."""
        start = 0 if last is None else len(other.weights) - last
        assert len(self.weights) == len(other.weights) - start > 0
        assert self.counts == other.counts[start:]
        assert all(map(torch.equal, self.active, other.active[start:]))
        assert self.thresholds == other.thresholds[start:]
        assert all(map(torch.equal, self.weights, other.weights[start:]))
        for active, count in zip(self.active, self.counts, strict=True):
            assert int(active.sum()) == count < active.numel()


def train(
    model: nn.Module,
    optimizer: gl.GSM,
    epochs: int = 3,
    clip: Callable[[], object] = lambda: None,
    accumulate: int = 1,
    each_step: torch.optim.lr_scheduler.LRScheduler | None = None,
    each_epoch: torch.optim.lr_scheduler.LRScheduler | None = None,
    begin_epoch: Callable[[int], object] = lambda epoch: None,
) -> Watched:
    """Train as anybody would, and tell what happened."""
    seen = Watched(optimizer)
    for epoch in range(epochs):
        begin_epoch(epoch)
        for i, (x, y) in enumerate(batches(), 1):
            (F.cross_entropy(model(x), y) / accumulate).backward()
            if i % accumulate == 0:
                clip()
                optimizer.step()
                optimizer.zero_grad()
                if each_step is not None:
                    each_step.step()
        if each_epoch is not None:
            each_epoch.step()
    return seen
