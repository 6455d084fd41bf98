"""`GSM` on every kind of parameter: strided, tied, listed twice, frozen, without a gradient."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab.optim import GSM, param_groups
from tests.optim.oracle import (
    HYPER,
    KERNELS,
    SGD,
    GradientsKept,
    assert_equal,
    assert_same,
    backward,
    masked_step,
    matrices,
    net,
    passes,  # noqa: F401 - every test here is run with the compiled step and without
)

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
