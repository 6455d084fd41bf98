"""What a run says of itself: settings it refuses, weights beyond mending, a cut that came too early."""

import math
import warnings
from collections.abc import Callable

import pytest

import gsm_lab as gl
from gsm_lab import Run
from gsm_lab.cli.summary import finding, results
from gsm_lab.knobs import RECIPES, half_life, resolve
from tests.runs import differs, everything, mine, net, plain, tiny

# ------------------------------------------------------------------------------------------------ advice


def test_a_blow_up_says_when_only_a_new_beginning_helps() -> None:
    run = tiny(plain(), pretrain=0, hold=1.0)
    run.step(2)
    run.set(lr=100, weight_decay=1)
    with pytest.raises(FloatingPointError, match=r"has grown to .*begin again, with reset\(lr"):
        run.step(200)
    run.set(lr=1e-3)
    with pytest.raises(FloatingPointError, match="which no setting mends"):
        run.step()
    run.reset(lr=0.05, weight_decay=0)
    run.step(5)
    run.batches.dataset.train_x[:] = math.inf  # a gradient that is not finite, of weights as they should be
    with pytest.raises(FloatingPointError) as error:
        run.step()
    assert "Lower the learning rate" in str(error.value) and "has grown" not in str(error.value)


@pytest.mark.parametrize(
    "knobs", [{"epochs": 1e308}, {"epochs": 10**400}, {"evaluate_every": 1e300}, {"momentum": 1.0}, {"lr": math.nan}]
)
def test_a_knob_is_refused_before_anything_moves(knobs: dict[str, float]) -> None:
    run = tiny(plain())
    run.step(2)
    before = everything(run)
    (name,) = knobs
    for act in (run.set, run.reset):
        with pytest.raises(ValueError, match=f"{name} must be"):
            act(momentum=0.5, **knobs) if name != "momentum" else act(**knobs)
    assert differs(everything(run), before) == []
    run.step()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda run: run.train("3"), "epochs must be .*'3'"),
        (lambda run: run.train(10**400), "epochs must be"),
        (lambda run: run.train(True), "epochs must be"),
        (lambda run: run.step(10**400), "n must be at most"),
        (lambda run: run.pretrain("x"), "most must be None or a whole number of steps >= 0, got 'x'"),
        (lambda run: run.pretrain(-1), "most must be"),
        (lambda run: run.evaluate("x"), "cut must be True or False, got 'x'"),
        (lambda run: run.save(None), "folder must be a path"),
        (lambda run: Run.resume(3), "folder must be a path"),
        (lambda run: Run(lr=10**5000), "lr must be a number from 0 to 100, got int"),
        (lambda run: Run(data="cifar"), "data must be one of digits, mnist, fashion_mnist or a Dataset, got 'cifar'"),
    ],
)
def test_the_wrong_kind_of_argument_is_named(act: Callable[[Run], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        act(tiny(plain()))


# ------------------------------------------------------------------------------------------------ too early


def warned(run: Run, *epochs: float) -> list[str]:
    said = []
    for n in epochs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.train(n, progress=False)
        said += [str(w.message) for w in caught if w.category is UserWarning]
    return said


def test_a_run_that_ended_too_early_says_so_once_with_both_numbers() -> None:
    run = tiny(net(), pretrain=5, compression=30.0, weight_decay=3e-3, momentum=0.9, lr=0.1)
    said = warned(run, 5, 1)
    assert run.evaluate(cut=True) < run.evaluate() - 0.1
    assert len(said) == 1 and "there were 50 gated steps, and passive weights halve in 231" in said[0]
    found = results(run)
    assert "passive weights halve in 231" in found.early
    assert found.rows()[-1] == ("too early to cut", found.early) and found.early not in finding(run, found)


def test_a_cut_that_is_worse_than_that_of_the_dense_network_is_said_with_both() -> None:
    run = tiny(net(drop=0.0), pretrain=20, compression=2.0, lr=1.0, weight_decay=0.03, momentum=0.5)
    run.pretrain()
    assert run.magnitude > 0.5
    run.magnitude = 1.0  # as if the dense network had been cut without loss
    run.step(1)
    (said,) = warned(run, 1) if run.evaluate(cut=True) < 0.9 else [""]
    assert not said or ("of the dense network cut by magnitude" in said and "100.00%" in said)


def test_nothing_is_said_where_the_cut_costs_nothing_or_another_method_decides() -> None:
    assert warned(tiny(net(), compression=1.0), 2) == []
    assert warned(tiny(net(), compression=30.0, pretrain=5), 0) == []
    rival = gl.Run(
        net(), mine(), batch_size=8, pretrain=1, epochs=6, compression=30.0, method=gl.methods.kind("magnitude")()
    )
    assert warned(rival, 1) == []


def test_the_recipes_have_the_steps_that_a_cut_takes() -> None:
    samples = {"digits": 1437, "mnist": 60_000, "fashion_mnist": 60_000}
    for data, model in {("digits", "lenet300"), *RECIPES} - {("digits", "lenet5")}:  # that one: see the next line
        k = resolve({}, data, model)
        life = half_life(k.lr, k.momentum, k.weight_decay)
        assert k.epochs * (samples[data] // k.batch_size) > 3 * life, (data, model)
