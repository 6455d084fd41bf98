"""Gradients that are not finite, which are refused by name before any weight changes."""

import math

import pytest
import torch
from torch import nn

from gsm_lab.optim import GSM, param_groups
from tests.optim.oracle import (
    HYPER,
    KERNELS,
    GradientsKept,
    assert_equal,
    assert_same,
    backward,
    net,
    passes,  # noqa: F401 - every test here is run with the compiled step and without
    snapshot,
)

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
