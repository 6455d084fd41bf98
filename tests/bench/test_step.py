"""What the gate costs: a GSM step against a fused SGD step, and against the paper's own formulation, taken in turns."""

import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gsm_lab import data, models
from gsm_lab.optim import GSM, budget, param_groups
from gsm_lab.optim.fused import loader
from tests.bench.test_history import machine

HYPER = {"lr": 0.003, "momentum": 0.98, "weight_decay": 1e-3}
# case: (ratio of the steps with numba, without it; at least so many times faster than the paper's formulation)
LIMITS = {
    "LeNet-300-100, 60x": (1.4, 4.5, 5),
    "LeNet-5, 125x": (1.3, 4.5, 5),
    "25.5M weights, 10x": (1.9, 9.0, 20),
    "25.5M weights, 60x": (1.7, 9.0, 20),
}


class Public(torch.optim.SGD):
    """The formulation of the paper's public code: join all metrics, topk, a mask for each tensor, plain SGD."""

    def __init__(self, groups: list[dict], compression: float) -> None:
        super().__init__(groups, **HYPER)
        self.compression = compression

    @torch.no_grad()
    def step(self) -> None:
        weights = self.param_groups[0]["params"]
        joined = torch.cat([(p * p.grad).abs().view(-1) for p in weights])
        threshold = joined.topk(budget(joined.numel(), compression=self.compression)).values[-1]
        for p in weights:
            p.grad.mul_(((p * p.grad).abs() >= threshold).float())
        super().step()


def training_set() -> data.Dataset:
    """MNIST where the shared copy is at hand, else the digits, which are as large for the network."""
    for folder in (os.environ.get("GSM_LAB_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return data.load("mnist", root=folder)
    return data.load("digits")


def lenet(make: Callable[[], nn.Module], batch_size: int) -> tuple[nn.Module, Callable[[nn.Module, int], None]]:
    """A network, and what forms its gradients of a step: real ones, of a batch."""
    torch.manual_seed(0)
    batches = data.Batches(training_set(), batch_size, seed=0)

    def backward(model: nn.Module, step: int) -> None:
        x, y = batches.batch(step)
        cross_entropy(model(x), y).backward()

    return make(), backward


def resnet50() -> tuple[nn.Module, Callable[[nn.Module, int], None]]:
    """25.5 million weights in the shapes of a ResNet-50; gradients of a wide range, rewritten for each step."""
    shapes, width = [(64, 3, 7, 7)], 64
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _block in range(blocks):
            shapes += [(inner, width, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            shapes += [(4 * inner, width, 1, 1)] if width != 4 * inner and not _block else []
            width = 4 * inner
    torch.manual_seed(0)
    layers = [nn.Conv2d(shape[1], shape[0], shape[2], bias=False) for shape in shapes]
    model = nn.ModuleList([*layers, nn.Linear(2048, 1000, bias=False)])
    for p in model.parameters():
        nn.init.normal_(p, std=0.05)
    grads = [torch.randn_like(p) * torch.randn_like(p).exp() * 1e-3 for p in model.parameters()]

    def backward(model: nn.Module, step: int) -> None:
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = torch.mul(grad, 1 + 0.01 * (step % 7), out=p.grad)

    return model, backward


CASES = {
    "LeNet-300-100, 60x": (lambda: lenet(models.lenet300, 64), 60, 800),
    "LeNet-5, 125x": (lambda: lenet(models.lenet5, 16), 125, 250),
    "25.5M weights, 10x": (resnet50, 10, 24),
    "25.5M weights, 60x": (resnet50, 60, 24),
}


def step_times(case: str, threads: int, contestants: dict[str, Callable[[list[dict]], torch.optim.SGD]]) -> dict:
    """Median seconds of a step of each contestant, each with a copy of the network, in one loop."""
    (first, backward), _, steps = CASES[case][0](), *CASES[case][1:]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        field = []
        for name, make in contestants.items():
            model = copy.deepcopy(first)
            field.append((name, model, make(param_groups(model)), []))
        for step in range(steps // 10 + 2 + steps):
            for name, model, opt, times in field if step % 2 else reversed(field):
                if name == "public" and step % 8:  # slow, so not every time
                    continue
                if case.startswith("LeNet"):
                    opt.zero_grad()
                backward(model, step)
                with pretending(name):
                    start = time.perf_counter()
                    opt.step()
                    times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: statistics.median(times[len(times) // 10 + 1 :]) for name, _, _, times in field}


class pretending:
    """In which numba is not there, for the contestant that does without."""

    def __init__(self, name: str) -> None:
        self.without = name == "torch"

    def __enter__(self) -> None:
        self.real = loader.compiled
        if self.without:
            loader.compiled = lambda name: None

    def __exit__(self, *_: object) -> None:
        loader.compiled = self.real


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_step(case: str, threads: int) -> None:
    c = CASES[case][1]
    contestants = {
        "sgd": lambda groups: torch.optim.SGD(groups, **HYPER, fused=True),
        "compiled": lambda groups: GSM(groups, **HYPER, fused=True, compression=c),
        "torch": lambda groups: GSM(groups, **HYPER, fused=True, compression=c),
        "public": lambda groups: Public(groups, c),
    }
    if not loader.compiled("gsm_lab.optim.fused.step"):
        del contestants["compiled"]
    t = step_times(case, threads, contestants)
    best = t.get("compiled", t["torch"])
    limits = LIMITS[case]
    print(f"\n{machine()}, {threads} used\n| {case} | ms | / fused SGD | limit |\n|---|---|---|---|")
    for name, seconds in t.items():
        limit = {"compiled": limits[0], "torch": limits[1]}.get(name, "")
        print(f"| {name} | {1e3 * seconds:.3f} | {seconds / t['sgd']:.2f} | {limit} |")
    print(f"| public / best | {t['public'] / best:.1f} | | >= {limits[2]} |")
    missed = [name for name, limit in zip(("compiled", "torch"), limits[:2], strict=True)
              if name in t and t[name] / t["sgd"] > limit]  # fmt: skip
    assert t["public"] / best >= limits[2] and not missed, missed
