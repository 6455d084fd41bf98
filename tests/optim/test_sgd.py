"""However weights, gradients and momenta lie in memory, a step is that of a row-major twin."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gsm_lab.optim import GSM, sgd
from gsm_lab.optim.fused import loader
from tests.optim.oracle import assert_equal, naive_mask

SGD = torch.optim.SGD
KERNELS = {"default": {}, "fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


def last(x: Tensor) -> Tensor:
    """Entries of the second dimension side by side: channels last, of images and of volumes."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 1 else x.clone()


def sliced(x: Tensor) -> Tensor:
    return torch.stack((x, torch.full_like(x, 7.0)), -1)[..., 0]


def flipped(x: Tensor) -> Tensor:
    """Dimensions in the opposite order in memory."""
    order = list(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def shifted(x: Tensor) -> Tensor:
    return torch.cat((x.new_zeros(3), x.reshape(-1)))[3:].view(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x.contiguous().clone(),
    "channels last": last,
    "sliced": sliced,
    "flipped": flipped,
    "shifted": shifted,
}
SHAPES = [(6, 4, 3, 3), (5, 12), (3, 2, 2, 3, 2), (1, 40), (7,)]


def trained(
    layout: str, gradient: str, momentum: str | None, hyper: dict[str, Any], q: int | None, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Three steps of GSM, or of SGD on masked gradients (q None: of SGD); weights, momenta, and who was active."""
    random = torch.Generator().manual_seed(0)

    def some(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    weights = [nn.Parameter(LAYOUTS[layout](some(shape))) for shape in SHAPES]
    opt = GSM(weights, **hyper, nonzeros=q) if q else SGD(weights, **hyper)
    if momentum:
        for p in weights:
            opt.state[p]["momentum_buffer"] = LAYOUTS[momentum](some(p.shape))
    for _ in range(3):
        for p in weights:
            p.grad = LAYOUTS[gradient](some(p.shape))
        given = [(p.grad, p.grad.clone()) for p in weights]
        opt.step()
        for p, (grad, before) in zip(weights, given, strict=True):
            assert p.grad is grad and torch.equal(grad, before)
    momenta = [opt.state[p]["momentum_buffer"] for p in weights] if hyper.get("momentum") else []
    active = opt.active_mask() if q else torch.empty(0)
    return [x.detach().contiguous() for x in (*weights, *momenta)], active


HYPER = [
    {"lr": 0.05},
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2},
    {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True},
]
MIXED = [
    ("channels last", "channels last", None),
    ("channels last", "rows", None),
    ("rows", "channels last", "rows"),
    ("rows", "flipped", "channels last"),
    ("flipped", "flipped", "rows"),
    ("sliced", "rows", None),
    ("sliced", "sliced", "sliced"),
    ("shifted", "sliced", "flipped"),
]


@pytest.mark.parametrize("without", [False, True], ids=["compiled", "torch"])
@pytest.mark.parametrize("hyper", HYPER, ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("q", [None, 60], ids=["C=1", "gated"])
def test_equal_to_the_row_major_twin(
    q: int | None, kernel: str, hyper: dict[str, Any], without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly to the bit: kernels may round what fills no vector in another way, and other entries are there then."""
    if without:
        monkeypatch.setattr(loader, "compiled", lambda name: None)
    count = sum(p.numel() for p in map(torch.empty, SHAPES) if p.ndim > 1)
    for layout, gradient, momentum in MIXED:
        hyper = {**hyper, **KERNELS[kernel]}
        momentum = momentum if hyper.get("momentum") else None
        seen, active = trained(layout, gradient, momentum, hyper, q or count, torch.float32)
        twin, its = trained("rows", "rows", momentum and "rows", hyper, q or count, torch.float32)
        assert torch.equal(active, its) and int(active.sum()) == (q or count)
        for a, b in zip(seen, twin, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_types_in_any_layout(kernel: str, dtype: torch.dtype) -> None:
    """Also of 16 bits with fused=True, which torch up to 2.13 leaves as they are: like the loop, to rounding."""
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-12, "atol": 1e-12}
    for layout, gradient, momentum in MIXED:
        hyper = {"lr": 0.05, "momentum": 0.9}
        seen, active = trained(layout, gradient, momentum, {**hyper, **KERNELS[kernel]}, 60, dtype)
        twin, its = trained("rows", "rows", momentum and "rows", {**hyper, "foreach": False}, 60, dtype)
        assert torch.equal(active, its)
        for a, b in zip(seen, twin, strict=True):
            torch.testing.assert_close(a, b, **close)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_exactly_the_active_ones_move(draw: st.DataObject) -> None:
    """Without momentum and decay, whatever lies how: the others stay to the bit, and so does memory beside a slice."""
    name = st.sampled_from(list(LAYOUTS))
    kernel = KERNELS[draw.draw(st.sampled_from(list(KERNELS)))]
    smoothing = draw.draw(st.sampled_from([0.0, 0.5]))
    random = torch.Generator().manual_seed(draw.draw(st.integers(0, 99)))
    weights = [nn.Parameter(LAYOUTS[draw.draw(name)](torch.randn(shape, generator=random))) for shape in SHAPES[:4]]
    wide = torch.randn(9, 10, generator=random)
    weights.append(nn.Parameter(wide[:, 2:6]))
    opt = GSM(weights, lr=0.1, nonzeros=40, smoothing=smoothing, **kernel)
    for p in weights:
        p.grad = LAYOUTS[draw.draw(name)](torch.randn(p.shape, generator=random))
    before, around = [p.detach().clone() for p in weights], wide.clone()
    expected = naive_mask(weights, 40)
    opt.step()
    assert torch.equal(opt.active_mask(), expected)
    for p, old in zip(weights, before, strict=True):
        moved = p.detach() != old
        assert torch.equal(moved, opt.active(p) & (p.grad * 0.1 != 0) & (old - 0.1 * p.grad != old))
        torch.testing.assert_close(p.detach(), torch.where(opt.active(p), old - 0.1 * p.grad, old))
    around[:, 2:6] = wide[:, 2:6]
    assert torch.equal(wide, around)


def test_an_expanded_gradient() -> None:
    """One value for all entries, as the gradient of a sum is: its memory holds one number."""
    for kernel, compression in itertools.product(KERNELS.values(), (1, 3)):
        a, b = (nn.Parameter(torch.arange(1.0, 31).view(5, 6)) for _ in range(2))
        ones = [GSM([p], lr=0.1, momentum=0.9, compression=compression, **kernel) for p in (a, b)]
        for _ in range(3):
            a.grad, b.grad = torch.full((1, 1), 2.0).expand(5, 6), torch.full((5, 6), 2.0)
            for opt in ones:
                opt.step()
        torch.testing.assert_close(a, b)
        assert torch.equal(ones[0].active_mask(), ones[1].active_mask())


@pytest.mark.parametrize("way", ["state loaded", "converted between steps"])
@pytest.mark.parametrize("compression", [1, 5])
def test_a_network_that_becomes_channels_last(way: str, compression: float) -> None:
    """The momentum was laid out as the weight had been: fused SGD would give each entry that of another."""
    torch.manual_seed(0)
    model, runs = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 3)), []
    for changes in (False, True):
        net = copy.deepcopy(model)
        opt = GSM(net.parameters(), lr=0.05, momentum=0.9, compression=compression, fused=True)
        for step in range(8):
            if step == 4 and changes:
                if way == "state loaded":
                    state = copy.deepcopy(opt.state_dict())
                    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
                    opt = GSM(net.parameters(), lr=1.0, fused=True)
                    opt.load_state_dict(state)
                else:
                    net.to(memory_format=torch.channels_last)
            opt.zero_grad()
            net(torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            opt.step()
        runs.append([p.detach().contiguous() for p in net.parameters()])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert opt.state[net[0].weight]["momentum_buffer"].stride() == net[0].weight.stride()


def test_row_major_steps_of_fused_sgd_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing lies differently, nothing is laid out anew: at C = 1 the bits are those of fused SGD."""
    hyper = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "fused": True}
    count = sum(p.numel() for p in map(torch.empty, SHAPES) if p.ndim > 1)
    seen, _ = trained("rows", "rows", "rows", hyper, count, torch.float32)
    plain, _ = trained("rows", "rows", "rows", hyper, None, torch.float32)
    assert_equal(seen, plain)
    weights = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))]
    opt = SGD(weights, momentum=0.9, fused=True)
    for p in weights:
        p.grad = torch.ones_like(p)
    anew: list[Tensor] = []
    monkeypatch.setattr(sgd, "_like", lambda p, x: anew.append(x) or x.contiguous())
    sgd.sgd_step(opt)
    sgd.sgd_step(opt)
    assert not anew
    opt.state[weights[0]]["momentum_buffer"] = turned = torch.ones(3, 3).t()
    sgd.sgd_step(opt)
    assert len(anew) == 1 and anew[0] is turned


def test_momentum_that_only_some_have_yet() -> None:
    """A layer that joins late: torch's fused kernel raises, the loop begins its momentum with its gradient."""
    for compression in (1, 3):
        a, b = ([nn.Parameter(torch.ones(4, 4, dtype=torch.float64)) for _ in range(2)] for _ in range(2))
        pairs = [
            (w, GSM(w, lr=0.1, momentum=0.9, compression=compression, fused=f)) for w, f in ((a, True), (b, False))
        ]
        for step in range(3):
            for weights, opt in pairs:
                for i, p in enumerate(weights[: step + 1]):
                    p.grad = torch.full((4, 4), float(i + 1), dtype=torch.float64)
                opt.step()
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q)
