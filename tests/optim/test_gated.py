"""GSM through torch's other doors: exchanged parameters, copies, compile, complex, sparse, settings by group."""

import copy
import gc
import math
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab.optim import GSM, param_groups
from gsm_lab.optim.fused import loader
from tests.optim.oracle import HYPER, SGD, assert_equal, assert_same, backward, masked_step, matrices, naive_mask, net

BOTH = pytest.mark.parametrize("fused", [True, None], ids=["fused", "default"])


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here is run with the compiled passes and without."""
    if request.param == "torch":
        monkeypatch.setattr(loader, "compiled", lambda name: None)


def exchange(model: nn.Module, opt: torch.optim.Optimizer, dtype: torch.dtype = torch.float32) -> dict[Tensor, Tensor]:
    """Every parameter for a copy of it, in the model and in the groups, as FSDP2 and master weights are put there."""
    new = {p: nn.Parameter(p.detach().clone().to(dtype)) for p in model.parameters()}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            module._parameters[name] = new[p]
    for group in opt.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    return new


# ------------------------------------------------------------------------------------------------ exchanged


@BOTH
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exchanged_parameters_are_gated_as_by_an_optimizer_made_afterwards(
    fused: bool | None, steps: int, dtype: torch.dtype
) -> None:
    a = net()
    gsm = GSM(param_groups(a), **HYPER, compression=6, fused=fused)
    for step in range(steps):
        backward(a, step)
        gsm.step()
    new = exchange(a, gsm, dtype)
    old = {p: p.detach().clone() for p in new}
    kept = {p: gsm.state[p]["momentum_buffer"].clone() for p in new if p in gsm.state}
    assert not gsm.active_mask().any() and gsm.weights == 272
    b = copy.deepcopy(a)
    again = GSM(param_groups(b), **HYPER, compression=6, fused=fused)
    for step in range(5, 9):
        backward(a, step)
        backward(b, step)
        gsm.step()
        again.step()
        assert_same(a, gsm, b, again)
        assert torch.equal(gsm.active_mask(), again.active_mask()) and int(gsm.active_mask().sum()) == 45
    assert_equal(old, old.values())  # who is in no group any more does not move, nor does what was its momentum
    assert_equal((gsm.state[p]["momentum_buffer"] for p in kept), kept.values())


@BOTH
def test_one_parameter_exchanged_for_another_of_one_shape(fused: bool | None) -> None:
    """Only one entry, equal to the old one: to compare tensors would not tell them apart."""
    weights = [nn.Parameter(torch.ones(1, 1)) for _ in range(3)]
    opt = GSM(weights[:2], lr=0.1, momentum=0.9, nonzeros=1, fused=fused)
    for p in weights:
        p.grad = torch.ones(1, 1)
    opt.step()
    opt.param_groups[0]["params"][0] = weights[2]
    opt.step()
    assert [round(p.item(), 6) for p in weights] == [0.9, 1.0, 0.9]


def test_data_of_another_size_is_another_gate() -> None:
    """As channel pruning does it: the same Parameter with fewer rows."""
    p, other = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.full((4, 4), 0.5))
    opt = GSM([p, other], lr=0.1, compression=4, fused=True)
    for rows in (6, 3, 5):
        p.data = torch.ones(rows, 4)
        p.grad, other.grad = torch.ones(rows, 4), torch.ones(4, 4)
        assert opt.weights == 4 * rows + 16 and opt.nonzeros == opt.weights // 4
        opt.step()
        assert int(opt.active(p).sum()) == opt.nonzeros and opt.active(p).shape == p.shape
    p.data = torch.ones(2, 4)
    p.grad, other.grad = torch.ones(2, 4), torch.ones(4, 4)
    opt.step()  # also where nobody has looked meanwhile
    assert int(opt.active_mask().sum()) == 24 // 4


@BOTH
@pytest.mark.parametrize("budget", [{"compression": 5}, {"nonzeros": 48}])
def test_a_lazy_module_competes_from_its_first_batch_on(fused: bool | None, budget: dict[str, int]) -> None:
    torch.manual_seed(0)
    a = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(5))
    gsm = GSM(a.parameters(), **HYPER, **budget, fused=fused)
    gsm.step()  # nothing to do yet
    assert gsm.weights == 0
    a(torch.zeros(1, 12))
    b = copy.deepcopy(a)
    sgd = SGD(b.parameters(), **HYPER, fused=fused)
    for step in range(3):
        for model in (a, b):
            backward(model, step)
        q = 48 if "nonzeros" in budget else 272 // 5
        masked_step(sgd, matrices(b), q)
        gsm.step()
        assert_same(a, gsm, b, sgd)
        assert gsm.weights == 272 and int(gsm.active_mask().sum()) == q
    late = nn.LazyLinear(2)
    gsm = GSM(late.parameters(), nonzeros=48)
    late(torch.zeros(1, 3))
    late.weight.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match="nonzeros must be a whole number from 1 to 6"):
        gsm.step()


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.1", None, True, [0.1], torch.tensor(math.nan)])
@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
def test_settings_that_are_no_finite_numbers_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        GSM(net().parameters(), **{name: bad})
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        GSM([{"params": list(net().parameters()), name: bad}])
    model = net()
    gsm = GSM(param_groups(model), **HYPER, compression=4, fused=True)
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        gsm.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], name: bad})
    assert len(gsm.param_groups) == 2 and gsm.weights == 272
    backward(model, 0)
    before = gsm.param_groups[1][name]
    gsm.param_groups[1][name] = bad
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} of group 1 must be a finite number"):
            gsm.step()
    assert_equal(model.parameters(), net().parameters())
    assert not gsm.state
    gsm.param_groups[1][name] = before
    gsm.step()
    assert int(gsm.active_mask().sum()) == 68


def test_a_learning_rate_that_becomes_nan_in_its_tensor() -> None:
    model, rate = net(), torch.tensor(0.1)
    gsm = GSM(model.parameters(), lr=rate, compression=4)
    backward(model, 0)
    gsm.step()
    rate.fill_(math.nan)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="lr of group 0 must be a finite number"):
        gsm.step()
    assert_equal(model.parameters(), before)
    gsm.param_groups[0]["lr"] = torch.ones(2)
    with pytest.raises(ValueError, match="Tensor lr of group 0 must be 1-element"):
        gsm.step()
    gsm.param_groups[0]["lr"] = np.float32(0.1)  # numbers of other libraries are numbers
    gsm.step()


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
@BOTH
def test_a_budget_set_in_any_group_is_that_of_the_model(which: list[int], fused: bool | None) -> None:
    model = net()
    gsm = GSM(param_groups(model), **HYPER, compression=4, fused=fused)
    for name, value, q in (("compression", 8, 34), ("nonzeros", 11, 11), ("compression", 2.5, 108)):
        for i in which:
            gsm.param_groups[i][name] = value
        backward(model, 0)
        gsm.step()
        assert int(gsm.active_mask().sum()) == q == gsm.nonzeros
        assert [g[name] for g in gsm.param_groups] == [value] * 2
    for i in which:
        gsm.param_groups[i]["smoothing"] = 0.5
    assert gsm.smoothing == 0.5
    backward(model, 1)
    gsm.step()
    assert all("gradient_average" in gsm.state[p] for p in matrices(model))
    gsm.param_groups[which[-1]]["compression"] = math.nan
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="compression must be a finite number >= 1"):
        gsm.step()
    gsm.param_groups[0]["compression"], gsm.param_groups[1]["compression"] = 3, 5
    with pytest.raises(ValueError, match="compression is one for the whole model, got 3 and 5"):
        gsm.step()
    assert_equal(model.parameters(), before)
    gsm.compression = 3  # and the way out
    assert gsm.nonzeros == 90


def test_a_budget_in_the_groups_that_gsm_is_made_of() -> None:
    first = GSM(param_groups(net()), compression=8)
    assert GSM(first.param_groups, lr=0.1).compression == 8
    with pytest.raises(ValueError, match="compression is one for the whole model, got 30 and in a group 8"):
        GSM(first.param_groups, lr=0.1, compression=30)
    first.add_param_group({"params": [nn.Parameter(torch.ones(4, 4))], "compression": 9})
    assert first.nonzeros == 288 // 9
    with pytest.raises(ValueError, match="nonzeros must be"):
        first.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "nonzeros": 1000})
    assert len(first.param_groups) == 3 and first.nonzeros == 288 // 9


def test_a_group_that_is_refused_leaves_the_gate_as_it_was() -> None:
    model, gsm = straight(2, "candidates")
    said = gsm.active_mask().clone(), gsm.threshold, gsm.candidates.clone()
    complex_one = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    for group, what in (
        ({"params": [nn.Parameter(torch.ones(2, 2))], "nonzeros": 1000}, "nonzeros must be"),
        ({"params": [complex_one]}, "compression must be 1 where complex"),
        ({"params": [model[0].weight]}, "more than one"),
        ({"params": [nn.Parameter(torch.ones(2, 2))], "smoothing": 2.0}, "smoothing must be"),
    ):
        with pytest.raises(ValueError, match=what):
            gsm.add_param_group(group)
        assert torch.equal(gsm.active_mask(), said[0]) and gsm.threshold == said[1] > 0
        assert torch.equal(gsm.candidates, said[2]) and len(gsm.param_groups) == 2
    backward(model, 2)
    gsm.step()
    assert not (gsm.active_mask() & ~said[2]).any()


# ------------------------------------------------------------------------------------------------ copies


def straight(steps: int, kind: str) -> tuple[nn.Module, GSM]:
    model = net()
    gsm = GSM(param_groups(model), **HYPER, compression=6, fused=True, smoothing=0.5 * (kind == "smoothed"))
    for step in range(steps):
        if step == 1 and kind == "joined":
            gsm.add_param_group({"params": [nn.Parameter(torch.ones(3, 4))]})
        backward(model, step)
        gsm.step()
    if kind == "candidates":
        gsm.candidates = torch.rand(272, generator=torch.Generator().manual_seed(0)) < 0.3
    elif kind == "frozen":
        gsm.candidates = gsm.active_mask()
    return model, gsm


@pytest.mark.parametrize("kind", ["plain", "smoothed", "joined", "candidates", "frozen"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copy_acts_like_the_original_and_shares_nothing(way: Any, steps: int, kind: str) -> None:
    original = straight(steps, kind)
    model, gsm = way(original)
    assert torch.equal(gsm.active_mask(), original[1].active_mask()) and gsm.threshold == original[1].threshold
    if original[1].candidates is not None:
        assert torch.equal(gsm.candidates, original[1].candidates)
    for step in range(10, 13):
        for net_now, opt in (original, (model, gsm)):
            backward(net_now, step)
            opt.step()
        assert_same(*original, model, gsm)
        assert torch.equal(gsm.active_mask(), original[1].active_mask()) and gsm.threshold == original[1].threshold
    before = [p.detach().clone() for p in original[0].parameters()], original[1].active_mask().clone()
    backward(model, 20)
    gsm.compression = 2
    gsm.step()
    assert_equal(original[0].parameters(), before[0])
    assert torch.equal(original[1].active_mask(), before[1]) and original[1].compression == 6


def test_a_state_goes_to_sgd_and_back() -> None:
    model, gsm = straight(3, "candidates")
    sgd = SGD(param_groups(model), lr=1.0)
    sgd.load_state_dict(gsm.state_dict())
    assert "gate" not in gsm.state_dict()
    twin = copy.deepcopy(model)
    other = GSM(param_groups(twin), lr=1.0, compression=3)
    other.load_state_dict(sgd.state_dict())
    assert other.compression == 6  # SGD has carried it


@pytest.mark.parametrize("compression", [1, 6])
@pytest.mark.parametrize("kernel", [{"fused": True}, {"foreach": True, "nesterov": True}, {}])
def test_an_optimizer_that_is_let_go_is_freed_at_once(kernel: dict[str, bool], compression: float) -> None:
    model = net()
    gsm = GSM(model.parameters(), **HYPER, compression=compression, **kernel)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(gsm), weakref.ref(gsm._gate())
        backward(model, 0)
        gsm.step()
        other, its = copy.deepcopy(gsm), []
        its.append(weakref.ref(other))
        del gsm, other
        assert [ref() for ref in (*gone, *its)] == [None] * 3
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------ kinds of tensors


@pytest.mark.parametrize("hyper", [{}, {"momentum": 0.9}, {"weight_decay": 0.1, "maximize": True}, {"foreach": True}])
def test_complex_tensors(hyper: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (nn.Parameter(torch.ones(5, 5, dtype=torch.complex64)) for _ in range(2))
    real, twin = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    groups = [{"params": [a], "prunable": False}, {"params": [real]}]
    opts = [GSM([b], lr=0.1, **hyper), GSM(groups, lr=0.1, **hyper, compression=4), SGD([twin], lr=0.1, **hyper)]
    c = nn.Parameter(a.detach().clone())
    opts.append(SGD([c], lr=0.1, **hyper))
    for _ in range(3):
        a.grad = torch.randn(5, 5, dtype=torch.complex64, generator=random)
        b.grad, c.grad = a.grad.clone(), a.grad.clone()
        real.grad = torch.randn(4, 4, generator=random)
        twin.grad = torch.where(naive_mask([real], 4).view(4, 4), real.grad, 0)
        for opt in opts:
            opt.step()
    assert torch.equal(a, c) and torch.equal(b, c) and torch.equal(real, twin)
    a.grad[1, 2] = complex(0, math.inf)
    with pytest.raises(FloatingPointError, match="parameter 0 of group 0"):
        opts[1].step()


def test_complex_tensors_that_compete_are_refused_by_name() -> None:
    p = nn.Parameter(torch.ones(5, 5, dtype=torch.complex64))
    said = r"complex tensors compete, got .*parameter 0 of group 0 \(shape \(5, 5\)\) is torch.complex64"
    with pytest.raises(ValueError, match=said):
        GSM([p], compression=3)
    opt = GSM([p])
    with pytest.raises(ValueError, match=said):
        opt.compression = 3
    assert opt.compression == 1
    opt = GSM([nn.Parameter(torch.ones(3, 3))], compression=3)
    with pytest.raises(ValueError, match="complex tensors compete"):
        opt.add_param_group({"params": [p]})
    assert len(opt.param_groups) == 1 and opt.weights == 9


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("smoothing", [0, 0.5])
@pytest.mark.parametrize("compression", [1, 3])
def test_sparse_gradients_compete(momentum: float, smoothing: float, compression: float) -> None:
    """Against the same gradients, dense: what is not there is zero."""
    nets = [nn.ModuleList([nn.Embedding(9, 4, sparse=s), nn.Linear(4, 3)]) for s in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [GSM(m.parameters(), lr=0.1, momentum=momentum, compression=compression, smoothing=smoothing) for m in nets]
    for step in range(4):
        x = torch.randint(0, 9, (5,), generator=torch.Generator().manual_seed(step))
        for model, opt in zip(nets, opts, strict=True):
            opt.zero_grad()
            model[1](model[0](x)).square().sum().backward()
            assert model[0].weight.grad.is_sparse == (model is nets[0])
            opt.step()
            assert model[0].weight.grad.is_sparse == (model is nets[0])
        assert torch.equal(opts[0].active_mask(), opts[1].active_mask())
        assert compression == 1 or int(opts[0].active_mask().sum()) <= 48 // 3
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)
    nets[0][0].weight.grad = torch.sparse_coo_tensor([[2]], torch.full((1, 4), math.nan), (9, 4), check_invariants=True)
    with pytest.raises(FloatingPointError, match="nan"):
        opts[0].step()


@BOTH
def test_compiled_steps(fused: bool | None) -> None:
    """`torch.compile(opt.step)`, and a training step that holds one: the graph breaks there, and all is as without."""
    pytest.importorskip("torch._dynamo")
    models = [net() for _ in range(3)]
    opts = [GSM(m.parameters(), **HYPER, compression=6, fused=fused) for m in models]
    calls: list[int] = []
    for opt in opts:
        opt.register_step_post_hook(lambda *_: calls.append(1))
    compiled = torch.compile(opts[1].step, backend="eager")
    x, y = torch.randn(10, 12), torch.arange(10) % 5

    def train() -> None:
        opts[2].zero_grad()
        cross_entropy(models[2](x), y).backward()
        opts[2].step()

    whole = torch.compile(train, backend="eager")
    for _ in range(3):
        for model, step in ((models[0], opts[0].step), (models[1], compiled)):
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            step()
        whole()
    assert_same(models[0], opts[0], models[1], opts[1])
    assert_same(models[0], opts[0], models[2], opts[2])
    assert all(int(opt.active_mask().sum()) == opt.nonzeros for opt in opts) and len(calls) == 9
    torch._dynamo.reset()


@pytest.mark.parametrize("hyper", [{}, {"weight_decay": 0.1, "maximize": True}, {"nesterov": True}])
@pytest.mark.parametrize("compression", [1, 3])
def test_a_differentiable_step(compression: float, hyper: dict[str, Any]) -> None:
    """What the weights after a step depend on, against SGD on masked gradients: who is shut out has no say."""
    start = [torch.linspace(a, b, 12, dtype=torch.float64).view(3, 4) for a, b in ((-1, 2), (3, -1), (0, 1))]
    seen = []
    for kind in (GSM, SGD):
        w, g, z = (x.clone().requires_grad_() for x in start)
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        p = w.clone()
        p.retain_grad()
        p.grad, mask = g.clone(), torch.ones(3, 4, dtype=torch.bool)
        if compression > 1:
            mask = naive_mask([p], 4).view(3, 4)
        if kind is SGD:
            p.grad = p.grad * mask
        budget = {"compression": compression} if kind is GSM else {}
        opt = kind([p], lr=rate, momentum=0.9, differentiable=True, **hyper, **budget)
        opt.state[p]["momentum_buffer"] = z.clone()
        opt.step()
        seen.append([p.detach(), *torch.autograd.grad(p.square().sum(), (rate, w, g, z))])
        assert not seen[-1][3][~mask].any() and seen[-1][3][mask].all()
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


@BOTH
def test_modes(fused: bool | None) -> None:
    """Under no_grad, inference mode and flushed denormals as without; steps outside go on afterwards."""
    models = [net() for _ in range(3)]
    opts = [GSM(m.parameters(), **HYPER, compression=6, fused=fused) for m in models]
    for step in range(4):
        for model, opt, mode in zip(models, opts, (None, torch.no_grad, torch.inference_mode), strict=True):
            backward(model, step)
            if mode is None or step in (0, 3):
                opt.step()
            else:
                with mode():
                    opt.step()
    assert_same(models[0], opts[0], models[1], opts[1])
    assert_same(models[0], opts[0], models[2], opts[2])


def test_weights_made_in_inference_mode_are_left_to_torch() -> None:
    """They count no versions, which the two passes would have to raise."""
    with torch.inference_mode():
        p = nn.Parameter(torch.ones(4, 4))
    q = nn.Parameter(torch.ones(4, 4))
    p.grad, q.grad = torch.ones(4, 4), torch.ones(4, 4)
    opt = GSM([p, q], lr=0.1, momentum=0.9, compression=3, fused=True)
    opt.step()
    assert int(opt.active_mask().sum()) == 10 == int((p != 1).sum() + (q != 1).sum())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")
def test_flushed_denormals_have_no_metric() -> None:
    p = nn.Parameter(torch.tensor([[1e-20, 2e-20, 3e-20, 1.0]]))
    p.grad = torch.tensor([[1e-24, 1e-24, 1e-10, 1e-10]])
    opt = GSM([p], lr=0.1, momentum=0.5, nonzeros=3, fused=True)
    torch.set_flush_denormal(True)
    try:
        opt.step()
        active = opt.active(p)
    finally:
        torch.set_flush_denormal(False)
    assert active.tolist() == [[False, False, True, True]]
