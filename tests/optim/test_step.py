"""The compiled step against the definition of the top Q and against fused SGD: to the bit."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gsm_lab.optim import GSM
from gsm_lab.optim.fused import loader
from gsm_lab.optim.gate import Gate
from gsm_lab.optim.selection import chosen, top_q
from tests.optim.forms import fused_step, oracle

numba = pytest.importorskip("numba")
from gsm_lab.optim.fused import kernels, llvm, step  # noqa: E402

SIZES = [9000, 40, 1, 3077]  # of many vectors, of a few, with rests
TOTAL = sum(SIZES)


def contents(name: str, seed: int = 0, n: int = TOTAL) -> tuple[np.ndarray, np.ndarray]:
    """Weights and gradients of a kind."""
    rng = np.random.default_rng(seed)
    w, g = rng.normal(size=(2, n)).astype(np.float32)
    if name == "constant":
        w[:], g[:] = -0.5, 2
    elif name == "95% zero":
        g[rng.random(n) < 0.95] = 0
    elif name == "zero":
        g[:] = 0
    elif name == "denormal":
        g *= np.float32(1e-41)
    elif name == "huge":
        w, g = w * np.float32(1e19), g * np.float32(1e18)
    elif name == "overflow":
        w, g = w * np.float32(1e20), g * np.float32(1e20)
    elif name == "tied":
        w, g = np.round(w), np.round(g)
    elif name == "bfloat16":
        w, g = (torch.from_numpy(x).bfloat16().float().numpy() for x in (w, g))
    elif name == "NaN":
        g[rng.integers(n)] = np.nan
    elif name == "inf":
        g[rng.integers(n)] = -np.inf
    return w, g


KINDS = ["random", "constant", "95% zero", "zero", "denormal", "huge", "overflow", "tied", "bfloat16", "NaN", "inf"]


def check(w: np.ndarray, g: np.ndarray, q: int, sizes: list[int] = SIZES, ordinary: bool = False) -> None:
    """Who passes, and the threshold, are those of the definition; what is ordinary is left to nobody else."""
    with np.errstate(all="ignore"):
        metric = np.abs(w * g)
    expected, mask = oracle(metric, q)
    threshold, passed, done = fused_step(w, g, q, sizes)
    if not np.isfinite(metric).all() or expected == 0:
        assert not done
        if not np.isfinite(g).all():
            return
    assert done or not ordinary
    np.testing.assert_equal(threshold, expected)
    np.testing.assert_array_equal(passed, mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [1, 2, 40, TOTAL // 60, TOTAL // 10, TOTAL // 2, TOTAL - 1])
def test_the_threshold_and_what_passes(kind: str, q: int) -> None:
    for seed in range(5):
        check(*contents(kind, seed), q, ordinary=kind == "random")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_sizes_any_q(draw: st.DataObject) -> None:
    sizes = draw.draw(st.lists(st.integers(1, 9000), min_size=1, max_size=4))
    n = sum(sizes) + 1
    q = draw.draw(st.integers(1, n - 1))
    check(*contents(draw.draw(st.sampled_from(KINDS)), draw.draw(st.integers(0, 99)), n), q, [*sizes, 1])


def made(sizes: list[int]) -> step.FusedStep:
    weights = [nn.Parameter(torch.ones(1, n)) for n in sizes]
    return step.FusedStep(Gate(weights, [], str), dict.fromkeys(weights, 0))


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many threads share the work, however little it is."""
    monkeypatch.setattr(step, "SHARED", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[70_000, 3, 12_345, 0, 1], [1, 30_011, 50_000], [100]], ids=str)
def test_threads_find_what_one_finds(kind: str, sizes: list[int], threads: int) -> None:
    n = sum(sizes)
    for q in (1, max(1, n // 60), n // 3, n - 1):
        check(*contents(kind, 3, n), q, sizes)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("q", [50, 500])
def test_exact_when_the_sample_misleads(q: int, offset: int, threads: int) -> None:
    """Everything large lies where the sample looks (its bracket is too high), or next to it (it sees nothing)."""
    n = 60_000
    stride, ((_, least), (_, more)) = step.sampling(n, q)
    rng = np.random.default_rng(1)
    w = np.ones(n, np.float32)
    for large in (least, more + 2):
        g = rng.random(n).astype(np.float32)
        g[offset::stride][:large] += 1
        check(w, g, q, [50_000, 10_000])
    g[:] = 0
    g[offset::stride] = rng.random(g[offset::stride].size)
    check(w, g, q, [50_000, 10_000])


@pytest.mark.parametrize("positive", [1, 7, 150, 320, 599, 600, 601])
def test_fewer_positive_values_than_are_to_pass(positive: int, threads: int) -> None:
    n, q = 60_000, 600
    for seed in range(5):
        rng = np.random.default_rng(seed)
        g = np.zeros(n, np.float32)
        g[rng.choice(n, positive, replace=False)] = 1 + rng.random(positive)
        check(np.ones(n, np.float32), g, q, [50_000, 10_000], ordinary=True)


def test_more_candidates_than_there_is_room_for(threads: int) -> None:
    """The sample sees zeros alone, so that all that is positive is a candidate."""
    n, q = 400_000, 100
    stride, _ = step.sampling(n, q)
    g = np.random.default_rng(2).random(n).astype(np.float32)
    g[::stride] = 0
    assert made([n]).room < n // 2
    check(np.ones(n, np.float32), g, q, [n])


def test_hardly_any_step_needs_a_second_look() -> None:
    """Of realistic values, the median of |g w| spans decades: the bracket holds the threshold."""
    rng, n = np.random.default_rng(4), 100_000
    q, histogram, held = n // 60, np.zeros(2048, np.int32), 0
    stride, ((most, least), _) = step.sampling(n, q)
    for _ in range(100):
        w, g = (rng.normal(size=(2, n)) * rng.lognormal(0, 2, size=(2, n))).astype(np.float32)
        histogram[:] = 0
        kernels.sample(np.array([[w.ctypes.data, g.ctypes.data, 0, n]], np.uint64), stride, histogram)
        low, high = np.array(kernels.bracket(histogram, most, least), np.int32).view(np.float32)
        held += low <= top_q(np.abs(w * g), q).threshold < high
    assert held >= 97


def test_the_threads_of_pytorch_are_asked() -> None:
    """Where its OpenMP answers as it should; what answers otherwise is not used."""
    there = step.team(3)
    assert there[0] == 3 and kernels.understood(there)
    for place, other in ((3, 4), (4, 3)):
        wrong = there.copy()
        wrong[place] = there[other]
        assert not kernels.understood(wrong)


def test_one_thread_works_where_the_openmp_of_pytorch_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step.ctypes, "CDLL", lambda *_: object())
    assert step.team.__wrapped__(2).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.skipif(not llvm.COMPRESSES, reason="the processor has no such vectors, so every other test is this one")
def test_processors_with_smaller_vectors() -> None:
    """The same tests with kernels compiled for those, in a process of its own."""
    old = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+lzcnt"}
    some = "passes or any_sizes or misleads or to_the_bit or ties or threads_find"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        f"({some}) and not smaller",
    ]
    done = subprocess.run(command, env=os.environ | old, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_the_rounding_of_this_machine_is_known() -> None:
    body, tail, width = step.rounding()
    assert body in llvm.ROUNDINGS and tail in llvm.ROUNDINGS and width in (4, 8, 16)


class Net(nn.Module):
    """Matrices whose sizes fill vectors and do not."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(1, 5), (30, 40), (7, 11), (2, 16)]  # the second of more than a block, and where no vector begins
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
        self.bias = nn.Parameter(torch.randn(6))


def fused_and_not(net: Net, monkeypatch: pytest.MonkeyPatch, steps: int, groups, **hyper) -> list[list[Tensor]]:
    """Weights and momentum after some steps, and the active sets, by the compiled step and by PyTorch's own SGD."""
    results = []
    first = {name: p.detach().clone() for name, p in net.state_dict().items()}
    done, real = [], step.FusedStep.try_step
    for use in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(step.FusedStep, "try_step", lambda *a, use=use: use and (done.append(real(*a)) or done[-1]))
            net.load_state_dict(first)
            opt = GSM(groups(net), fused=True, **hyper)
            random = torch.Generator().manual_seed(5)
            masks = []
            for _ in range(steps):
                for p in net.parameters():
                    p.grad = torch.randn(p.shape, generator=random)
                opt.step()
                masks.append(opt.active_mask())
        assert done == [True] * steps  # (and with PyTorch's own no more are added)
        buffers = [opt.state[p]["momentum_buffer"].clone() for p in net.parameters()]
        results.append([*(p.detach().clone() for p in net.parameters()), *buffers, *masks])
    return results


@pytest.mark.parametrize("hyper", [{}, {"dampening": 0.4}, {"weight_decay": 0}], ids=["plain", "dampening", "no decay"])
@pytest.mark.parametrize("q", [40, 400])
def test_the_step_is_the_fused_step_to_the_bit(q: int, hyper: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nonzeros": q, **hyper}
    a, b = fused_and_not(Net(), monkeypatch, 20, lambda net: net.parameters(), **one)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_ties_go_to_the_first_in_a_step_too(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Weights of one size and gradients of few sizes, so that the threshold is reached by many."""
    net = Net()
    for p in net.parameters():
        p.data.fill_(-0.5)
    step.rounding()  # found out once, with numbers that are not round
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: randn(*a, **k).round())
    one = {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.25, "nonzeros": 40}
    a, b = fused_and_not(net, monkeypatch, 6, lambda net: net.parameters(), **one)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and all(int(x.sum()) == 40 for x in a[-6:])


@pytest.mark.parametrize("tied", [False, True], ids=["all differ", "tied"])
@pytest.mark.parametrize("many", [1, 5, 24])
def test_many_threads_find_and_do_what_one_does(many: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are processors; large values close together, in a tensor of several runs of groups."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: many)
    shapes = [(300, 1000), (100, 300), (10, 100)]
    torch.manual_seed(0)
    first = [nn.Parameter(torch.full(shape, -0.5) if tied else torch.randn(shape)) for shape in shapes]
    second = [nn.Parameter(p.detach().clone()) for p in first]
    grads = [torch.randn(shape) * (1 + 9 * i) for i, shape in enumerate(shapes)]
    grads = [g.round() for g in grads] if tied else grads  # the threshold is then reached by many, far into the first
    hyper = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "fused": True}
    gsm, sgd = GSM(first, **hyper, compression=60), torch.optim.SGD(second, **hyper)
    for _ in range(3):
        metric = torch.cat([(p * g).abs().flatten() for p, g in zip(second, grads, strict=True)]).detach()
        mask = torch.from_numpy(chosen(metric.numpy(), top_q(metric.numpy(), gsm.nonzeros)))
        for p, other, g, m in zip(first, second, grads, mask.split([p.numel() for p in first]), strict=True):
            p.grad, other.grad = g.clone(), g * m.view(g.shape)
        gsm.step()
        sgd.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert all(torch.equal(p, other) for p, other in zip(first, second, strict=True))


def test_each_thread_has_room_for_all_that_it_may_find() -> None:
    """A part of few weights that are all candidates; where it had not, the slow search would have to do."""
    n, parts = 266_200, 24
    passes = made([n])
    several = np.array([parts, *step.team(2)[1:]], np.int64)
    step.team.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "team", lambda _: several)
        patch.setattr(torch, "get_num_threads", lambda: parts)
        passes._decide(n // 60)
    groups = kernels.groups(passes._table)
    room = passes._found.size // parts
    for k in range(parts):
        part = groups * k // parts, groups * (k + 1) // parts
        assert 64 * (part[1] - part[0]) + kernels.SPARE <= room


def with_gradients(opt: GSM) -> GSM:
    for p in (p for group in opt.param_groups for p in group["params"]):
        p.grad = torch.randn_like(p)
    return opt


@pytest.mark.parametrize("shared", ["whole", "half"])
def test_parameters_that_share_memory_are_left_to_pytorch(shared: str) -> None:
    flat = torch.randn(30, 40)
    a = nn.Parameter(flat)
    b = nn.Parameter(flat.detach() if shared == "whole" else flat.detach()[10:20])
    opt = GSM([a, b], lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    gate = with_gradients(opt)._prepared()
    assert not opt._try_step(opt, gate, 20)
    opt.step()
    assert opt.active_mask().sum() == 20


@pytest.fixture(params=["compiled", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(loader, "compiled", lambda name: None)
    return request.param


def test_gradients_are_not_kept(form: str) -> None:
    params = [nn.Parameter(torch.randn(30, 40)), nn.Parameter(torch.randn(40))]
    opt = GSM(params, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    assert (opt._try_step is not None) == (form == "compiled")
    kept = params[0].grad.untyped_storage()
    names = torch._C._storage_Use_Count(kept._cdata)
    for p in params:
        p.grad = None
    assert torch._C._storage_Use_Count(kept._cdata) == names - 1 == 1


def test_threads_share_a_step_to_the_bit(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    one = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nonzeros": 40}
    a, b = fused_and_not(Net(), monkeypatch, 5, lambda net: net.parameters(), **one)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_group_has_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(net: Net) -> list[dict]:
        return [
            {"params": [net.layers[1], net.bias], "lr": 0.2, "weight_decay": 0.3},
            {"params": [net.layers[0]], "prunable": False, "weight_decay": 0},
            {"params": [net.layers[2], net.layers[3]], "momentum": 0.5},
        ]

    one = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "compression": 9}
    a, b = fused_and_not(Net(), monkeypatch, 20, groups, **one)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_default_dtype_does_not_matter(form: str) -> None:
    net = Net()
    opt = GSM(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        opt.step()
    finally:
        torch.set_default_dtype(before)
    assert opt.active_mask().sum() == 20


def test_masks_that_were_handed_out_stay_as_they_were(form: str) -> None:
    net = Net()
    opt = GSM(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    masks = []
    for _ in range(6):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
        masks.append((opt.active_mask(), opt.active_mask().clone()))
    assert all(torch.equal(mask, copy) and copy.sum() == 20 for mask, copy in masks)
    assert not any(torch.equal(a, b) for (a, _), (b, _) in pairwise(masks))


def test_autograd_can_notice_that_the_weights_changed(form: str) -> None:
    layer = nn.Linear(8, 8)
    opt = GSM(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    versions = []
    for _ in range(4):
        layer(torch.randn(3, 8)).square().sum().backward()
        opt.step()
        versions.append((layer.weight._version, opt.state[layer.weight]["momentum_buffer"]._version))
        opt.zero_grad()
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(versions[1:]))


def test_without_a_known_rounding_pytorch_does_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "rounding", lambda: None)
    net = Net()
    opt = GSM(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True, nonzeros=20)
    for _ in range(3):
        gate = with_gradients(opt)._prepared()
        assert not opt._try_step(opt, gate, 20)
        opt.step()
        assert opt.active_mask().sum() == 20
