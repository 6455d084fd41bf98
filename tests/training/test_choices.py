"""Settings that move, and runs that begin again."""

import pytest
import torch

import gsm_lab as gl
from gsm_lab import Dataset, Run
from gsm_lab.data import DataNotFound
from gsm_lab.knobs import KNOBS, RECIPES
from tests.runs import differs, equal, everything, net, tiny

# ------------------------------------------------------------------------------------------------ set


def test_set_moves_knobs_and_takes_them_down() -> None:
    run = tiny()
    run.step(3)
    run.set(momentum="0.99", compression=8)
    run.set(lr=run.knobs["lr"])  # moves nothing
    run.set()
    assert (run.knobs["momentum"], run.knobs["compression"]) == (0.99, 8.0)
    assert run.history.events[-2:] == [
        {"step": 3, "knob": "momentum", "old": 0.9, "new": 0.99},
        {"step": 3, "knob": "compression", "old": 4.0, "new": 8.0},
    ]
    run.step(2)
    frame = run.history.frame()
    assert frame["momentum"].tolist() == [0.9] * 3 + [0.99] * 2
    assert frame["active"].tolist() == [92] * 3 + [46] * 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": -1.0}, "lr must be a number from 0 to 100, got -1.0"),
        ({"compression": 0.5}, "compression must be a number >= 1, got 0.5"),
        ({"momentum": 1}, "momentum must be"),
        ({"seed": 3}, "seed restarts the run"),
        ({"batch_size": 16}, "batch_size restarts the run"),
        ({"model": "lenet5"}, "model restarts the run"),
        ({"beta": 0.9}, "there is no knob 'beta'"),
    ],
)
def test_set_checks_all_before_it_moves_any(bad: dict[str, object], message: str) -> None:
    run = tiny()
    run.step(2)
    before = everything(run)
    with pytest.raises(ValueError, match=message):
        run.set(hold=0.1, **bad)
    assert differs(before, everything(run)) == []


def test_every_live_knob_can_be_set_to_its_ends() -> None:
    run = tiny()
    run.step()
    for name in gl.knobs.LIVE:
        for end in (KNOBS[name].low, KNOBS[name].high, KNOBS[name].default):
            run.set(**{name: end})
            run.step()
    assert run.steps == 1 + 3 * len(gl.knobs.LIVE)


# ------------------------------------------------------------------------------------------------ reset


def test_reset_begins_the_same_again() -> None:
    run = tiny(net())
    run.step(12)
    first = everything(run)
    for _ in range(2):
        run.reset()
        assert run.steps == run.dense_steps == 0 and run.base is None and run.history.frame().empty
        run.step(12)
        assert differs(first, everything(run)) == []


def test_reset_takes_the_knobs_in_force() -> None:
    run = tiny()
    run.step(2)
    run.set(compression=2.0, lr=0.01)
    run.reset(momentum=0.5)
    fresh = tiny(compression=2.0, lr=0.01, momentum=0.5)
    for r in (run, fresh):
        r.step(5)
    assert differs(everything(run), everything(fresh)) == []
    assert [event["step"] for event in run.history.events] == [0] * len(gl.knobs.LIVE)


def test_a_new_seed_is_another_run() -> None:
    run = Run(pretrain=0)
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    run.reset(seed=1)
    assert run.knobs["seed"] == 1 and not torch.equal(run.model.fc1.weight, before["fc1.weight"])
    run.reset(seed=0)
    assert equal(dict(run.model.state_dict()), before)


def test_another_model_takes_what_works_there_unless_given() -> None:
    run = Run(pretrain=0, momentum=0.8)
    run.set(lr=0.7)
    run.reset()  # what is in force becomes no setting that was given
    assert run.knobs["lr"] == 0.7
    run.reset(model="lenet5")
    recipe = RECIPES["digits", "lenet5"]
    assert run.knobs == {n: k.default for n, k in KNOBS.items()} | recipe | {
        "model": "lenet5",
        "pretrain": 0,
        "momentum": 0.8,
    }
    assert isinstance(run.model, gl.models.LeNet5)
    run.reset(model="lenet300", lr=0.2)
    assert run.knobs["lr"] == 0.2 and run.knobs["epochs"] == KNOBS["epochs"].default
    run.reset(model="lenet5")
    assert run.knobs["lr"] == 0.2, "given to a reset is given"


def test_the_same_names_are_the_same_run_however_they_were_made() -> None:
    run = Run(pretrain=0)
    run.set(lr=0.7)
    run.reset(model="".join(["lenet", "300"]), data="".join(["dig", "its"]))
    assert run.knobs["lr"] == 0.7


def test_a_seed_survives_a_change_of_the_model() -> None:
    run = Run(pretrain=0)
    run.reset(seed=7)
    run.reset(model="lenet5")
    assert run.knobs["seed"] == 7


@pytest.mark.parametrize(
    "bad", [{"seed": -1}, {"nothing": 1}, {"model": "lenet6"}, {"batch_size": 81}, {"data": "mnist", "lr": 0.5}]
)
def test_a_reset_that_cannot_be_leaves_the_run_as_it_was(
    bad: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(name: str) -> Dataset:
        raise DataNotFound(name)

    monkeypatch.setattr(gl.data, "load", nowhere)
    run, straight = tiny(), tiny()
    run.step(9)
    before, sources = everything(run), (run.source_model, run.source_data, run.opt, run.history)
    with pytest.raises((ValueError, OSError)):
        run.reset(**bad)
    assert differs(before, everything(run)) == []
    assert sources == (run.source_model, run.source_data, run.opt, run.history)
    run.step(5)
    straight.step(14)
    assert differs(everything(run), everything(straight)) == []
    run.reset()
    assert run.knobs == straight.knobs
