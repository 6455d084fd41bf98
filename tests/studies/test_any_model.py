"""The Taylor study on networks and losses as people write them, against brute force and plain double backward.

The oracle of a true change is a copy of the network with that weight at zero; that of the derivatives is
`torch.autograd.grad` at the copy's own parameters, one network at a time, nothing batched and nothing replaced.
"""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import gsm_lab as gl
from gsm_lab.models import copied
from gsm_lab.studies import communication, sensitivity, taylor
from gsm_lab.studies.curvature import diagonal
from gsm_lab.studies.exhaustive import _chain
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.steps import steps
from gsm_lab.training.derivatives import differentiable_twice


class Net(nn.Module):
    """A network from its layers, by name, and what becomes of an input."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def three(x: Tensor) -> Tensor:
    """Six inputs as a sequence of three."""
    return x.view(len(x), 3, 2)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), *(between or (nn.Tanh(),)), nn.Linear(5, 3))


def tied() -> nn.Module:
    net = Net(lambda s, x: s.c(torch.tanh(s.b(torch.tanh(s.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6),
              c=nn.Linear(6, 3))  # fmt: skip
    net.b.weight = net.a.weight
    return net


def tied_convolutions() -> nn.Module:
    net = Net(lambda s, x: s.o(torch.tanh(s.d(torch.tanh(s.c(x[:, None])))).flatten(1)),
              c=nn.Conv1d(1, 2, 3, padding=1), d=nn.ConvTranspose1d(2, 1, 3, padding=1), o=nn.Linear(6, 3))  # fmt: skip
    net.d.weight = net.c.weight
    return net


def known_by_another_name() -> nn.Module:
    net = Net(lambda s, x: s.o(torch.tanh(F.linear(torch.tanh(s.a(x)), s.others[0]))), a=nn.Linear(6, 6),
              o=nn.Linear(6, 3))  # fmt: skip
    net.others = [net.a.weight]
    return net


def hooked() -> nn.Module:
    net = mlp()
    net[0].register_forward_hook(lambda _, a, z: 2 * z + a[0][:, :5])
    return net


def with_backward_hook() -> nn.Module:
    net = mlp()
    net[0].register_full_backward_hook(lambda *_: None)
    return net


class Sign(torch.autograd.Function):
    """A straight-through estimator in the old form, without `setup_context` and without a rule for vmap."""

    @staticmethod
    def forward(ctx, w):
        return torch.sign(w)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def checkpointed(reentrant: bool) -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        return s.o(checkpoint(lambda z: torch.tanh(s.b(z)), torch.tanh(s.a(x)), use_reentrant=reentrant))

    return Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 5), o=nn.Linear(5, 3))


def attention() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        z = s.i(three(x))
        return s.o(s.t(z, z, z, need_weights=False)[0].mean(1))

    return Net(forward, i=nn.Linear(2, 4), t=nn.MultiheadAttention(4, 2, batch_first=True), o=nn.Linear(4, 3))


def causal() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        q = s.q(three(x))
        return s.o(F.scaled_dot_product_attention(q, q, q, is_causal=True).mean(1))

    return Net(forward, q=nn.Linear(2, 4), o=nn.Linear(4, 3))


def over_the_batch() -> nn.Module:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = torch.tanh(s.a(x))
        return s.o(torch.softmax(h @ h.T, 1) @ h)

    return Net(forward, a=nn.Linear(6, 5), o=nn.Linear(5, 3))


def experts() -> nn.Module:
    """Which layer a sample goes through depends on the sample."""
    return Net(lambda s, x: s.o(torch.stack([(s.a if row.sum() > 0 else s.b)(row) for row in x])), a=nn.Linear(6, 5),
               b=nn.Linear(6, 5), o=nn.Linear(5, 3))  # fmt: skip


def transposed() -> nn.Module:
    net = mlp()
    net[0].weight = nn.Parameter(torch.randn(6, 5).T * 0.4)
    return net


def channels_last() -> nn.Module:
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))
    return net.to(memory_format=torch.channels_last)


def first(net: nn.Module) -> nn.Module:
    return Net(lambda s, x: s.net(x), net=net)


NETS = {
    "tied": tied,
    "tied convolutions": tied_convolutions,
    "transposed use": lambda: Net(lambda s, x: s.o(torch.tanh(F.linear(torch.tanh(s.a(x)), s.a.weight.t()))),
                                  a=nn.Linear(6, 5), o=nn.Linear(6, 3)),
    "used before its module": lambda: Net(lambda s, x: s.o(torch.tanh(s.a(x))) + F.linear(x, s.o.weight),
                                          a=nn.Linear(6, 6), o=nn.Linear(6, 3)),
    "known by another name": known_by_another_name,
    "samples see each other": lambda: Net(lambda s, x: s.o((h := torch.tanh(s.a(x))) - h.mean(0)), a=nn.Linear(6, 5),
                                          o=nn.Linear(5, 3)),
    "attention over the batch": over_the_batch,
    "outputs see each other": lambda: Net(lambda s, x: (z := s.o(torch.tanh(s.a(x)))) - z.mean(0), a=nn.Linear(6, 5),
                                          o=nn.Linear(5, 3)),
    "batch statistics": lambda: mlp(nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU()),
    "in place": lambda: mlp(nn.ReLU(inplace=True)),
    "writes into its input": lambda: Net(lambda s, x: s.m(x.mul_(2)), m=mlp()),
    "hook": hooked,
    "backward hook": with_backward_hook,
    "straight through": lambda: Net(lambda s, x: s.o(0.2 * x @ Sign.apply(s.a.weight).T), a=nn.Linear(6, 5),
                                    o=nn.Linear(5, 3)),
    "checkpoint": lambda: checkpointed(False),
    "reentrant checkpoint": lambda: checkpointed(True),
    "attention": attention,
    "causal attention": causal,
    "encoder layer": lambda: Net(lambda s, x: s.o(s.t(s.i(three(x))).mean(1)), i=nn.Linear(2, 4),
                                 t=nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), o=nn.Linear(4, 3)),
    "LSTM": lambda: Net(lambda s, x: s.o(s.r(three(x))[0][:, -1]), r=nn.LSTM(2, 3, batch_first=True),
                         o=nn.Linear(3, 3)),
    "GRU cell": lambda: Net(lambda s, x: s.o(s.r(x[:, :3], s.r(x[:, 3:]))), r=nn.GRUCell(3, 3), o=nn.Linear(3, 3)),
    "returns float32": lambda: Net(lambda s, x: s.m(x).float(), m=mlp()),
    "softmax in float32": lambda: Net(lambda s, x: s.o(F.softmax(s.a(x), -1, dtype=torch.float32).to(x.dtype)),
                                      a=nn.Linear(6, 5), o=nn.Linear(5, 3)),
    "bfloat16 inside": lambda: Net(lambda s, x: s.m(x.to(torch.bfloat16)).float(), m=mlp().to(torch.bfloat16)),
    "constants in float32": lambda: Net(lambda s, x: s.o(torch.tanh(F.linear(s.a(x), torch.eye(5)))), a=nn.Linear(6, 5),
                                        o=nn.Linear(5, 3)),
    "experts": experts,
    "transposed weights": transposed,
    "channels last": channels_last,
    "random numbers": lambda: Net(lambda s, x: s.o(F.dropout(torch.tanh(s.a(x)), training=True)), a=nn.Linear(6, 5),
                                  o=nn.Linear(5, 3)),
    "frozen": lambda: first(mlp()).requires_grad_(False),
}  # fmt: skip
CHAINS = {  # whether each layer is evaluated by its units
    "in place": [True, True], "backward hook": [True, True], "transposed weights": [True, True],
    "softmax in float32": [False, True], "attention over the batch": [False, True], "tied": [False, True],
    "outputs see each other": [False, False], "samples see each other": [False, True], "hook": [False, True],
    "used before its module": [False, False], "random numbers": [False, False], "known by another name": [False, True],
}  # fmt: skip
NO_SAMPLES = {"samples see each other", "attention over the batch", "outputs see each other", "batch statistics",
              "random numbers"}  # fmt: skip


def problem(make, loss=None, y: Tensor | None = None, **more) -> Problem:
    torch.manual_seed(0)
    net = make()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=random)
    return Problem(net, x, torch.arange(10) % 3 if y is None else y, loss=loss, **more)


def value(p: Problem, net: nn.Module) -> Tensor:
    """The loss of a network by itself; what casts to less than float64 is taken as a matter of the study's."""
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), p._raised or warnings.catch_warnings():
        torch.default_generator.manual_seed(0)
        return p.loss(net(p.x.clone()) if p.output is None else p.output(net, p.x.clone()), p.y)


def brute_force(p: Problem) -> np.ndarray:
    net, _ = copied(p.model)
    own, changes = dict(net.named_parameters()), []
    with torch.no_grad():
        before = float(value(p, net))
        for i in range(p.count):
            layer, at = p.place(i)
            where = np.unravel_index(at, own[layer].shape)
            kept = own[layer][where].clone()
            own[layer][where] = 0
            changes.append(float(value(p, net)) - before)
            own[layer][where] = kept
    return np.array(changes)


def derivatives(p: Problem) -> tuple[Tensor, Tensor]:
    """Gradient and diagonal of the Hessian of a copy, entry by entry."""
    net, _ = copied(p.model)
    tensors = [net.get_parameter(name).requires_grad_() for name in p.weights]
    gradient = torch.autograd.grad(value(p, net), tensors, create_graph=True)
    bent = [
        torch.autograd.grad(entry, t, retain_graph=True, materialize_grads=True)[0].reshape(-1)[k]
        for g, t in zip(gradient, tensors, strict=True)
        for k, entry in enumerate(g.reshape(-1))
    ]
    return torch.cat([g.detach().reshape(-1) for g in gradient]), torch.stack(bent)


@pytest.mark.parametrize("name", NETS)
def test_every_number_of_the_study(name: str) -> None:
    p = problem(NETS[name])
    truth = brute_force(p)
    table = taylor.exhaustive(p, progress=False)
    np.testing.assert_allclose(table["true"], truth, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(p.changes_without(range(p.count)), truth, rtol=1e-9, atol=1e-13)
    if name != "reentrant checkpoint":  # whose gradient PyTorch does not give to `autograd.grad`
        gradient, bent = derivatives(p)
        torch.testing.assert_close(p.gradient(), gradient, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(table["metric"], (gradient * p.flat()).abs(), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(diagonal(p, all_layers=True), bent, rtol=1e-8, atol=1e-12)
    with torch.no_grad(), p.computing():
        chains = [_chain(p, layer) is not None for layer in p.weights]
    assert chains == CHAINS.get(name, chains)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        singles, sets = taylor.singles(p, 2, compression=5), taylor.sets(p, 5, shares=(0.1,))
    assert singles["Fisher"].isna().all() == sets["Fisher"].isna().all() == (name in NO_SAMPLES)
    assert any("Fisher is empty: loss cross_entropy" in str(w.message) for w in said) == (name in NO_SAMPLES)
    for found in (table, singles, sets):
        check = found.attrs["check"]
        assert 0 <= check["difference"] <= check["tolerance"] < 1e-5 and check["weights"] == 6
    if name != "straight through":
        assert singles.attrs["check"]["curvature_difference"] <= singles.attrs["check"]["curvature_tolerance"] < 0.01


def test_a_reentrant_checkpoint_hides_nothing() -> None:
    with_it, without = problem(NETS["reentrant checkpoint"]), problem(
        lambda: Net(lambda s, x: s.o(torch.tanh(s.b(torch.tanh(s.a(x))))), a=nn.Linear(6, 5), b=nn.Linear(5, 5),
                    o=nn.Linear(5, 3)))  # fmt: skip
    torch.testing.assert_close(with_it.gradient(), without.gradient(), rtol=1e-12, atol=1e-15)
    every = range(without.count)
    torch.testing.assert_close(with_it.hessian_diagonal(every), without.hessian_diagonal(every), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(with_it.squared_gradients, without.squared_gradients, rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------------------------ losses


class Penalty(nn.Module):
    """A loss that has the network itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + 0.01 * sum(p.square().sum() for p in self.net.parameters())


_SOME = torch.Generator().manual_seed(2)
SOFT = torch.softmax(torch.randn(10, 3, generator=_SOME), 1)
REAL = torch.randn(10, 3, generator=_SOME)
WEIGHTS = torch.tensor([1.0, 5.0, 0.2])
HARD = torch.arange(10) % 3
PARTLY = HARD.where(torch.arange(10) % 4 > 0, -100)  # three of ten are ignored
LOSSES = {  # loss, labels, whether it goes by units, whether there are gradients of single samples
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), HARD, True, True),
    "class weights, sum": (nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"), HARD, True, True),
    "class weights held in float32": (functools.partial(F.cross_entropy, weight=WEIGHTS), HARD, True, True),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), HARD, True, True),
    "ignored labels": (F.cross_entropy, PARTLY, True, True),
    "ignored labels, sum": (nn.CrossEntropyLoss(reduction="sum"), PARTLY, True, True),
    "another label ignored": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1), HARD, True, True),
    "smoothed labels": (nn.CrossEntropyLoss(label_smoothing=0.1), HARD, True, True),
    "smoothed labels and class weights": (nn.CrossEntropyLoss(label_smoothing=0.1, weight=WEIGHTS), HARD, None, None),
    "soft labels in float32": (F.cross_entropy, SOFT, True, True),
    "KL": (lambda a, b: F.kl_div(F.log_softmax(a, 1), b, reduction="batchmean"), SOFT, True, True),
    "KL over entries": (lambda a, b: F.kl_div(F.log_softmax(a, 1), b), SOFT, True, True),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (SOFT > 0.3).float(), True, True),
    "squares": (nn.MSELoss(reduction="sum"), REAL, True, True),
    "root of mean squares": (lambda a, b: F.mse_loss(a, b).sqrt(), REAL, False, False),
    "the worst five": (lambda a, b: F.cross_entropy(a, b, reduction="none").topk(5).values.mean(), HARD, False, False),
    "over the batch": (lambda a, b: F.cross_entropy(F.normalize(a, dim=0), b), HARD, False, False),
    "a branch": (lambda a, b: F.cross_entropy(a, b) if float(a.sum()) > -1e9 else a.sum(), HARD, False, True),
    "a mask": (lambda a, b: F.cross_entropy(a[b >= 0], b[b >= 0]), PARTLY, False, True),
    "a penalty of its own": (Penalty, HARD, False, True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the column Fisher is empty", "ignore:reduction")
@pytest.mark.parametrize("name", LOSSES)
def test_the_truth_is_of_this_loss(name: str) -> None:
    loss, y, by_units, apart = LOSSES[name]
    torch.manual_seed(0)
    net = mlp(nn.ReLU())
    p = problem(lambda: net, Penalty(net) if loss is Penalty else loss, y)
    truth, size = brute_force(p) if loss is not Penalty else changes_in_place(p), max(1, abs(p.value))
    table = taylor.exhaustive(p, progress=False)
    np.testing.assert_allclose(table["true"], truth, rtol=1e-9, atol=1e-13 * size)
    with torch.no_grad(), p.computing():
        assert by_units is None or [_chain(p, layer) is not None for layer in p.weights] == [by_units] * 2
    if loss is not Penalty:
        gradient, bent = derivatives(p)
        torch.testing.assert_close(p.gradient(), gradient, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(diagonal(p, all_layers=True), bent, rtol=1e-8, atol=1e-12)
    if apart:
        torch.testing.assert_close(torch.cat(list(p.sample_gradients())).mean(0), p.gradient(), rtol=1e-9, atol=1e-13)
    elif apart is False:
        with pytest.raises(ValueError, match=r"loss .* on model Sequential has no gradients of single samples"):
            list(p.sample_gradients())
    check = taylor.singles(p, 2, compression=5).attrs["check"]
    assert check["difference"] <= check["tolerance"] < 1e-5 * size


def changes_in_place(p: Problem) -> np.ndarray:
    changes = []
    for name, w in p.weights.items():
        for k in range(w.numel()):
            other = w.detach().clone()
            other.view(-1)[k] = 0
            changes.append(p.loss_at({name: other}) - p.value)
    return np.array(changes)


def test_the_fisher_information_of_a_weighted_loss() -> None:
    """The mean over samples, weighted as the loss weighs them, of the squared gradient of a sample's own loss."""
    p = problem(mlp, nn.CrossEntropyLoss(weight=WEIGHTS), HARD)
    share = WEIGHTS.double()[HARD] / WEIGHTS.double()[HARD].sum()
    rows = torch.stack([Problem(p.model, x[None], y[None]).gradient() for x, y in zip(p.x, p.y, strict=True)])
    torch.testing.assert_close(p.squared_gradients, (share[:, None] * rows.square()).sum(0), rtol=1e-9, atol=1e-15)


# ------------------------------------------------------------------------------------------------ what comes in and out


def test_several_inputs_and_answers_in_a_dictionary() -> None:
    def two() -> nn.Module:
        return Net(lambda s, x: {"logits": s.o(torch.tanh(s.a(x["one"]) + s.b(x["two"])))}, a=nn.Linear(6, 5),
                   b=nn.Linear(6, 5), o=nn.Linear(5, 3))  # fmt: skip

    p = problem(two, output=lambda net, x: net({"one": x, "two": x.flip(1)})["logits"])
    table = taylor.exhaustive(p, progress=False)
    np.testing.assert_allclose(table["true"], brute_force(p), rtol=1e-9, atol=1e-13)
    gradient, bent = derivatives(p)
    torch.testing.assert_close(p.gradient(), gradient)
    torch.testing.assert_close(diagonal(p, all_layers=True), bent)
    assert taylor.singles(p, 2, compression=5)["Fisher"].notna().all()
    whole = problem(two, output=lambda net, x: net({"one": x, "two": x.flip(1)}),
                    loss=lambda found, y: F.cross_entropy(found["logits"], y))  # fmt: skip
    again = taylor.exhaustive(whole, progress=False)
    np.testing.assert_allclose(again["true"], table["true"], rtol=1e-9, atol=1e-13)


def test_whole_numbers_stay_whole() -> None:
    net = Net(lambda s, x: s.o(torch.tanh(s.h(s.e(x).mean(1)))), e=nn.Embedding(7, 4), h=nn.Linear(4, 4),
              o=nn.Linear(4, 3))  # fmt: skip
    p = Problem(net, torch.randint(0, 7, (9, 5)), torch.arange(9) % 3)
    assert p.x.dtype is torch.int64
    np.testing.assert_allclose(taylor.exhaustive(p, progress=False)["true"], brute_force(p), rtol=1e-9, atol=1e-13)


def test_float32_studies_are_checked_with_their_own_tolerance() -> None:
    p = problem(NETS["tied"], dtype=torch.float32)
    check = taylor.singles(p, 2, compression=5).attrs["check"]
    assert 1e-6 < check["tolerance"] < 0.1 and np.isnan(check["curvature_difference"])


# ------------------------------------------------------------------------------------------------ the check


def test_a_study_that_is_wrong_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(mlp)
    right = Problem.changes_without
    monkeypatch.setattr(Problem, "changes_without", lambda self, indices: 1.001 * right(self, indices))
    with pytest.raises(ArithmeticError, match=r"loss changes and gradients of model Sequential .* not those of plain"):
        taylor.singles(p, 3, compression=5)
    monkeypatch.undo()
    bent = Problem.hessian_diagonal
    monkeypatch.setattr(Problem, "hessian_diagonal", lambda self, indices: 1.1 * bent(self, indices) + 0.1)
    with pytest.raises(ArithmeticError, match="second derivatives of model Sequential"):
        taylor.sets(p, 5, shares=(0.1,))
    monkeypatch.undo()
    slope = Problem.gradient
    monkeypatch.setattr(Problem, "gradient", lambda self: slope(self) * 1.01)
    with pytest.raises(ArithmeticError, match="loss changes and gradients"):
        taylor.exhaustive(p, progress=False)


def test_weight_normalisation_has_the_second_derivatives_of_its_formula() -> None:
    """PyTorch's fused one has others (2.13), which the check of the study found."""
    torch.manual_seed(0)
    plain = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    net = nn.Sequential(plain, nn.Tanh(), nn.Linear(5, 3))
    g, v = (w.detach().double() for w in plain.parametrizations.weight.parameters())
    x = torch.randn(8, 6, dtype=torch.float64)

    def by_formula(v: Tensor) -> Tensor:
        return torch.tanh(x @ (v * g / v.norm(dim=1, keepdim=True)).T).square().sum()

    def by_layer(v: Tensor) -> Tensor:
        with differentiable_twice(net):
            return torch.tanh(x @ torch._weight_norm(v, g, 0).T).square().sum()

    torch.testing.assert_close(torch.autograd.functional.hessian(by_layer, v),
                               torch.autograd.functional.hessian(by_formula, v))  # fmt: skip


# ------------------------------------------------------------------------------------------------ refused


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    net, x, y = mlp(), torch.randn(4, 6), torch.arange(4) % 3
    for loss, kind, words in (
        (nn.CrossEntropyLoss, TypeError, "loss must be a function from .outputs, labels. to a scalar, got <class"),
        ("cross_entropy", TypeError, "loss must be a function"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "loss must give one number, .* gives a tensor of shape"),
        (lambda a, b: float(a.sum()), ValueError, "loss must give one number, .* gives float"),
        (lambda a, b: F.cross_entropy(a, b) + net[0].weight.square().sum(), ValueError,
         "loss <lambda> must depend on weights through the model's answer only, and takes '0.weight'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            Problem(net, x, y, loss=loss)
    with pytest.raises(TypeError, match="x must be a tensor of one row a sample, got list"):
        Problem(net, [1, 2], y)
    with pytest.raises(TypeError, match="output must be a function from"):
        Problem(net, x, y, output="logits")
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype"):
        Problem(net, x, y, dtype=torch.int64)
    with pytest.raises(ValueError, match="model must be as written in Python, not compiled to TorchScript"):
        Problem(torch.jit.trace(net, x), x, y)
    with pytest.raises(ValueError, match=r"layers must be of 0\.weight, 2\.weight, got 'fc'"):
        taylor.exhaustive(Problem(net, x, y), ["fc"])
    with pytest.raises(ValueError, match=r"per_region must be a whole number of weights >= 1, got 2\.5"):
        taylor.singles(Problem(net, x, y), 2.5)


def test_a_loss_without_second_derivatives() -> None:
    p = problem(mlp, nn.MultiMarginLoss())
    with pytest.warns(UserWarning, match="the column first . diagonal is empty: model and loss must have second"):
        table = taylor.singles(p, 2, compression=5)
    assert table["first + diagonal"].isna().all() and table["Fisher"].notna().all()
    with pytest.warns(UserWarning, match="the column second order is empty"):
        table = taylor.sets(p, 5, shares=(0.1,))
    assert table["second order"].isna().all() and table["true"].notna().all()
    run = gl.Run(mlp(), corners(), loss=nn.MultiMarginLoss(), **KNOBS)
    with pytest.raises(ValueError, match="must have second derivatives in PyTorch, and have not"):
        steps(run, 1)
    assert run.steps == 0 and run.dense_steps == 0
    assert len(steps(run, 1, second_order=False)) == 1


KNOBS = {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 4, "seed": 0}


def corners() -> gl.Dataset:
    random = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = (random.normal(size=(3, 6))[y] + random.normal(size=(48, 6))).astype(np.float32)
    return gl.Dataset(x[:32], y[:32], x[32:], y[32:], name="corners")


@pytest.mark.parametrize("reentrant", [False, True])
def test_steps_of_a_network_with_checkpoints(reentrant: bool) -> None:
    def run(net: nn.Module) -> gl.Run:
        return gl.Run(net, corners(), **KNOBS)

    tables = []
    for make in (lambda: checkpointed(reentrant),
                 lambda: Net(lambda s, x: s.o(torch.tanh(s.b(torch.tanh(s.a(x))))), a=nn.Linear(6, 5),
                             b=nn.Linear(5, 5), o=nn.Linear(5, 3))):  # fmt: skip
        torch.manual_seed(3)
        tables.append(steps(run(make()), 2))
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6, atol=1e-12)
    assert tables[0].attrs["check"]["difference"] <= tables[0].attrs["check"]["tolerance"]


def test_fisher_pruning_of_what_has_no_samples_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="has no gradients of single samples"):
        gl.methods.prune("fisher", model=NETS["samples see each other"](), data=corners(), **KNOBS)
    for name in ("straight through", "backward hook", "LSTM", "attention"):
        torch.manual_seed(0)
        run = gl.methods.prune("fisher", model=NETS[name](), data=corners(), progress=False, rounds=2, **KNOBS)
        assert run.steps == run.planned


def test_copies_of_modules_that_keep_what_they_computed() -> None:
    net = mlp()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    x = torch.randn(4, 6)
    with pytest.raises(RuntimeError):
        net(x)
        copy.deepcopy(net)
    again, _ = copied(net)
    torch.testing.assert_close(again(x), net(x))
    with torch.no_grad():
        again[0].weight_orig.zero_()
    assert not torch.allclose(again(x), net(x)) and (net[0].weight_orig != 0).any()

    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(ValueError, match=r"model Sequential must be one that copy\.deepcopy can copy, .*_thread\.lock"):
        copied(nn.Sequential(Locked(3, 3)))


@pytest.mark.parametrize("name", ["class weights", "sum", "root of mean squares"])
def test_ranks_need_a_loss_that_is_a_mean(name: str) -> None:
    loss, y, *_ = LOSSES[name]
    data = corners()
    if y is REAL:
        loss = functools.partial(lambda a, b: F.mse_loss(a, F.one_hot(b, 3).to(a)).sqrt())
    with pytest.raises(ValueError, match="loss must be the mean over the samples, for the mean over ranks"):
        communication.local_gradients({"model": mlp(), "data": data, "loss": loss, **KNOBS}, progress=False)


def test_a_layer_of_no_weights_is_refused_by_name() -> None:
    net = Net(lambda s, x: s.a(x) + s.z(x[:, :0]), a=nn.Linear(6, 3), z=nn.Linear(0, 3))
    for study in (sensitivity.sensitivity, sensitivity.alone):
        with pytest.raises(ValueError, match=r"model must have weights in every layer, 'z\.weight' has none"):
            study(net, corners(), seeds=[0], progress=False, **KNOBS)


def test_the_loss_of_held_out_data_is_of_this_loss_and_adapter() -> None:
    """More rows than are passed at a time: class weights of a part are not those of the whole."""
    random, loss = torch.Generator().manual_seed(0), nn.CrossEntropyLoss(weight=WEIGHTS)
    x, y = torch.randn(4100, 6, generator=random), (torch.arange(4100) > 1900).long()
    data = gl.Dataset(x[:64], torch.arange(64) % 3, x, y, name="held")
    torch.manual_seed(0)
    net = Net(lambda s, x: {"logits": s.m(x)}, m=mlp())
    adapter = lambda net, x: net(x)["logits"]  # noqa: E731
    table = sensitivity.alone(net, data, seeds=[0], ratios=(0.5,), finetune=(0,), progress=False, loss=loss,
                              output=adapter, **KNOBS)  # fmt: skip
    run = gl.Run(copied(net)[0], data, loss=loss, output=adapter, **KNOBS)
    run.pretrain()
    w = run.model.m[0].weight
    with torch.no_grad():
        w.view(-1)[w.abs().reshape(-1).argsort(stable=True)[: w.numel() // 2]] = 0
        expected = float(loss(adapter(run.model.eval(), data.test_x), data.test_y))
    assert table["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_studies_look_at_the_tensors_that_are_picked() -> None:
    torch.manual_seed(0)
    net, x, y = mlp(), torch.randn(8, 6), HARD[:8]
    kernels = list(Problem(net, x, y).weights)
    assert list(Problem(net, x, y, exclude=kernels[0]).weights) == kernels[1:]
    with pytest.raises(ValueError, match=r"exclude .*'nothing'"):
        Problem(net, x, y, exclude="nothing")
    net.gain = nn.Parameter(torch.ones(2, 2))
    net.get_parameter(kernels[0]).requires_grad_(False)
    picked = Problem(net, x, y, include=["gain", kernels[0]], exclude=net.get_parameter(kernels[1]))
    assert set(picked.weights) == {"gain", *kernels} - {kernels[1]}
    run = gl.Run(mlp(), corners(), exclude=kernels[0], **KNOBS)
    assert list(Problem(run, *run.batches.batch(0)).weights) == kernels[1:]
    assert list(Problem(run, *run.batches.batch(0), include=kernels[0], exclude=kernels[1]).weights) == [
        name for name in kernels if name != kernels[1]
    ]
