"""PyTorch's own database of optimizers: every input and every error of its SGD, with GSM as one more optimizer.

At C = 1 what SGD does, to the bit. At C = 3 the same on masked gradients, but for what assumes ungated descent: sparse
gradients of a tensor all of which is to be found (a descent down to zero), which is left out here.
"""

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("expecttest")  # which PyTorch's module of its tests imports
common = pytest.importorskip("torch.testing._internal.common_optimizers")

from gsm_lab.optim import GSM  # noqa: E402
from tests.optim.oracle import assert_equal, assert_same, masked_step  # noqa: E402

SGD = torch.optim.SGD
INFO = next(info for info in common.optim_db if info.optim_cls is SGD)
INPUTS = INFO.optim_inputs_func(device="cpu")
KERNELS = {"default": {}, "foreach": {"foreach": True}, "loop": {"foreach": False}, "fused": {"fused": True}}
ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)
every_input = pytest.mark.parametrize("kwargs", [i.kwargs for i in INPUTS], ids=[i.desc for i in INPUTS])
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 2)).to(dtype)


def backward(model: nn.Module, step: int) -> None:
    dtype = next(model.parameters()).dtype
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float32).to(dtype)
    model.zero_grad()
    model(x).square().sum().backward()


def matrices(model: nn.Module) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.ndim > 1]


def side_by_side(a: nn.Module, sgd: SGD, b: nn.Module, gsm: GSM, steps: range) -> None:
    for step in steps:
        backward(a, step)
        backward(b, step)
        if gsm.nonzeros < gsm.weights:
            masked_step(sgd, matrices(a), gsm.nonzeros)
        else:
            sgd.step()
        gsm.step()
        assert_same(a, sgd, b, gsm)


@every_input
@every_kernel
@pytest.mark.parametrize("compression", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps(kwargs: dict[str, Any], kernel: str, compression: float, dtype: torch.dtype) -> None:
    """Also with other settings in the second group, and a schedule; and what goes on after a state is taken over."""
    hyper = {**kwargs, **KERNELS[kernel]}

    def made(kind: Any, model: nn.Module, **more: Any) -> torch.optim.SGD:
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}]
        return kind(groups, **hyper, **more)

    a, b = net(dtype), net(dtype)
    sgd, gsm = made(SGD, a), made(GSM, b, compression=compression)
    # (schedules of torch change a tensor in place, and here both optimizers have the same one)
    shared = isinstance(kwargs.get("lr"), torch.Tensor)
    plans = [] if shared else [plan(opt) for plan in INFO.scheduler_inputs[1] for opt in (sgd, gsm)]
    for step in range(4):
        side_by_side(a, sgd, b, gsm, range(step, step + 1))
        for plan in plans:
            plan.step()
    assert repr(gsm).startswith("GSM (")
    c = net(dtype, seed=1)
    other = made(GSM, c, compression=2)
    file = io.BytesIO()
    torch.save(gsm.state_dict(), file)
    file.seek(0)
    c.load_state_dict(b.state_dict())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.compression == compression
    side_by_side(a, sgd, c, other, range(4, 6))


@every_input
@pytest.mark.parametrize("compression", [1, 3])
def test_a_copy_goes_on_alone(kwargs: dict[str, Any], compression: float) -> None:
    model = net()
    gsm = GSM(model.parameters(), **kwargs, compression=compression)
    backward(model, 0)
    gsm.step()
    other, its = copy.deepcopy((model, gsm))
    for step in range(1, 3):
        for m, opt in ((model, gsm), (other, its)):
            backward(m, step)
            opt.step()
        assert_same(model, gsm, other, its)


@every_input
@pytest.mark.parametrize("kernel", ["default", "foreach", "loop"])
def test_complex_parameters(kwargs: dict[str, Any], kernel: str) -> None:
    weights = [nn.Parameter(torch.ones(3, 4, dtype=torch.complex64)) for _ in range(2)]
    opts = [kind([p], **kwargs, **KERNELS[kernel]) for kind, p in zip((SGD, GSM), weights, strict=True)]
    for step in range(3):
        grad = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(step))
        for p, opt in zip(weights, opts, strict=True):
            p.grad = grad.clone()
            opt.step()
    assert torch.equal(*weights)


@pytest.mark.parametrize("kernel", ["default", "foreach", "loop"])
@pytest.mark.parametrize("compression", [1, 3])
def test_sparse_gradients(kernel: str, compression: float) -> None:
    """With the settings that the database has for them; at C = 3 against dense ones that are masked."""
    hyper, _ = INFO.metadata_for_sparse
    weights = [nn.Parameter(torch.linspace(-1, 1, 12).view(6, 2)) for _ in range(2)]
    opts = [SGD(weights[:1], **hyper, **KERNELS[kernel])]
    opts.append(GSM(weights[1:], **hyper, **KERNELS[kernel], compression=compression))
    for step in range(4):
        grad = torch.zeros(6, 2)
        grad[[step, 5]] = torch.randn(2, 2, generator=torch.Generator().manual_seed(step))
        weights[0].grad, weights[1].grad = grad, grad.to_sparse(1)
        if compression > 1:
            masked_step(opts[0], weights[:1], 4)
        else:
            opts[0].step()
        opts[1].step()
        torch.testing.assert_close(*weights)


@pytest.mark.parametrize("error", ERRORS, ids=[e.optimizer_error_input.desc for e in ERRORS])
@pytest.mark.parametrize("compression", [1, 3])
def test_errors_are_those_of_sgd(error: Any, compression: float) -> None:
    given, seen = error.optimizer_error_input, []
    for kind, more in ((SGD, {}), (GSM, {"compression": compression})):
        params = given.params if given.params is not None else [nn.Parameter(torch.randn(2, 2))]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one of the errors is a warning
            with pytest.raises(error.error_type, match=error.error_regex) as caught:
                kind(copy.deepcopy(params), **given.kwargs, **more)
        seen.append(caught.type)
    assert seen[0] is seen[1]


@every_input
@pytest.mark.parametrize("kernel", ["default", "foreach"])
def test_kernels_agree(kwargs: dict[str, Any], kernel: str) -> None:
    """Fused, foreach and the loop end at the same weights, to rounding, with one active set."""
    ends = []
    for chosen in (kernel, "loop", "fused"):
        model = net(torch.float64)
        gsm = GSM(model.parameters(), **kwargs, **KERNELS[chosen], compression=3)
        for step in range(4):
            backward(model, step)
            gsm.step()
        ends.append((list(model.parameters()), gsm.active_mask()))
    for weights, active in ends[1:]:
        assert torch.equal(active, ends[0][1])
        for p, q in zip(weights, ends[0][0], strict=True):
            torch.testing.assert_close(p, q)


def test_hooks_survive_where_torch_keeps_them() -> None:
    """Pre-hooks and post-hooks of step, state_dict and load_state_dict, in torch's own order."""
    seen: list[list[str]] = []
    for kind in (SGD, GSM):
        model, calls = net(), []
        opt = kind(model.parameters(), lr=0.1)
        opt.register_step_pre_hook(lambda *_, calls=calls: calls.append("pre"))
        opt.register_step_post_hook(lambda *_, calls=calls: calls.append("post"))
        opt.register_state_dict_pre_hook(lambda *_, calls=calls: calls.append("state pre"))
        opt.register_state_dict_post_hook(lambda *_, calls=calls: calls.append("state post"))
        opt.register_load_state_dict_pre_hook(lambda *_, calls=calls: calls.append("load pre"))
        opt.register_load_state_dict_post_hook(lambda *_, calls=calls: calls.append("load post"))
        backward(model, 0)
        opt.step()
        opt.load_state_dict(opt.state_dict())
        backward(model, 1)
        opt.step()
        seen.append(calls)
    assert seen[0] == seen[1] and len(seen[0]) == 8


def test_non_empty_and_removed_parameters() -> None:
    """A parameter without entries, one without a gradient, and one of one number: as SGD takes them."""
    runs = []
    for kind, more in ((SGD, {}), (GSM, {"compression": 1}), (GSM, {"compression": 2})):
        weights = [nn.Parameter(torch.ones(n)) for n in ((0, 3), (2, 2), (), (1, 1))]
        opt = kind(weights, lr=0.1, momentum=0.9, **more)
        for _ in range(2):
            for p in (weights[0], weights[2], weights[3]):
                p.grad = torch.ones_like(p)
            opt.step()
        runs.append([p.detach() for p in weights])
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])  # one of two passes, and one has a gradient
