"""`GSM` against its definition: `torch.optim.SGD` on gradients masked by a naive top Q."""

import copy
import heapq
import io
import itertools
import math
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import optimizer as torch_optimizer

from gsm_lab import data, models
from gsm_lab.optim import GSM, param_groups
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


# ------------------------------------------------------------------------------------------------ SGD with a gate


@every_way
def test_at_compression_1_it_is_sgd_bit_for_bit(hyper: dict[str, Any]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **hyper), GSM(b.parameters(), **hyper, compression=1)
    sign = -1.0 if hyper["maximize"] else 1.0
    for step in range(200):
        backward(a, step, sign)
        backward(b, step, sign)
        sgd.step()
        with GradientsKept(b):
            gsm.step()
        assert_equal(a.parameters(), b.parameters())
    assert_same(a, sgd, b, gsm)
    assert gsm.threshold == 0 and gsm.active_mask().all()


@every_way
def test_a_gated_step_is_sgd_on_masked_gradients_bit_for_bit(hyper: dict[str, Any]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **hyper), GSM(b.parameters(), **hyper, nonzeros=31)
    sign = -1.0 if hyper["maximize"] else 1.0
    for step in range(30):
        backward(a, step, sign)
        backward(b, step, sign)
        t = metric(matrices(b))
        mask = masked_step(sgd, matrices(a), 31)
        with GradientsKept(b):
            gsm.step()
        assert_same(a, sgd, b, gsm)
        assert torch.equal(gsm.active_mask(), mask) and int(mask.sum()) == 31
        assert gsm.threshold == t[mask].min() == t.topk(31).values[-1]


@pytest.fixture(scope="session")
def mnist() -> data.Dataset:
    for folder in (os.environ.get("GSM_LAB_DATA"), Path(__file__).parents[3] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GSM_LAB_DATA", str(folder))
                return data.load("mnist")
    pytest.skip("MNIST is not on this machine: neither GSM_LAB_DATA nor ../shared/data")


def test_the_active_set_at_every_step_of_a_real_mnist_run(mnist: data.Dataset) -> None:
    """One epoch of LeNet-300-100 at 60x against a naive loop and `torch.topk`, and its weights against masked SGD."""
    torch.manual_seed(0)
    a = models.lenet300()
    b = copy.deepcopy(a)
    hyper = {"lr": 0.03, "momentum": 0.98, "weight_decay": 1e-3, "fused": True}
    sgd, gsm = SGD(param_groups(a), **hyper), GSM(param_groups(b), **hyper, compression=60)
    q = 266_200 // 60
    assert gsm.nonzeros == q == 4436
    batches = data.Batches(mnist, 1000, seed=0)
    losses = []
    for step in range(len(batches)):
        x, y = batches.batch(step)
        for model in (a, b):
            model.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
        losses.append(loss.item())
        t = metric(matrices(b))
        with GradientsKept(b):
            gsm.step()
        mask = masked_step(sgd, matrices(a), q)
        assert torch.equal(gsm.active_mask(), mask)
        top = t.topk(q)
        assert int(mask.sum()) == q and gsm.threshold == top.values[-1].item() > 0
        untied = t[top.indices] > gsm.threshold  # among ties at the threshold topk takes any
        assert mask[top.indices[untied]].all() and (t[mask] == gsm.threshold).sum() == q - untied.sum()
        assert_equal(a.parameters(), b.parameters())
    assert_same(a, sgd, b, gsm)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])  # it did learn


# ------------------------------------------------------------------------------------------------ the active set


small = st.integers(-4, 4).map(lambda i: i / 4)


@untimed
@given(st.lists(st.lists(st.tuples(small, small), min_size=2, max_size=6), min_size=1, max_size=4), st.data())
def test_exactly_q_and_ties_to_the_first_across_tensors(tensors: list, draw: st.DataObject) -> None:
    weights = [nn.Parameter(torch.tensor([[w for w, _ in part]])) for part in tensors]
    for p, part in zip(weights, tensors, strict=True):
        p.grad = torch.tensor([[g for _, g in part]])
    n = sum(p.numel() for p in weights)
    q = draw.draw(st.integers(1, n))
    opt = GSM(weights, lr=1.0, nonzeros=q)
    expected = [p.detach().clone() for p in weights]
    mask = torch.ones(n, dtype=torch.bool) if q == n else naive_mask(weights, q)
    opt.step()
    assert torch.equal(opt.active_mask(), mask)
    flat = torch.cat([p.grad.reshape(-1) for p in weights])
    assert torch.equal(torch.cat([(b - p).reshape(-1) for b, p in zip(expected, weights, strict=True)]), flat * mask)
    assert opt.weights == n and opt.nonzeros == q
    joined = torch.cat([opt.active(p).reshape(-1) for p in weights])
    assert torch.equal(joined, mask) and all(opt.active(p).shape == p.shape for p in weights)


def test_fewer_than_q_where_fewer_are_positive() -> None:
    layer = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        layer.weight[3:] = 0
    opt = GSM(layer.parameters(), lr=0.1, weight_decay=0.1, nonzeros=50)
    layer.weight.grad = torch.ones(10, 10)
    before = layer.weight.detach().clone()
    opt.step()
    assert torch.equal(opt.active(layer.weight), before != 0)
    assert opt.threshold == before[:3].abs().min()
    assert torch.equal(layer.weight[3:], before[3:])  # a zero has T = 0: it stays, though its gradient is 1

    layer.weight.grad = torch.zeros(10, 10)
    before = layer.weight.detach().clone()
    opt.step()
    assert not opt.active_mask().any() and opt.threshold == 0
    assert torch.equal(layer.weight, before.add(before * 0.1, alpha=-0.1))  # nothing but decay


def test_where_all_are_tied_the_first_q_are_active() -> None:
    weights = [nn.Parameter(torch.full((50, 60), w)) for w in (1.0, -1.0, 1.0, 1.0, 1.0)]
    opt = GSM(weights, lr=0.1, compression=4)
    for p in weights:
        p.grad = torch.full_like(p, -2.0)
    opt.step()
    assert opt.active_mask().nonzero()[:, 0].tolist() == list(range(15_000 // 4))
    assert opt.threshold == 2


def test_the_same_twice() -> None:
    runs = []
    for _ in range(2):
        model = net()
        opt = GSM(model.parameters(), **HYPER, compression=7)
        for step in range(20):
            backward(model, step)
            opt.step()
        runs.append(snapshot(model, opt))
    assert_equal(*runs)


# Not bfloat16 with fused: on a CPU torch (up to 2.13) leaves such weights as they are, pytorch/pytorch issue 191763.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", ["default", "foreach", "loop"])
def test_the_metric_is_float32_whatever_the_parameters(dtype: torch.dtype, kernel: str) -> None:
    a, b = net().to(dtype), net().to(dtype)
    sgd, gsm = (
        SGD(a.parameters(), **HYPER, **KERNELS[kernel]),
        GSM(b.parameters(), **HYPER, **KERNELS[kernel], nonzeros=29),
    )
    for step in range(10):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), 29)
        with GradientsKept(b):
            gsm.step()
        assert torch.equal(gsm.active_mask(), mask) and int(mask.sum()) == 29
        assert_same(a, sgd, b, gsm)
    assert gsm.threshold == np.float32(gsm.threshold)


def test_bfloat16_products_do_not_tie() -> None:
    """1.0078125 * 1.0078125 and 1 * 1.015625 are one number in bfloat16, and two in float32."""
    p = nn.Parameter(torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16))
    p.grad = torch.tensor([[1.015625, 1.0078125]], dtype=torch.bfloat16)
    opt = GSM([p], lr=0.1, nonzeros=1)
    opt.step()
    assert opt.active(p).tolist() == [[False, True]]
    assert opt.threshold == 1.0078125**2


def test_denormal_products_count() -> None:
    p = nn.Parameter(torch.tensor([[1e-20, 2e-20, 3e-20, 0.0]]))
    p.grad = torch.full((1, 4), 1e-24)
    opt = GSM([p], lr=0.1, nonzeros=2)
    opt.step()
    assert opt.active(p).tolist() == [[False, True, True, False]]
    assert 0 < opt.threshold < 1e-43


# ------------------------------------------------------------------------------------------------ kinds of parameters


class Strided(nn.Module):
    """A transposed weight, a channels-last kernel, a sliced one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(4, 32).t())
        self.sliced = nn.Parameter(torch.randn(4, 10)[:, ::2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x).flatten(1) @ self.turned) @ self.sliced


@pytest.mark.parametrize("kernel", KERNELS)
def test_non_contiguous_parameters(kernel: str) -> None:
    a, b = Strided(), Strided()
    assert not any(p.is_contiguous() for p in matrices(b))
    # torch's fused kernel takes no notice of strides: it would move entries that lie between those of the slice
    oracle = KERNELS["loop" if kernel == "fused" else kernel]
    sgd, gsm = (
        SGD(a.parameters(), **HYPER, **oracle),
        GSM(b.parameters(), **HYPER, **KERNELS[kernel], nonzeros=20),
    )
    for step in range(10):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        for model in (a, b):
            model.zero_grad()
            model(x).square().sum().backward()
        mask = masked_step(sgd, matrices(a), 20)
        with GradientsKept(b):
            gsm.step()
        assert torch.equal(gsm.active_mask(), mask)  # the flat order is row-major, whatever the storage
        assert_same(a, sgd, b, gsm)


def test_ties_in_a_transposed_parameter_go_row_by_row() -> None:
    p = nn.Parameter(torch.ones(2, 3).t())
    p.grad = torch.ones(3, 2)
    opt = GSM([p], lr=0.1, nonzeros=3)
    opt.step()
    assert opt.active(p).tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_missing_gradients_and_frozen_parameters(kernel: str) -> None:
    a, b = (nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 5)) for _ in range(2))
    b.load_state_dict(a.state_dict())
    for model in (a, b):
        model[0].requires_grad_(False)
    sgd, gsm = (
        SGD(a.parameters(), **HYPER, **KERNELS[kernel]),
        GSM(b.parameters(), **HYPER, **KERNELS[kernel], compression=8),
    )
    assert gsm.weights == 3 * 144 + 60  # they count towards N
    for step in range(5):
        for model in (a, b):
            backward(model, step)
            model[2].weight.grad = None
        mask = masked_step(sgd, matrices(a), gsm.nonzeros)
        with GradientsKept(b):
            gsm.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert not gsm.active(b[0].weight).any() and not gsm.active(b[2].weight).any()
        assert_same(a, sgd, b, gsm)


def test_without_any_gradient_nothing_happens() -> None:
    model = net()
    for compression in (1, 60):
        opt = GSM(model.parameters(), **HYPER, compression=compression)
        opt.step()
        assert_equal(model.parameters(), net().parameters())
        assert not opt.state


def test_tied_weights_count_once() -> None:
    a, b = (nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 5)) for _ in range(2))
    for model in (a, b):
        model[2].weight = model[0].weight
    b.load_state_dict(a.state_dict())
    sgd, gsm = SGD(a.parameters(), **HYPER), GSM(param_groups(b), **HYPER, nonzeros=17)
    for group in gsm.param_groups:
        group["weight_decay"] = HYPER["weight_decay"]
    assert gsm.weights == 144 + 60
    for step in range(5):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), 17)
        gsm.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_embedding_tied_to_the_output_layer_gets_plain_sgd(sparse: bool) -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.embedding = nn.Embedding(9, 6, sparse=sparse)
            self.hidden = nn.Linear(6, 6)
            self.out = nn.Linear(6, 9, bias=False)
            if not sparse:  # a tied one has a dense gradient
                self.out.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(self.embedding(x)))

    a, b = Language(), Language()
    sgd, gsm = SGD(param_groups(a), lr=0.1, momentum=0.9), GSM(param_groups(b), lr=0.1, momentum=0.9, nonzeros=10)
    competing = [a.hidden.weight] if not sparse else [a.hidden.weight, a.out.weight]
    assert gsm.weights == sum(p.numel() for p in competing)
    for step in range(5):
        x = torch.randint(0, 9, (20,), generator=torch.Generator().manual_seed(step))
        for model in (a, b):
            model.zero_grad()
            cross_entropy(model(x), x).backward()
        mask = masked_step(sgd, competing, 10)
        gsm.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert_equal(a.parameters(), b.parameters())
    with pytest.raises(ValueError, match=r"shape \(9, 6\), is not among"):
        gsm.active(b.embedding.weight)


def test_duplicated_parameters_count_once() -> None:
    a, b = net(), net()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        sgd = SGD([*a.parameters(), a[0].weight], **HYPER)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        gsm = GSM([*b.parameters(), b[0].weight], **HYPER, nonzeros=31)
    assert gsm.weights == 12 * 16 + 16 * 5
    for step in range(3):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), 31)
        with GradientsKept(b):
            gsm.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)
    with pytest.raises(ValueError, match="more than one parameter group"):
        gsm.add_param_group({"params": [b[0].weight]})
    assert gsm.weights == 12 * 16 + 16 * 5


# ------------------------------------------------------------------------------------------------ groups


def test_a_plain_list_competes_from_two_dimensions_on() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Embedding(3, 4))
    assert GSM(model.parameters()).weights == GSM(list(model.parameters())).weights == 18 + 12
    assert GSM(param_groups(model)).weights == 18
    assert GSM([nn.Parameter(torch.ones(3))], compression=60).weights == 0  # a net without matrices: nothing to gate


def test_several_groups_learning_rates_and_a_scheduler() -> None:
    a, b = net(), net()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [
            {"params": [model[0].weight], "lr": 0.3, "momentum": 0.5},
            {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
            {"params": [model[2].weight], "lr": 0.01, "nesterov": True},
        ]

    sgd, gsm = SGD(groups(a), **HYPER), GSM(groups(b), **HYPER, compression=9)
    plans = [torch.optim.lr_scheduler.CosineAnnealingLR(opt, 15) for opt in (sgd, gsm)]
    for step in range(15):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), 272 // 9)
        gsm.step()
        for plan in plans:
            plan.step()
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)
    assert [g["lr"] for g in gsm.param_groups] == [g["lr"] for g in sgd.param_groups]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_learning_rate_can_be_a_tensor(kernel: str) -> None:
    a, b = net(), net()
    rate = torch.tensor(0.05)
    sgd, gsm = (
        SGD(a.parameters(), rate, 0.9, **KERNELS[kernel]),
        GSM(b.parameters(), rate, 0.9, **KERNELS[kernel], nonzeros=9),
    )
    for step in range(5):
        backward(a, step)
        backward(b, step)
        masked_step(sgd, matrices(a), 9)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_groups_that_are_not_prunable_get_plain_sgd() -> None:
    a, b = net(), net()
    gsm = GSM(
        [{"params": b[0].parameters(), "prunable": False}, {"params": b[2].parameters()}], **HYPER, compression=10
    )
    sgd = SGD(a.parameters(), **HYPER)
    assert (gsm.weights, gsm.nonzeros) == (80, 8)
    for step in range(5):
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, [a[2].weight], 8)
        gsm.step()
        assert torch.equal(gsm.active(b[2].weight), mask.view(5, 16))
        assert_same(a, sgd, b, gsm)
    with pytest.raises(ValueError, match=r"shape \(16, 12\), is not among this optimizer's prunable tensors"):
        gsm.active(b[0].weight)


@pytest.mark.parametrize(("budget", "expected"), [({"compression": 8}, (10, 34)), ({"nonzeros": 11}, (11, 11))])
def test_a_group_that_joins_competes(budget: dict[str, int], expected: tuple[int, int]) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a[2].parameters(), **HYPER), GSM(b[2].parameters(), **HYPER, **budget)
    for step in range(6):
        if step == 3:
            sgd.add_param_group({"params": a[0].parameters(), "lr": 0.2})
            gsm.add_param_group({"params": b[0].parameters(), "lr": 0.2})
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, [a[2].weight] if step < 3 else [a[2].weight, a[0].weight], gsm.nonzeros)
        gsm.step()
        assert torch.equal(gsm.active_mask(), mask) and int(mask.sum()) == expected[step >= 3]
        assert_same(a, sgd, b, gsm)


# ------------------------------------------------------------------------------------------------ smoothing


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_smoothed_gate_ranks_weight_times_mean_gradient(kernel: str) -> None:
    """Against the definition, step by step: |w| times an exponential mean of |g|, the mask on plain SGD's gradients."""
    a, b = net(), net()
    sgd = SGD(a.parameters(), **HYPER, **KERNELS[kernel])
    gsm = GSM(b.parameters(), **HYPER, **KERNELS[kernel], compression=9, smoothing=0.75)
    means = [torch.zeros_like(p) for p in matrices(a)]
    for step in range(12):
        backward(a, step)
        backward(b, step)
        for mean, p in zip(means, matrices(a), strict=True):
            mean.mul_(0.75).add_(p.grad.abs(), alpha=0.25)
        score = torch.cat([(p.detach() * mean).abs().view(-1) for p, mean in zip(matrices(a), means, strict=True)])
        mask = torch.zeros(272, dtype=torch.bool)
        mask[naive_top(score.tolist(), 30)] = True
        for p, part in zip(matrices(a), mask.split([p.numel() for p in matrices(a)]), strict=True):
            p.grad.mul_(part.view(p.shape))
        sgd.step()
        gsm.step()
        assert torch.equal(gsm.active_mask(), mask)
        for p, other in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, other, rtol=0, atol=0)


@pytest.mark.parametrize("forgot", [True, False])  # not, in the state that an earlier version has left
def test_what_was_smoothed_long_ago_is_forgotten(forgot: bool) -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=9, smoothing=0.9)
    for step, smoothing in enumerate((0.9, 0.0)):
        gsm.smoothing = smoothing
        backward(model, step)
        gsm.step()
    if not forgot:
        for p in matrices(model):
            gsm.state[p]["gradient_average"] = torch.ones_like(p)
    gsm.smoothing = 0.9
    backward(model, 2)
    gsm.step()
    for p in matrices(model):  # as after a first step
        torch.testing.assert_close(gsm.state[p]["gradient_average"], 0.1 * p.grad.abs())


def test_averages_go_on_where_the_gate_is_open() -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=9, smoothing=0.5)
    sizes = []
    for step, compression in enumerate((9, 1, 9)):
        gsm.compression = compression
        backward(model, step)
        sizes.append([p.grad.abs() for p in matrices(model)])
        gsm.step()
    for i, p in enumerate(matrices(model)):
        mean = sum(size[i] * share for size, share in zip(sizes, (0.125, 0.25, 0.5), strict=True))
        torch.testing.assert_close(gsm.state[p]["gradient_average"], mean)


def test_a_refused_gradient_leaves_no_trace_in_the_mean() -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=9, smoothing=0.9)
    backward(model, 0)
    gsm.step()
    before = [gsm.state[p]["gradient_average"].clone() for p in matrices(model)]
    backward(model, 1)
    matrices(model)[1].grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        gsm.step()
    assert all(torch.equal(gsm.state[p]["gradient_average"], x) for p, x in zip(matrices(model), before, strict=True))


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, math.nan, "0.9", None, True])
def test_a_bad_smoothing_is_named(bad: Any) -> None:
    with pytest.raises(ValueError, match="smoothing must be a number from 0"):
        GSM(net().parameters(), smoothing=bad)
    gsm = GSM(net().parameters(), smoothing=0.5)
    with pytest.raises(ValueError, match="smoothing must be a number from 0"):
        gsm.smoothing = bad
    assert gsm.smoothing == 0.5 == GSM(net().parameters(), smoothing=0.5).state_dict()["param_groups"][0]["smoothing"]


# ------------------------------------------------------------------------------------------------ the budget


def test_the_budget_moves_at_any_step() -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER, fused=True), GSM(b.parameters(), **HYPER, fused=True)
    for step, (name, value, q) in enumerate(
        [
            ("compression", 60, 4),
            ("compression", 1, 272),
            ("nonzeros", 7, 7),
            ("compression", 2.5, 108),
            ("nonzeros", 272, 272),
            ("compression", 1e6, 1),
            ("nonzeros", 1, 1),
        ]
    ):
        setattr(gsm, name, value)
        assert gsm.nonzeros == q and gsm.compression == (value if name == "compression" else 272 / value)
        backward(a, step)
        backward(b, step)
        mask = masked_step(sgd, matrices(a), q)
        gsm.step()
        assert int(gsm.active_mask().sum()) == q
        assert torch.equal(gsm.active_mask(), mask)
        assert_same(a, sgd, b, gsm)
    assert GSM(net().parameters()).compression == 1.0


def test_the_budget_is_part_of_the_state() -> None:
    gsm, other = GSM(net().parameters(), compression=60), GSM(net().parameters(), compression=2)
    state = gsm.state_dict()
    other.load_state_dict(state)
    assert (other.compression, other.nonzeros) == (60, 4)
    gsm.nonzeros = 5
    other.load_state_dict(gsm.state_dict())
    assert (other.compression, other.nonzeros) == (272 / 5, 5)
    for group in state["param_groups"]:
        group["compression"] = 125.0
    other.load_state_dict(state)
    assert (other.compression, other.nonzeros) == (125, 2)
    backward(model := net(), 0)
    gsm = GSM(model.parameters(), compression=3)
    gsm.load_state_dict(state)
    gsm.step()
    assert int(gsm.active_mask().sum()) == 2


BAD = [{"compression": c} for c in (0, 0.5, -1, math.nan, math.inf, True, "60", [2])] + [
    {"nonzeros": q} for q in (0, -1, 1.5, 273, math.nan, True, "9", [2])
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_budget_is_refused_by_name_before_anything_changes(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    valid = "a finite number >= 1" if name == "compression" else "a whole number from 1 to 272"
    with pytest.raises(ValueError, match=f"{name} must be {valid}") as error:
        GSM(net().parameters(), **bad)
    assert repr(value) in str(error.value)

    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=60)
    backward(model, 0)
    with pytest.raises(ValueError, match=f"{name} must be {valid}"):
        setattr(gsm, name, value)
    assert (gsm.compression, gsm.nonzeros) == (60, 4)
    gsm.param_groups[0].update({"compression": None, "nonzeros": None} | bad)  # not the way to set it, but possible
    with pytest.raises(ValueError, match=f"{name} must be {valid}"):
        gsm.step()
    assert_equal(model.parameters(), net().parameters())
    assert not gsm.state


def test_compression_and_nonzeros_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exactly one of compression and nonzeros, got compression=60, nonzeros=4"):
        GSM(net().parameters(), compression=60, nonzeros=4)


@pytest.mark.parametrize("bad", [{"lr": -1}, {"momentum": -1}, {"weight_decay": -1}, {"nesterov": True}])
def test_what_sgd_refuses_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
        GSM(net().parameters(), **bad)


# ------------------------------------------------------------------------------------------------ the state


def straight(steps: int, **more: Any) -> tuple[nn.Module, GSM]:
    model = net()
    opt = GSM(param_groups(model), **HYPER, **more)
    for step in range(steps):
        backward(model, step)
        opt.step()
    return model, opt


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", [copy.deepcopy, through_torch_save, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("kernel", KERNELS)
def test_interrupted_and_continued_is_the_same(way: Any, kernel: str) -> None:
    expected = straight(10, nonzeros=31, **KERNELS[kernel])
    model, opt = straight(5, nonzeros=31, **KERNELS[kernel])
    states = way(model.state_dict()), way(opt.state_dict())
    model = net(seed=1)
    opt = GSM(param_groups(model), lr=9.0, compression=3)  # everything else comes from the state
    model.load_state_dict(states[0])
    opt.load_state_dict(states[1])
    for step in range(5, 10):
        backward(model, step)
        opt.step()
    assert_same(model, opt, *expected)
    assert torch.equal(opt.active_mask(), expected[1].active_mask()) and opt.threshold == expected[1].threshold


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_optimizer_goes_on_alone(way: Any) -> None:
    expected = straight(10, compression=6, fused=True)
    original = straight(5, compression=6, fused=True)
    before = snapshot(*original)
    model, opt = way(original)
    for step in range(5, 10):
        backward(model, step)
        opt.step()
    assert_same(model, opt, *expected)
    assert torch.equal(opt.active_mask(), expected[1].active_mask())
    assert_equal(snapshot(*original), before)
    opt.compression = 2
    opt.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))]})
    assert opt.nonzeros == (272 + 16) // 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_state_of_a_plain_sgd_goes_on_gated(kernel: str) -> None:
    """A dense start with SGD, then GSM: momentum and settings are taken over, what SGD cannot know stays as it was."""
    a, b = net(), net()
    sgd = SGD(a.parameters(), **HYPER, **KERNELS[kernel])
    for step in range(5):
        backward(a, step)
        sgd.step()
    b.load_state_dict(a.state_dict())
    table = nn.Parameter(torch.ones(2, 2))
    sgd.add_param_group({"params": [table]})
    gsm = GSM(list(b.parameters()), lr=1.0, compression=10)
    gsm.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "prunable": False, "names": ["table"]})
    gsm.load_state_dict(copy.deepcopy(sgd.state_dict()))
    assert (gsm.weights, gsm.nonzeros) == (272, 27) and gsm.param_groups[1]["names"] == ["table"]
    for step in range(5, 10):
        backward(a, step)
        backward(b, step)
        masked_step(sgd, matrices(a), 27)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_a_plain_sgd_takes_the_state_of_gsm() -> None:
    a, gsm = straight(5, compression=1)
    b = copy.deepcopy(a)
    sgd = SGD(param_groups(b), lr=1.0)
    sgd.load_state_dict(copy.deepcopy(gsm.state_dict()))
    for step in range(5, 8):
        backward(a, step)
        backward(b, step)
        gsm.step()
        sgd.step()
    assert_same(a, gsm, b, sgd)


# ------------------------------------------------------------------------------------------------ the step


def test_closure_is_called_once_with_gradients_on() -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER), GSM(b.parameters(), **HYPER, compression=5)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(b, len(calls))

    for step in (1, 2, 3):
        loss = backward(a, step)
        masked_step(sgd, matrices(a), 54)
        with torch.no_grad():
            assert torch.equal(gsm.step(closure), loss)
        assert_same(a, sgd, b, gsm)
    assert calls == [True] * 3
    assert gsm.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    a, b = net(), net()
    sgd, gsm = SGD(a.parameters(), **HYPER), GSM(b.parameters(), **HYPER, compression=5)
    x = torch.randn(4, 12)
    for _ in range(4):
        for model, opt in ((a, sgd), (b, gsm)):
            opt.zero_grad(set_to_none)
            assert all(p.grad is None or not p.grad.any() for p in model.parameters())
            model(x).square().sum().backward()
        masked_step(sgd, matrices(a), 54)
        gsm.step()
        assert_same(a, sgd, b, gsm)


def test_gradients_accumulate_over_a_step_without_zero_grad() -> None:
    model = net()
    gsm = GSM(model.parameters(), lr=0.0, compression=20, fused=True)
    model(torch.ones(1, 12)).sum().backward()
    once = [p.grad.clone() for p in model.parameters()]
    gsm.step()  # lr 0: the weights stay
    model(torch.ones(1, 12)).sum().backward()
    assert_equal([p.grad for p in model.parameters()], [2 * g for g in once])


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("subclass", [True, False])
def test_hooks_run_once_a_step(hooked: bool, subclass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch wraps `SGD.step` once an SGD exists in the process, and runs the hooks in that wrapper."""
    bare = SGD.step
    monkeypatch.setattr(SGD, "step", bare.__wrapped__ if getattr(bare, "hooked", False) else bare)
    if hooked:
        SGD(net().parameters())
    assert getattr(SGD.step, "hooked", False) == hooked
    model = net()
    gsm = (type("Mine", (GSM,), {}) if subclass else GSM)(model.parameters(), **HYPER, compression=60)
    calls: list[str] = []
    gradients: list[Tensor] = []
    handles = [
        gsm.register_step_pre_hook(lambda *_: calls.append("pre")),
        gsm.register_step_post_hook(lambda *_: calls.append("post")),
        gsm.register_step_post_hook(lambda *_: gradients.append(model[0].weight.grad)),
        torch_optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        torch_optimizer.register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        for step in range(2):
            backward(model, step)
            calls.clear()
            gsm.step()
            assert sorted(calls) == ["global post", "global pre", "post", "pre"]
            assert gradients[-1] is model[0].weight.grad  # hooks see the model's own gradients
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("compression", [1, 60])
@pytest.mark.parametrize("kernel", [{"fused": True, "maximize": True}, {"foreach": True, "nesterov": True}])
def test_gradients_come_back_when_sgd_raises(
    compression: float, kernel: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=compression, **kernel)
    backward(model, 0)
    monkeypatch.setattr(sys.modules[torch.optim.SGD.__module__], "sgd", out_of_memory)
    with GradientsKept(model), pytest.raises(MemoryError):
        gsm.step()


@pytest.mark.parametrize("kernel", KERNELS)
def test_grad_scaler_changes_nothing_but_the_scale(kernel: str) -> None:
    """Scaled by a power of two and back is the same to the bit."""
    expected, opt = net(), None
    opt = GSM(expected.parameters(), **HYPER, compression=7, **KERNELS[kernel])
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=7, **KERNELS[kernel])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        backward(expected, step)
        opt.step()
        backward(model, step, scaler.get_scale())
        if step % 2:
            scaler.unscale_(gsm)
        scaler.scale(torch.zeros(1))  # creates the scaler's own tensors, as scaling the loss does
        scaler.step(gsm)
        scaler.update()
        assert_same(model, gsm, expected, opt)
        assert torch.equal(gsm.active_mask(), opt.active_mask()) and gsm.threshold == opt.threshold


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["0.weight", "2.bias"])
@pytest.mark.parametrize("compression", [1, 60])
def test_an_overflow_under_grad_scaler_skips_the_step(kernel: str, bad: float, where: str, compression: float) -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=compression, **KERNELS[kernel])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(torch.zeros(1))
    for step, overflow in enumerate([False, True, True, False]):
        backward(model, step, scaler.get_scale())
        if overflow:
            model.get_parameter(where).grad.view(-1)[-1] = bad
        before, scale = snapshot(model, gsm), scaler.get_scale()
        scaler.step(gsm)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if overflow else scale)
        if overflow:
            assert_equal(snapshot(model, gsm), before)
        else:
            assert not torch.equal(model[0].weight, before[0])


# ------------------------------------------------------------------------------------------------ non-finite gradients


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["0.weight", "2.weight", "0.bias", "2.bias"])
@pytest.mark.parametrize("compression", [1, 60])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weight", [None, 0.0, 1e-45])
def test_non_finite_gradients_are_refused_by_name(
    bad: float, where: str, compression: float, kernel: str, weight: float | None
) -> None:
    model = net()
    opt = GSM(param_groups(model), **HYPER, compression=compression, **KERNELS[kernel])
    for step in range(2):
        backward(model, step)
        opt.step()
    p = model.get_parameter(where)
    if weight is not None:
        with torch.no_grad():
            p.view(-1)[4] = weight
    backward(model, 2)
    p.grad.view(-1)[4] = bad
    before = snapshot(model, opt)
    with GradientsKept(model), pytest.raises(FloatingPointError) as error:
        opt.step()
    value = str(bad)
    assert f"the gradient of '{where}'" in str(error.value) and f"{value} at flat position 4" in str(error.value)
    assert "no weight was changed" in str(error.value)
    assert_equal(snapshot(model, opt), before)
    assert not opt.active_mask().any() and opt.threshold == 0

    backward(model, 3)  # it goes on as if that step had never been
    opt.step()
    other = net()
    again = GSM(param_groups(other), **HYPER, compression=compression, **KERNELS[kernel])
    for step in range(2):
        backward(other, step)
        again.step()
    if weight is not None:
        with torch.no_grad():
            other.get_parameter(where).view(-1)[4] = weight
    backward(other, 3)
    again.step()
    assert_same(model, opt, other, again)
    assert torch.equal(opt.active_mask(), again.active_mask())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("compression", [1, 60])
def test_non_finite_gradients_of_other_types(dtype: torch.dtype, compression: float) -> None:
    model = net().to(dtype)
    opt = GSM(list(model.named_parameters()), **HYPER, compression=compression)  # names as torch takes them
    backward(model, 0)
    model[2].weight.grad[1, 2] = math.nan
    with pytest.raises(
        FloatingPointError, match=r"'2\.weight', parameter 2 of group 0 \(shape \(5, 16\)\) holds nan at"
    ):
        opt.step()
    assert_equal(model.parameters(), net().to(dtype).parameters())


def test_an_unnamed_parameter_is_named_by_its_place() -> None:
    model = net()
    opt = GSM([{"params": model[0].parameters()}, {"params": model[2].parameters()}], compression=60)
    backward(model, 0)
    model[2].bias.grad[3] = -math.inf
    with pytest.raises(
        FloatingPointError, match=r"of parameter 1 of group 1 \(shape \(5,\)\) holds -inf at flat position 3"
    ):
        opt.step()


def test_non_finite_gradients_outside_the_gate() -> None:
    """Of a matrix that does not compete, and of a sparse embedding."""
    table = nn.Embedding(5, 3, sparse=True)
    matrix, free = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3, 3))
    opt = GSM([{"params": [matrix]}, {"params": [free, table.weight], "prunable": False}], lr=0.1, nonzeros=3)
    matrix.grad, free.grad = torch.ones(4, 4), torch.ones(3, 3)
    table(torch.tensor([1, 1, 4])).sum().backward()
    opt.step()
    assert int(opt.active(matrix).sum()) == 3 and torch.equal(free, torch.full((3, 3), 0.9))
    kept = matrix.clone()
    free.grad[2, 2] = math.nan
    with pytest.raises(FloatingPointError, match="parameter 0 of group 1"):
        opt.step()
    free.grad[2, 2] = 1
    table.weight.grad = None
    (math.inf * table(torch.tensor([3]))).sum().backward()
    with pytest.raises(FloatingPointError, match="parameter 1 of group 1"):
        opt.step()
    assert torch.equal(matrix, kept)


@pytest.mark.parametrize("compression", [1, 4])
def test_finite_gradients_whose_sums_or_products_overflow_are_no_error(compression: float) -> None:
    w, bias = nn.Parameter(torch.full((4, 4), 1e-3)), nn.Parameter(torch.zeros(4))
    with torch.no_grad():
        w[1, 1], w[2, 2] = 1e20, -1e20
    w.grad, bias.grad = torch.full((4, 4), 3e38), torch.full((4,), 3e38)  # sums overflow; at (1, 1) and (2, 2) T too
    opt = GSM([w, bias], lr=1e-39, compression=compression)
    before = w.detach().clone()
    opt.step()
    assert bias.tolist() == pytest.approx([-0.3] * 4)
    if compression == 4:
        assert opt.active(w)[1, 1] and opt.active(w)[2, 2] and int(opt.active(w).sum()) == 4
        opt.nonzeros = 1  # two T are inf: the first is taken
        opt.step()
        assert opt.active(w).nonzero().tolist() == [[1, 1]] and opt.threshold == math.inf
    assert torch.isfinite(w).all() and not torch.equal(w, before)


def test_a_double_too_large_for_the_metric_is_no_error() -> None:
    p = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0, 3.0]], dtype=torch.float64))
    p.grad = torch.tensor([[1e200, 1e200, 1.0, 2.0]], dtype=torch.float64)  # in float32 inf, and inf * 0 = NaN
    opt = GSM([p], lr=1e-200, nonzeros=2)
    opt.step()
    assert opt.active(p).tolist() == [[True, True, False, False]]
    assert p[0].tolist() == pytest.approx([0.0, -1.0, 2.0, 3.0])


# ------------------------------------------------------------------------------------------------ what can be read


def test_before_the_first_step_nothing_is_active() -> None:
    for compression in (1, 60):
        model = net()
        opt = GSM(model.parameters(), compression=compression)
        assert opt.threshold == 0 and opt.active_mask().shape == (272,) and not opt.active_mask().any()
        assert opt.active(model[2].weight).shape == (5, 16) and opt.active(model[2].weight).dtype == torch.bool


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_mask_stays_true_until_the_next_step(nesterov: bool) -> None:
    model = net()
    opt = GSM(model.parameters(), **HYPER, compression=6, foreach=True, nesterov=nesterov)
    backward(model, 0)
    expected = naive_mask(matrices(model), 45)
    opt.step()
    backward(model, 1)
    with torch.no_grad():
        model[0].weight.zero_()
    opt.compression = 3
    assert torch.equal(opt.active_mask(), expected)
    taken = opt.active_mask().clone()
    opt.step()
    assert torch.equal(taken, expected) and int(opt.active_mask().sum()) == 90 - max(0, 90 - 80)


def test_names_and_the_switch_do_not_disturb_torch() -> None:
    model = net()
    opt = GSM(param_groups(model), **HYPER, compression=60)
    assert isinstance(opt, SGD)
    assert "compression: 60" in repr(opt)
    assert [g["names"] for g in opt.state_dict()["param_groups"]] == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    assert [g["weight_decay"] for g in opt.param_groups] == [1e-2, 0]


# ------------------------------------------------------------------------------------------------ candidates


@pytest.mark.parametrize("kernel", KERNELS)
def test_only_candidates_become_active(kernel: str) -> None:
    a, b = net(), net()
    sgd, gsm = (
        SGD(a.parameters(), **HYPER, **KERNELS[kernel]),
        GSM(b.parameters(), **HYPER, **KERNELS[kernel], nonzeros=30),
    )
    allowed = torch.rand(gsm.weights, generator=torch.Generator().manual_seed(1)) < 0.2
    gsm.candidates = allowed
    for step in range(10):
        backward(a, step)
        backward(b, step)
        for p, m in zip(matrices(a), allowed.split([p.numel() for p in matrices(a)]), strict=True):
            p.grad = torch.where(m.view(p.shape), p.grad, 0.0)
        mask = masked_step(sgd, matrices(a), 30)
        with GradientsKept(b):
            gsm.step()
        assert torch.equal(gsm.active_mask(), mask) and not (mask & ~allowed).any()
        assert_same(a, sgd, b, gsm)
    gsm.candidates = None
    backward(b, 10)
    expected = naive_mask(matrices(b), 30)
    gsm.step()
    assert torch.equal(gsm.active_mask(), expected) and (expected & ~allowed).any()


def test_a_frozen_active_set() -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, nonzeros=30)
    backward(model, 0)
    gsm.step()
    frozen = gsm.candidates = gsm.active_mask()
    for step in range(1, 5):
        backward(model, step)
        gsm.step()
        assert torch.equal(gsm.active_mask(), frozen)


@pytest.mark.parametrize("mask", [[True], torch.ones(3, dtype=torch.bool), torch.ones(272), "all"])
def test_candidates_must_fit(mask: Any) -> None:
    gsm = GSM(net().parameters(), **HYPER, nonzeros=30)
    with pytest.raises(ValueError, match="candidates must be None or a bool tensor of shape"):
        gsm.candidates = mask
    assert gsm.candidates is None
