"""The cut where it follows an optimizer or a run, training after it, and what cannot be cut."""

import copy
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import gsm_lab as gl
from gsm_lab.optim import GSM, cut, keep_masks, param_groups, prunable

quiet = pytest.mark.filterwarnings("ignore:.* left no weight in layer")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh())
    model.table = nn.Parameter(torch.randn(3, 4))
    model.head = nn.Linear(7, 3)
    return model


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(48, 6, generator=random), torch.arange(48) % 3


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int) -> None:
    x, y = batch()
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y).backward()
        opt.step()


def largest(tensors: list[Tensor], q: int) -> list[Tensor]:
    """Where the q greatest |w| of all tensors are, by `torch.topk`."""
    flat = torch.cat([p.detach().abs().flatten() for p in tensors])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.topk(q).indices] = True
    return [part.view(p.shape) for p, part in zip(tensors, mask.split([p.numel() for p in tensors]), strict=True)]


def data() -> gl.Dataset:
    x, y = batch()
    return gl.Dataset(x, y, x[:24], y[:24], name="mine")


KNOBS: dict[str, Any] = {"batch_size": 16, "pretrain": 1, "epochs": 20, "compression": 5, "lr": 0.1, "momentum": 0.9}

# ------------------------------------------------------------------------------------------ by an optimizer's groups


@quiet
def test_the_cut_follows_the_groups_and_the_budget_of_the_optimizer() -> None:
    model = net()
    before = copy.deepcopy(model)
    kept_out = [model.head.weight, model[0].bias, model[2].bias, model.head.bias]
    groups = [
        {"params": [model[2].weight]},
        {"params": kept_out, "prunable": False},
        {"params": [model.table, model[0].weight]},
    ]
    opt = GSM(groups, lr=0.1, compression=4)
    competing = {"2.weight": model[2].weight, "table": model.table, "0.weight": model[0].weight}
    n = 56 + 12 + 48
    for given, q in [({}, n // 4), ({"nonzeros": 11}, 11), ({"compression": 2}, n // 2)]:
        masks = keep_masks(model, **given, optimizer=opt)
        assert list(masks) == list(competing)  # in the optimizer's order, which is that of its masks
        for mask, expected in zip(masks.values(), largest(list(competing.values()), q), strict=True):
            assert torch.equal(mask, expected)
    masks = keep_masks(model, optimizer=opt)
    assert cut(model, optimizer=opt) == opt.nonzeros == n // 4
    for name, p in model.named_parameters():
        was = before.get_parameter(name)
        assert torch.equal(p, was * masks[name] if name in masks else was)
    opt.nonzeros = 5
    assert cut(model, optimizer=opt) == 5
    assert cut(model, optimizer=types.SimpleNamespace(optimizer=opt), nonzeros=3) == 3  # in a wrapper


def test_an_optimizer_that_does_not_fit_changes_nothing() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    other = net(1)
    for optimizer, error, said in [
        (torch.optim.SGD(model.parameters()), TypeError, "optimizer must be a GSM, or wrap one .* got SGD"),
        (3, TypeError, "optimizer must be a GSM, or wrap one .* got 3"),
        (
            GSM(param_groups(other), compression=4),
            ValueError,
            r"none beside|shape \(8, 6\) that is none of the model's",
        ),
        (GSM([*model.parameters(), *other.parameters()], compression=4), ValueError, "that is none of the model's"),
        (GSM([{"params": model.parameters(), "prunable": False}], compression=1), ValueError, "no prunable weights"),
    ]:
        for call in (cut, keep_masks):
            with pytest.raises(error, match=said):
                call(model, optimizer=optimizer)
    opt = GSM(param_groups(model), compression=4)
    for given in ({"include": "table"}, {"exclude": "head"}):
        with pytest.raises(ValueError, match=r"^include and exclude must not be given with an optimizer"):
            cut(model, optimizer=opt, **given)
    with pytest.raises(ValueError, match="compression must be a finite number >= 1"):
        cut(model, float("nan"), optimizer=opt)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


# ------------------------------------------------------------------------------------------ training after the cut


@quiet
@pytest.mark.parametrize(
    "more",
    [
        *({}, {"fused": True}, {"foreach": True}, {"nesterov": True}, {"dampening": 0.5}, {"smoothing": 0.5}),
        *({"weight_decay": 0.1, "fused": True}, {"maximize": True}, {"dtype": torch.float64}),
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_what_was_cut_stays_cut(more: dict[str, Any]) -> None:
    more = dict(more)
    model = net().to(more.pop("dtype", torch.float32))
    opt = GSM(param_groups(model), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "compression": 4} | more)
    train(model, opt, 20)
    active = opt.active_mask()
    assert cut(model, optimizer=opt) == opt.nonzeros
    assert torch.equal(opt.active_mask(), active)  # that is of the last step
    weights = prunable(model)
    zero = {name: p == 0 for name, p in weights.items()}
    before = copy.deepcopy(model)
    train(model, opt, 30)
    assert all(bool((p[zero[name]] == 0).all()) for name, p in weights.items())
    assert any(not torch.equal(p, before.get_parameter(name)) for name, p in weights.items())  # what is left trains


def test_without_the_optimizer_its_momentum_brings_them_back() -> None:
    model = net()
    opt = GSM(param_groups(model), lr=0.05, momentum=0.9, weight_decay=1e-3, compression=4)
    train(model, opt, 20)
    assert cut(model, compression=4) == opt.nonzeros
    train(model, opt, 1)
    assert sum(int(p.count_nonzero()) for p in prunable(model).values()) > opt.nonzeros
    assert "momentum in it brings the weights back" in " ".join(cut.__doc__.split())  # as its documentation says


@quiet
@pytest.mark.parametrize("method", [*gl.methods.METHODS, "tickets"])
def test_what_a_run_has_cut_stays_cut(method: str) -> None:
    if method == "tickets":
        run = gl.methods.tickets.ticket("random", model=net(), data=data(), **KNOBS)
    else:
        run = gl.methods.build(method, model=net(), data=data(), **KNOBS)
    run.step(20)
    kept = run.cut()
    assert kept == run.nonzeros
    zero = [p == 0 for p in gl.methods.weights(run)]
    before = [p.clone() for p in gl.methods.weights(run)]
    run.step(15)
    assert all(bool((p[z] == 0).all()) for p, z in zip(gl.methods.weights(run), zero, strict=True))
    assert any(not torch.equal(p, was) for p, was in zip(gl.methods.weights(run), before, strict=True))


# ------------------------------------------------------------------------------------------ the same set in a run


def test_a_run_has_what_it_is_given_to_prune(tmp_path: Path) -> None:
    model = net()
    assert list(gl.Run(model, data(), **KNOBS).history.layers) == ["0.weight", "2.weight", "head.weight"]
    model = net()
    model[0].weight.requires_grad_(False)
    run = gl.Run(model, data(), include=["table"], exclude=[model.head], **KNOBS)
    assert list(run.history.layers) == ["table", "2.weight"] and run.opt.weights == 12 + 56
    assert list(keep_masks(run.model, optimizer=run.opt)) == ["table", "2.weight"]
    before = copy.deepcopy(model)
    run.step(30)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model.head.weight, before.head.weight) and model.head.weight.all()
    accuracy, head = run.evaluate(cut=True), model.head.weight.clone()
    run.save(tmp_path)
    assert run.cut() == run.nonzeros == 13
    assert run.evaluate() == run.evaluate(cut=True) == accuracy
    assert torch.equal(model.head.weight, head) and torch.equal(model[0].weight, before[0].weight)

    again = gl.Run.resume(tmp_path, model=net(), data=data())  # knows what competed, as old ones do
    assert again.history.layers == run.history.layers and again.evaluate(cut=True) == accuracy
    again.reset()
    assert list(again.history.layers) == ["table", "2.weight"]
    for method in ("magnitude", "gates"):
        rival = gl.methods.build(method, model=net(), data=data(), include="table", exclude="head*", **KNOBS)
        assert list(rival.history.layers) == ["table", "0.weight", "2.weight"]
    with pytest.raises(
        ValueError, match=r"^exclude names 'haed', and model Sequential has no such tensors; it has 'head'"
    ):
        gl.Run(net(), data(), exclude="haed", **KNOBS)


def test_a_run_of_a_named_model_and_its_resumption(tmp_path: Path) -> None:
    run = gl.Run("lenet300", "digits", exclude="fc3", pretrain=0, epochs=1, batch_size=500)
    run.step(2)
    run.save(tmp_path)
    again = gl.Run.resume(tmp_path)
    assert list(again.history.layers) == list(run.history.layers) == ["fc1.weight", "fc2.weight"]
    run.step(2)
    again.step(2)
    assert all(torch.equal(x, again.model.state_dict()[name]) for name, x in run.model.state_dict().items())
    with pytest.raises(ValueError, match=r"exclude names 'fc3', and model LeNet5 has no such tensors"):
        run.reset(model="lenet5")


# ------------------------------------------------------------------------------------------ what cannot be cut


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def by_hand(layer: nn.Linear) -> nn.Linear:
    """A weight that a hook computes, as in many a project."""
    raw = layer.weight
    del layer.weight
    layer.weight_raw, layer.weight = raw, 2 * raw.detach()
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * module.weight_raw))
    return layer


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own parametrisation": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "mask": lambda layer: prune.random_unstructured(layer, "weight", amount=0.5),
    "by hand": by_hand,
}
OUT: dict[str, Callable[[nn.Module], object]] = {
    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')": lambda layer: (
        parametrize.remove_parametrizations(layer, "weight")
    ),
    "torch.nn.utils.remove_weight_norm(layer, 'weight')": lambda layer: torch.nn.utils.remove_weight_norm(layer),
    "torch.nn.utils.remove_spectral_norm(layer, 'weight')": lambda layer: torch.nn.utils.remove_spectral_norm(layer),
    "torch.nn.utils.prune.remove(layer, 'weight')": lambda layer: prune.remove(layer, "weight"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("how", COMPUTED)
def test_a_kernel_that_is_computed_is_refused_by_name(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(COMPUTED[how](nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    doors = [prunable, param_groups, lambda m, **k: cut(m, 2, **k), lambda m, **k: keep_masks(m, 2, **k)]
    doors.append(lambda m, **k: gl.Run(m, data(), **KNOBS, **k))
    doors.append(lambda m, **k: gl.methods.build("magnitude", model=m, data=data(), **KNOBS, **k))
    if how in ("mask", "by hand", "old weight_norm"):  # which `copy.deepcopy` does not copy
        doors = doors[:4]
    for door in doors:
        with pytest.raises(
            ValueError, match=r"^kernel '0\.weight' is no parameter but computed .* exclude='0\.weight'$"
        ) as said:
            door(model)
    opt = GSM(model.parameters(), lr=0.1, compression=2)
    with pytest.raises(ValueError, match=r"^kernel '0\.weight' is no parameter"):
        cut(model, optimizer=opt)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    for exclude in ("0.weight", "0", model[0], "0.*"):
        assert list(prunable(model, exclude=exclude)) == ["2.weight"]
    assert (
        cut(model, 2, exclude="0") == 9 and cut(model, optimizer=GSM(param_groups(model, exclude="0"), nonzeros=5)) == 5
    )
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items() if name != "2.weight")
    assert model(batch()[0]).isfinite().all()
    if way := next((way for way in OUT if way in str(said.value)), None):
        frozen = copy.deepcopy(model) if parametrize.is_parametrized(model[0]) else None
        OUT[way](model[0])
        assert list(prunable(model)) == ["0.weight", "2.weight"]
        assert cut(model, nonzeros=20) == 20 and model(batch()[0]).isfinite().all()
        if frozen is not None:
            frozen[0].requires_grad_(False)
            assert list(prunable(frozen)) == ["2.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_only_kernels_that_are_computed_are_refused() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Embedding(5, 4)), nn.Linear(4, 4))
    parametrize.register_parametrization(model[1], "bias", Doubled())
    assert list(prunable(model)) == ["1.weight"]
    model.append(weight_norm(nn.LSTM(4, 3), "weight_hh_l0"))
    with pytest.raises(ValueError, match=r"kernel '2\.weight_hh_l0' is no parameter .*remove_weight_norm"):
        prunable(model)
    assert list(prunable(model, exclude="2.weight_hh_l0")) == ["1.weight"]  # that of a layer is one decision
    model[2] = parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight")
    with pytest.raises(ValueError, match=r"kernel '2\.in_proj_weight' is no parameter .*remove_parametrizations"):
        param_groups(model)


@pytest.mark.parametrize(
    "layer", [nn.LazyLinear(3), nn.LazyConv2d(3, 3), nn.LazyConvTranspose1d(3, 3), nn.LazyBatchNorm1d()]
)
def test_lazy_layers_want_a_batch_first(layer: nn.Module) -> None:
    for call in (prunable, param_groups, lambda m: cut(m, 2), lambda m: keep_masks(m, 2)):
        with pytest.raises(ValueError, match=r"lazy parameter, '1\.weight' of a Lazy\w+, .* call model\(x\) first"):
            call(nn.Sequential(nn.Linear(2, 2), layer))


def test_a_lazy_layer_that_has_seen_a_batch_is_like_any_other() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(4))
    model(torch.ones(2, 5))
    assert {name: p.shape for name, p in prunable(model).items()} == {"0.weight": (3, 5), "1.weight": (4, 3)}


def test_the_wrong_kind_of_model_is_named() -> None:
    run = gl.Run(net(), data(), **KNOBS)
    opt = GSM(param_groups(run.model), compression=4)
    for call in (
        prunable,
        param_groups,
        lambda m: cut(m, 2),
        lambda m: keep_masks(m, 2),
        lambda m: cut(m, optimizer=opt),
    ):
        with pytest.raises(TypeError, match=r"^model must be an nn.Module, got a Run \(its attribute model is one\)$"):
            call(run)
        with pytest.raises(TypeError, match=r"^model must be an nn.Module, got a str$"):
            call("lenet300")
        with pytest.raises(TypeError, match=r"^model must be an nn.Module, got a dict$"):
            call({})
    model = nn.Linear(3, 3, device="meta")
    assert param_groups(model)[0]["names"] == ["weight"]
    for call in (cut, keep_masks):
        with pytest.raises(ValueError, match=r"^weight 'weight' is on the meta device, where it has no values"):
            call(model, 2)


def test_complex_weights_are_cut_by_their_size() -> None:
    layer = nn.Linear(2, 2, dtype=torch.complex64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3 + 4j, 4], [-4.5j, 2 + 2j]]))
    assert cut(layer, nonzeros=2) == 2
    assert layer.weight.tolist() == [[3 + 4j, 0], [-4.5j, 0]]


# ------------------------------------------------------------------------------------------ a layer that is left empty


def test_layers_that_are_left_empty_are_named() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(7)))
    with torch.no_grad():
        for layer in list(model)[1:]:
            layer.weight.mul_(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_masks(model, nonzeros=3)  # is no cut
        assert cut(copy.deepcopy(model[:1]), nonzeros=3) == 3
    named = "'1.weight', '2.weight', '3.weight', '4.weight' and 2 more"
    with pytest.warns(UserWarning, match=f"^the cut left no weight in layer {named}$") as said:
        assert cut(model, nonzeros=3) == 3
    assert said[0].filename == __file__
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    run = gl.Run(model, data(), **KNOBS | {"pretrain": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.evaluate(cut=True)
        run.step(1)
    with pytest.warns(UserWarning, match=r"^the cut left no weight in layer '2\.weight'$"):
        run.cut()
