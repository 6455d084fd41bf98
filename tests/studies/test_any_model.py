"""The Taylor study on networks and losses as people write them, against brute force and plain double backward.

The oracle of a true change is a copy of the network with that weight at zero; that of the derivatives is
`torch.autograd.grad` at the copy's own parameters, one network at a time, nothing batched and nothing replaced.
"""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from gsm_lab.models import copied
from gsm_lab.studies import taylor
from gsm_lab.studies.curvature import diagonal
from gsm_lab.studies.exhaustive import _chain
from gsm_lab.studies.problem import Problem


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
