"""Each rival of GSM against its paper's equations: naive loops, least squares, finite differences, known answers."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import Dataset, Run, methods
from gsm_lab.methods import lobs
from gsm_lab.training.sample_gradients import sample_gradients
from tests.methods.test_methods import Again, conv, flat, make
from tests.runs import Tied, mine
from tests.studies.test_problem import Branching

seeds = st.integers(0, 10_000)
double = torch.float64


def quadratic(method: str, target: Tensor, start: Tensor, **settings: object) -> Run:
    """A run whose loss is |W - target|^2 / 2 of the network's weights W [n, n]: every step's gradient is known."""
    n = len(target)
    eye, rows = torch.eye(n), torch.arange(n)
    model = nn.Linear(n, n, bias=False)
    model.weight.data.copy_(start)
    knobs = {"batch_size": n, "pretrain": 0, "hold": 1.0, "weight_decay": 0.0, "epochs": 400, "momentum": 0.5}
    knobs |= {"lr": 0.1, "evaluate_every": 999} | settings
    return Run(model, Dataset(eye, rows, eye, rows), loss=Quadratic(target), **knobs, method=methods.kind(method)())


class Quadratic:
    """What comes out for the unit vector e_y is the column y of W."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (out - self.target.T[y]).square().sum()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ magnitude (Han 2015)


def test_magnitude_takes_out_what_is_small_for_its_layer() -> None:
    run = make("magnitude", rounds=3, weight_decay=0.01)
    run.pretrain()
    for due, share in ((0, 1 / 3), (8, 2 / 3), (16, 1)):
        run.step(due - run.steps)
        layers = [p.detach().numpy().ravel().astype(np.float64) for p in methods.weights(run)]
        score = np.concatenate([abs(w) / w[w != 0].std() for w in layers])
        run.step()
        expected = np.argsort(-score)[: round(368 * 4**-share)]
        assert np.array_equal(np.flatnonzero(flat(run)), np.sort(expected))


# ------------------------------------------------------------------------------------------------ L1


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_l1_comes_to_rest_where_the_gradient_is_the_penaltys(momentum: float, decay: float) -> None:
    target, strength = random(6, 6), 0.4
    run = quadratic(
        "l1", target, random(6, 6, seed=1), momentum=momentum, weight_decay=decay, strength=strength, until=1
    )
    run.step(250)
    w = run.model.weight.detach()
    gradient = w - target + decay * w
    assert 5 < int((w == 0).sum()) < 30
    torch.testing.assert_close(gradient[w != 0], -strength * w.sign()[w != 0], atol=1e-4, rtol=0)
    assert (gradient[w == 0].abs() <= strength).all()
    torch.testing.assert_close(
        w, target.sign() * (target.abs() - strength).clamp_min(0) / (1 + decay), atol=1e-4, rtol=0
    )


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0, 5), st.floats(0, 0.9), st.floats(0.001, 1))
def test_the_proximal_step_is_the_minimum(seed: int, strength: float, momentum: float, lr: float) -> None:
    v = random(4, 4, seed=seed)
    run = quadratic("l1", v, v, strength=strength, momentum=momentum, lr=lr)
    t = strength * lr / (1 - momentum)
    run.opt.param_groups[0]["lr"] = lr
    with torch.no_grad():
        run.method.after_step(run)
    got = run.model.weight.detach()

    def cost(w: Tensor) -> Tensor:  # what the soft threshold minimises, weight by weight
        return 0.5 * (w - v).double().square() + t * w.double().abs()

    for other in (got + 1e-3, got - 1e-3, torch.zeros_like(v), v):
        assert (cost(got) <= cost(other) + 1e-6).all()
    assert torch.equal(run.method.inside.view(4, 4), got != 0)


# ------------------------------------------------------------------------------------------------ ADMM (Zhang 2018)


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 9))
def test_admm_projects_to_the_nearest_network_of_q_weights(seed: int, q: int) -> None:
    run = quadratic("admm", torch.zeros(3, 3), torch.ones(3, 3), compression=9 / q)
    v = random(9, seed=seed)
    z = run.method.project(run, v)
    sets = (torch.tensor(kept) for kept in itertools.combinations(range(9), q))
    nearest = min((v - torch.zeros(9).index_copy(0, s, v[s])).norm() for s in sets)
    assert int(z.count_nonzero()) == q and torch.equal(run.method.inside, z != 0)
    assert (v - z).norm() == pytest.approx(float(nearest))


def test_admm_takes_the_steps_of_its_equations() -> None:
    target, w = random(4, 4), random(4, 4, seed=1)
    rho, lr, momentum, decay, q = 0.3, 0.1, 0.5, 0.01, 5
    data = {"rho": rho, "compression": 16 / q, "until": 0.5, "epochs": 40, "weight_decay": decay}
    run = quadratic("admm", target, w, **data)
    w, target = w.double().numpy(), target.double().numpy()

    def projected(v: np.ndarray) -> np.ndarray:
        return np.where(abs(v) >= np.sort(abs(v).ravel())[-q], v, 0)

    z, u, speed = projected(w), np.zeros((4, 4)), np.zeros((4, 4))
    for step in range(30):  # an epoch is a step
        if step == 20:
            kept = projected(w) != 0
            w, speed = w * kept, speed * kept
        gradient = w - target + decay * w
        gradient = gradient * kept if step >= 20 else gradient + rho * (w - z + u)
        speed = momentum * speed + gradient
        w = w - lr * speed
        if step < 20:
            z = projected(w + u)
            u = u + w - z
        run.step()
        np.testing.assert_allclose(run.model.weight.detach(), w, atol=1e-5)
        np.testing.assert_allclose(run.method.z.view(4, 4), z, atol=1e-5)
        np.testing.assert_allclose(run.method.u.view(4, 4), u, atol=1e-5)
    assert run.method.settled and int(flat(run).count_nonzero()) == q


def test_admm_moves_z_and_u_once_an_epoch() -> None:
    run = make("admm", until=1)
    moved = []
    for _ in range(25):
        before = run.method.z.clone(), run.method.u.clone()
        run.step()
        moved.append((not torch.equal(run.method.z, before[0]), not torch.equal(run.method.u, before[1])))
    assert [i for i, (z, _) in enumerate(moved) if z] == [0, 9, 19] and [i for i, (_, u) in enumerate(moved) if u] == [
        9,
        19,
    ]


# ------------------------------------------------------------------------------------------------ DNS (Guo 2016)


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(0, 0.9), st.integers(1, 368), st.sampled_from(["deviations", "size"]))
def test_surgery_is_equation_3(seed: int, margin: float, q: int, shared: str) -> None:
    run = make("dns", margin=margin, thresholds=shared)
    run.method.shadow = [random(*p.shape, seed=seed + i) * (i + 1) for i, p in enumerate(run.method.shadow)]
    before = random(368, seed=seed + 5) > 0
    run.method.inside.copy_(before)
    run.method.operate(run, q)
    layers = [w.abs().double().numpy().ravel() for w in run.method.shadow]
    of_layer = [((w - w.mean()) / w.std(), w.mean(), w.std()) if shared == "deviations" else (w, 0, 1) for w in layers]
    c = np.sort(np.concatenate([score for score, _, _ in of_layer]))[-q]
    expected, close, start = [], [], 0
    for w, (_, mean, deviation) in zip(layers, of_layer, strict=True):
        middle = max(0.0, mean + c * deviation)
        a, b = (1 - margin) * middle, (1 + margin) * middle
        for size, inside in zip(w, before[start : start + len(w)].tolist(), strict=True):
            expected.append(False if size < a else True if size >= b else inside)
            close.append(min(abs(size - a), abs(size - b)) < 1e-5)  # rounding decides
        start += len(w)
    assert np.array_equal(run.method.inside.numpy() | close, np.array(expected) | close)
    assert run.method.lowest == pytest.approx(c, abs=1e-5)


def test_the_splice_brings_a_weight_back() -> None:
    target, start = torch.full((4, 4), 0.5), random(4, 4).abs() + 1
    target[1, 2], start[1, 2] = 3.0, 0.01  # of no size when the gate closes, and the most important one
    run = quadratic("dns", target, start, compression=2, until=0.12, epochs=100, gamma=0)
    seen = []
    for _ in range(60):
        run.step()
        seen.append((bool(run.method.inside[6]), flat(run)[6].item(), run.method.shadow[0][1, 2].item()))
    assert not seen[0][0] and seen[0][1] == 0.0, "taken out"
    inside = [i for i, _, _ in seen]
    back = inside.index(True)
    assert all(inside[back:]) and 0 < back < 11
    # outside, the network's weight is zero, so the loss pulls with all of the target: momentum's sum, by hand
    w, speed = 0.01, 0.0
    for step in range(back):
        speed = 0.5 * speed + (0.01 if step == 0 else 0.0) - 3.0
        w -= 0.1 * speed
        assert seen[step][1:] == (0.0, pytest.approx(w, rel=1e-5))
    assert run.method.settled and int(flat(run).count_nonzero()) == run.nonzeros == 8
    assert seen[-1][1] == pytest.approx(3.0, abs=0.05)


def test_surgery_becomes_rare() -> None:
    run = make("dns", gamma=1, until=1, epochs=100)
    operated: list[int] = []
    run.method.operate = lambda run, q: operated.append(run.steps)
    run.step(300)
    expected = sum(1 / (1 + step) for step in range(300))
    assert operated[0] == 0 and abs(len(operated) - expected) < 4 * math.sqrt(expected)
    run = make("dns", gamma=0)
    run.method.operate = lambda run, q: operated.append(q)
    operated.clear()
    run.step(40)
    assert operated == [92] * 23, "at every step until it is settled"


def test_the_ramp_is_dns_budget() -> None:
    run, asked = make("dns", gamma=0, ramp=0.5, compression=40), []
    run.method.operate = lambda run, q: asked.append(q)
    run.step(23)
    assert asked == [int(368 / (4 * 10 ** (step / 20)) + 1e-9) if step < 20 else 9 for step in range(23)]


# ------------------------------------------------------------------------------------------------ L-OBS (Dong 2017)


def layer(seed: int, samples: int = 40, units: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs X that are correlated, a layer's weights W, and H."""
    x = (random(samples, width, seed=seed) @ random(width, width, seed=seed + 1)).double()
    return x, random(units, width, seed=seed + 2).double(), x.T @ x / samples


def nearest(x: Tensor, w: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """The weights of a unit, only `kept` of them not zero, whose output comes closest to that of `w`; and how close."""
    result = torch.zeros_like(w)
    if kept:
        result[kept] = torch.linalg.lstsq(x[:, kept], x @ w, driver="gelsd").solution
    return result, float(0.5 * (x @ (result - w)).square().mean())


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_l_obs_errors_are_those_of_least_squares(seed: int) -> None:
    x, w, h = layer(seed)
    errors, inverse = lobs.error(w, h), torch.linalg.inv(h)
    for unit, q in itertools.product(range(3), range(5)):
        best, left = nearest(x, w[unit], [i for i in range(5) if i != q])
        assert float(errors[unit, q]) == pytest.approx(left, rel=1e-5, abs=1e-9)
        mask = torch.ones(3, 5, dtype=torch.bool)
        mask[unit, q] = False
        moved = lobs.restricted(w, h, mask) - w
        torch.testing.assert_close(moved[unit], best - w[unit], atol=1e-6, rtol=1e-5)
        formula = -w[unit, q] / inverse[q, q] * inverse[:, q]  # equation 5
        torch.testing.assert_close(moved[unit], formula, atol=1e-6, rtol=1e-5)
    assert float(lobs.output(w, h)) == pytest.approx(float(0.5 * (x @ w.T).square().mean(0).sum()))


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(0, 2**15 - 1))
def test_what_is_left_of_a_layer_is_the_exact_solution(seed: int, bits: int) -> None:
    x, w, h = layer(seed)
    mask = torch.tensor([bits >> i & 1 for i in range(15)], dtype=torch.bool).view(3, 5)
    got = lobs.restricted(w, h, mask)
    assert not got[~mask].any()
    for unit in range(3):
        torch.testing.assert_close(
            got[unit], nearest(x, w[unit], mask[unit].nonzero()[:, 0].tolist())[0], atol=1e-6, rtol=1e-5
        )


def test_a_run_of_l_obs_solves_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of one layer all is known: whom it takes out, and the values that it leaves to the others."""
    data = mine()
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    x, w = data.train_x.double(), model.weight.detach().double()
    run = methods.build("lobs", model=model, data=data, pretrain=0, compression=2, rounds=1, damping=1e-9, batch_size=8)
    run.pretrain()
    threads = []
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda *args: (threads.append(torch.get_num_threads()), solve(*args))[1])
    torch.set_num_threads(2)
    try:
        run.method.before_step(run)
        assert set(threads) == {1} and torch.get_num_threads() == 2, "two threads that solve spin while they wait"
    finally:
        torch.set_num_threads(1)
    losses = [[nearest(x, w[u], [i for i in range(8) if i != q])[1] for q in range(8)] for u in range(4)]
    mask = torch.zeros(32, dtype=torch.bool)
    mask[torch.tensor(losses).flatten().topk(16).indices] = True
    assert torch.equal(run.method.inside, mask)
    expected = torch.stack([nearest(x, w[u], mask.view(4, 8)[u].nonzero()[:, 0].tolist())[0] for u in range(4)])
    torch.testing.assert_close(model.weight.detach().double(), expected, atol=1e-5, rtol=1e-4)
    cut = torch.where(mask.view(4, 8), w, 0.0)
    now, without = ((x @ (new - w).T).square().sum() for new in (model.weight.detach().double(), cut))
    assert now < 0.95 * without, "what it makes up for"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "dilation": 2},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_is_a_layer_of_patches(given: dict) -> None:
    module, x = nn.Conv2d(2, 3, (3, 2), bias=False, **given), random(4, 2, 7, 6)
    patches = lobs.inputs(module, x)
    expected = module(x).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(patches @ module.weight.flatten(1).T, expected)


@pytest.mark.parametrize("kind", [Again, Tied])
def test_h_is_over_all_uses_of_a_tensor(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    if kind is Again:
        del model.idle
    run = methods.build("lobs", model=model, data=mine(), samples=10_000, damping=1e-9, compression=2, batch_size=8)
    x = mine().train_x
    with torch.no_grad():
        middle = torch.tanh(model.one(x))
        seen = torch.cat([x, middle]).double()
        last = torch.tanh((model.one if kind is Again else model.two)(middle)).double()
    one, out = run.method.moments(run)
    torch.testing.assert_close(one, seen.T @ seen / len(seen), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out, last.T @ last / len(last), atol=1e-6, rtol=1e-5)
    assert not model._forward_pre_hooks and not model.one._forward_pre_hooks, "it takes its hooks away"


# ------------------------------------------------------------------------------------------------ Fisher (Theis 2018)


def loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradients of single samples, one after the other: [n, N]."""
    weights, rows = [p for p in model.parameters() if p.ndim >= 2], []
    for a, b in zip(x, y, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), weights, allow_unused=True)
        parts = (torch.zeros_like(p) if g is None else g for p, g in zip(weights, gradients, strict=True))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:fisher left no weight in layer 'idle.weight'")
@pytest.mark.parametrize("kind", [Tied, Again, conv])
def test_fisher_is_the_mean_square_of_single_samples_gradients(kind: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    run, data = make("fisher", model, rounds=1, until=0), mine()
    run.pretrain()
    squares = loop(model, data.train_x, data.train_y).square().mean(0)
    torch.testing.assert_close(run.method.information(run), squares, atol=1e-8, rtol=1e-4)
    expected = 0.5 * flat(run).square() * squares
    torch.testing.assert_close(run.method.score(run), expected, atol=1e-10, rtol=1e-4)
    run.method.before_step(run)
    best = expected.topk(run.nonzeros).indices
    assert int(run.method.inside[best].sum()) >= run.nonzeros - 1 and int(run.method.inside.sum()) == run.nonzeros


def test_fisher_looks_at_as_many_samples_as_asked_without_dropout() -> None:
    run = make("fisher", samples=5)
    run.pretrain()
    model, data = run.model, mine()
    each = loop(copy.deepcopy(model).eval(), data.train_x, data.train_y).square()
    model.train()
    got = run.method.information(run) * 5
    assert model.training
    counts = torch.linalg.lstsq(each.double().T, got.double()).solution  # how often each sample is in the sum
    assert torch.equal(counts.round(), (counts > 0.5).double()) and int(counts.round().sum()) == 5
    assert (counts - counts.round()).abs().max() < 0.1


def test_single_samples_of_a_model_that_branches_on_its_values() -> None:
    torch.manual_seed(0)
    model, x, y = Branching().double(), random(40, 6).double(), torch.arange(40) % 3
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
    got = torch.cat(list(sample_gradients(model, F.cross_entropy, weights, x, y)))
    torch.testing.assert_close(got, loop(model, x, y))


# ------------------------------------------------------------------------------------------------ gates (Srinivas 2017)


def test_gates_slopes_are_those_of_the_relaxed_objective() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    run = make("gates", model, sparsity=0.03, bimodal=0.02, until=1)
    run.step(12)
    assert 10 < int(run.method.inside.sum()) < 72 and any(
        ((gate > 0.1) & (gate < 0.9)).any() for gate in run.method.gates
    )
    gates, shadow = torch.cat([g.reshape(-1) for g in run.method.gates]).double(), run.flat(run.method.shadow).double()
    weights, steps = flat(run), run.method.gates[0].clone()
    run._forward_backward(run.dense_steps + run.steps)
    dense = torch.cat([p.grad.reshape(-1) for p in methods.weights(run)]) * run.method.inside
    run.method.penalty(run)
    slopes = torch.cat([slope.reshape(-1) for slope in run.method.slopes])
    assert torch.equal(run.method.gates[0], steps) and torch.equal(flat(run), weights)
    assert torch.equal(torch.cat([p.grad.reshape(-1) for p in methods.weights(run)]), dense)

    exact, (x, y) = copy.deepcopy(model).double(), run.batches.batch(run.dense_steps + run.steps)

    def objective(g: Tensor) -> float:
        """As if the step function were the identity, plus what is one or zero now."""
        used = shadow * (run.method.inside + g - gates)
        for p, part in zip((exact[0].weight, exact[2].weight), run.shaped(used), strict=True):
            p.data.copy_(part)
        penalty = 0.02 * (g * (1 - g)).sum() + 0.03 * g.sum()
        return (F.cross_entropy(exact(x.double()), y) + penalty).item()

    for i in range(72):
        h = torch.zeros(72, dtype=double).index_fill(0, torch.tensor(i), 1e-5)
        assert float(slopes[i]) == pytest.approx((objective(gates + h) - objective(gates - h)) / 2e-5, abs=1e-6)


def test_gates_stay_within_their_ends_and_open_at_a_half() -> None:
    run = make("gates", until=1)

    def check(step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        gates = torch.cat([gate.reshape(-1) for gate in run.method.gates])
        assert gates.min() >= 0 and gates.max() <= 1
        assert np.array_equal(active, gates >= 0.5)

    run.recorders.append(check)
    run.step(39)
    assert 0 < int(run.method.inside.sum()) < 368


def test_a_gate_that_is_shut_keeps_its_weight() -> None:
    """Shut by the penalty, the weight waits at its value; the loss opens the gate again where it is missed."""
    target, start = torch.full((2, 2), 1.0), torch.full((2, 2), 1.0)
    run = quadratic("gates", target, start, sparsity=0.5, bimodal=0.0, gate_lr=0.25, until=1, lr=0.01, momentum=0.0)
    gate, w, history = 1.0, 1.0, []
    for _ in range(30):
        used = w * (gate >= 0.5)
        slope, passed = (used - 1) * w + 0.5, (used - 1) * (gate >= 0.5)
        gate, w = min(1.0, max(0.0, gate - 0.25 * slope)), w - 0.01 * passed
        run.step()
        history.append(gate >= 0.5)
        assert float(run.method.gates[0][0, 0]) == pytest.approx(gate, abs=1e-5)
        assert float(run.method.shadow[0][0, 0]) == pytest.approx(w, abs=1e-5)
        assert flat(run)[0].item() == pytest.approx(w * (gate >= 0.5), abs=1e-5)
    assert {True, False} == set(history)


# ------------------------------------------------------------------------------------------------ random


def test_random_takes_any_weight_with_equal_chances() -> None:
    counts = torch.zeros(368)
    for seed in range(60):
        run = make("random", seed=seed, pretrain=0, compression=2)
        run.step()
        assert int(run.method.inside.sum()) == 184
        counts += run.method.inside
    assert counts.min() > 10 and counts.max() < 50  # binomial, 30 +- 3.9
    assert abs(float(counts[:128].mean()) - 30) < 1.5 and abs(float(counts.var()) - 15) < 5
