"""What a weight costs from 10^5 to 10^8 of them, and how much memory a step takes beside what SGD takes."""

import re
import statistics
import subprocess
import sys
import time

import pytest
import torch

from gsm_lab.optim import GSM
from tests.bench.test_history import machine

SIZES = (10**5, 10**6, 10**7, 10**8)
BEYOND_CACHE = 10**7  # weights, from which on the cost of one should stay within FLAT
FLAT = 1.5
HYPER = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-3, "fused": True}
PLAIN = 10  # bytes a weight without numba: T, the gradients that pass, who does, and a tenth of T sorted out
MORE = 32e6  # bytes, beside one a weight


def parameter(n: int) -> torch.nn.Parameter:
    """A matrix of about n weights with gradients of a wide range."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(0.05 * torch.randn(n // 1000, 1000))
    p.grad = torch.randn_like(p)
    p.grad.mul_(torch.randn_like(p).exp_())
    return p


def step_time(p: torch.nn.Parameter, opt: torch.optim.SGD) -> float:
    """Seconds of a step, the median of some."""
    times = []
    for _ in range(max(7, min(200, 10**8 // p.numel()))):
        start = time.perf_counter()
        opt.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def test_cost_of_a_weight() -> None:
    print(f"\n{machine()}\n| weights | SGD, ns a weight | GSM, ns a weight | ratio |\n|---|---|---|---|")
    costs = {}
    for n in SIZES:
        p = parameter(n)
        sgd = step_time(p, torch.optim.SGD([p], **HYPER))
        costs[n] = step_time(p, GSM([p], **HYPER, compression=60)) / n
        print(f"| {n:,} | {1e9 * sgd / n:.2f} | {1e9 * costs[n]:.2f} | {costs[n] * n / sgd:.2f} |")
    large = [cost for n, cost in costs.items() if n >= BEYOND_CACHE]
    assert max(large) <= FLAT * min(large)


PEAK = """
import sys
import torch
import torch._dynamo  # which SGD imports, and GSM does not
from gsm_lab.optim import GSM
from gsm_lab.optim.fused import loader
from tests.bench.test_scale import HYPER, parameter
loader.compiled("gsm_lab.optim.fused.step")  # numba's own hundred megabytes are no cost of a step
p = parameter(int(sys.argv[2]))
if sys.argv[1] == "torch":
    loader.compiled = lambda name: None
more = {} if sys.argv[1] == "sgd" else {"compression": float(sys.argv[3])}
opt = (GSM if more else torch.optim.SGD)([p], **HYPER, **more)
def now():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far, that of making the tensors
for _ in range(4):
    opt.step()
print("peak", now())
"""


@pytest.mark.parametrize("compression", [10, 60])
def test_memory(compression: int) -> None:
    n = 10**8

    def peak(what: str) -> int:
        command = [sys.executable, "-c", PEAK, what, str(n), str(compression)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(re.search(r"peak (\d+)", said)[1])

    sgd, (compiled, plain) = peak("sgd"), map(peak, ("compiled", "torch"))
    print(f"\n| {n:,} weights at {compression}x | bytes a weight beside SGD |\n|---|---|")
    for name, more in (("with numba", compiled - sgd), ("without", plain - sgd)):
        print(f"| {name} | {more / n:.2f} ({more / 1e6:.0f} MB) |")
    assert compiled - sgd <= n + MORE and plain - sgd <= PLAIN * n + MORE
