"""What a GSM step is by its definition, and small things to train, for tests of the optimizer."""

import heapq
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab.optim.fused import loader

untimed = settings(deadline=None)
SGD = torch.optim.SGD
KERNELS = {"default": {}, "fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}


@pytest.fixture(autouse=True, scope="module", params=["compiled", "torch"])
def passes(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test here is run with the compiled passes and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(loader, "compiled", lambda name: None)
        elif not loader.compiled("gsm_lab.optim.fused.step"):
            pytest.skip("numba is not installed")
        yield request.param


# ------------------------------------------------------------------------------------------------ the oracle


def naive_top(values: list[float], q: int) -> list[int]:
    """Positions of the `q` greatest positive values, the lower position where equal: one look at each, no sorting."""
    best: list[tuple[float, int]] = []  # a heap: in front the smallest value, and of equal ones the last
    least = 0.0
    for position, value in enumerate(values):
        if value > least:
            if len(best) < q:
                heapq.heappush(best, (value, -position))
            else:
                heapq.heapreplace(best, (value, -position))
            least = best[0][0] if len(best) == q else 0.0
    return sorted(-position for _, position in best)


def metric(weights: list[Tensor]) -> Tensor:
    """T = |g * w| in float32, flat."""
    parts = [p.detach().float() * (torch.zeros_like(p) if p.grad is None else p.grad).float() for p in weights]
    return torch.cat([t.abs().reshape(-1) for t in parts])


def naive_mask(weights: list[Tensor], q: int) -> Tensor:
    t = metric(weights)
    mask = torch.zeros_like(t, dtype=torch.bool)
    mask[naive_top(t.tolist(), q)] = True
    return mask


def masked_step(sgd: SGD, weights: list[Tensor], q: int) -> Tensor:
    """What a GSM step is, by its definition; returns the flat mask."""
    mask = naive_mask(weights, q)
    for p, m in zip(weights, mask.split([p.numel() for p in weights]), strict=True):
        if p.grad is not None:
            p.grad = torch.where(m.view(p.shape), p.grad, 0.0)
    sgd.step()
    return mask


# ------------------------------------------------------------------------------------------------ things to train


def net(seed: int = 0) -> nn.Sequential:
    """Two competing matrices (12x16 and 16x5), two biases."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))


def backward(model: nn.Module, step: int, scale: float = 1.0) -> Tensor:
    """Forward and backward on the batch of this step."""
    random = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(10, 12, generator=random).to(dtype), torch.randint(0, 5, (10,), generator=random)
    model.zero_grad()
    loss = scale * cross_entropy(model(x), y)
    loss.backward()
    return loss


def matrices(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim >= 2]


def snapshot(model: nn.Module, opt: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of weights and momentum."""
    buffers = [opt.state.get(p, {}).get("momentum_buffer") for p in model.parameters()]
    return [p.detach().clone() for p in [*model.parameters(), *(b for b in buffers if b is not None)]]


def assert_equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> None:
    """Equal to the bit, sign of zero included."""
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x.detach().double().numpy(), y.detach().double().numpy())
        assert torch.equal(x.signbit(), y.signbit())


def assert_same(a: nn.Module, opt_a: torch.optim.Optimizer, b: nn.Module, opt_b: torch.optim.Optimizer) -> None:
    assert_equal(snapshot(a, opt_a), snapshot(b, opt_b))


class GradientsKept:
    """Asserts that in its block no `p.grad` is replaced or written to."""

    def __init__(self, model: nn.Module) -> None:
        self.before = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]

    def __enter__(self) -> None:
        self.versions = [None if grad is None else grad._version for _, grad, _ in self.before]

    def __exit__(self, *_: object) -> None:
        for (p, grad, contents), version in zip(self.before, self.versions, strict=True):
            assert p.grad is grad
            if grad is not None:
                assert grad._version == version
                np.testing.assert_array_equal(grad.double().numpy(), contents.double().numpy())


def combinations() -> Iterator[Any]:
    moments = [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}]
    for kernel, moment, decay, maximize in itertools.product(KERNELS, moments, (0, 1e-2), (False, True)):
        arguments = {**KERNELS[kernel], **moment, "weight_decay": decay, "maximize": maximize}
        name = "-".join([kernel, *moment, *["decay"][: bool(decay)], *["maximize"][:maximize]])
        yield pytest.param({"lr": 0.05, **arguments}, id=name)


every_way = pytest.mark.parametrize("hyper", list(combinations()))
