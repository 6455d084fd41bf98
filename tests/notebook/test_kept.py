"""A run that is kept and come back to goes on to the bit; `copy.deepcopy`, made at the same moment, says how."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from gsm_lab import Run, methods
from gsm_lab.notebook import kept
from gsm_lab.notebook.kept import Kept, Shelf
from gsm_lab.training.checkpoint import CheckpointError
from gsm_lab.training.going_back import go_back
from tests.runs import Tied, differs, everything, mine, net, tiny


def same(run: Run, other: Run) -> None:
    assert not differs(everything(run), everything(other))


def all_alike(run: Run, other: Run, steps: int = 9) -> None:
    """They are the same to the bit, and are so after some steps, a moved knob and a reset."""
    same(run, other)
    for one in (run, other):
        one.step(steps)
        one.set(momentum=0.7, lr=0.05)
        one.step(steps)
    same(run, other)
    for one in (run, other):
        one.reset(seed=3)
        one.step(2)
    same(run, other)


MOVES = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 13)),
    st.tuples(st.just("set"), st.sampled_from([{"compression": 9.0}, {"momentum": 0.0}, {"lr": 0.3}, {"epochs": 2},
                                               {"smoothing": 0.5}, {"freeze": 0.1}])),
    st.tuples(st.just("reset"), st.sampled_from([{}, {"seed": 2}, {"pretrain": 0}, {"batch_size": 16}])),
    st.tuples(st.just("dense"), st.integers(0, 4)),
    st.tuples(st.just("keep"), st.integers(0, 2)),
    st.tuples(st.just("back"), st.integers(0, 2)),
    st.tuples(st.just("cut"), st.none()),
)  # fmt: skip


DO: dict[str, Callable[[Run, Any], object]] = {
    "step": lambda run, n: run.step(n), "dense": lambda run, n: run.pretrain(n), "cut": lambda run, _: run.cut(),
    "set": lambda run, knobs: run.set(**knobs), "reset": lambda run, knobs: run.reset(**knobs),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the cut left no weight")
@settings(max_examples=15)
@example([("dense", 3), ("keep", 0), ("step", 5), ("keep", 1), ("set", {"smoothing": 0.5}), ("step", 9), ("keep", 2),
          ("reset", {"batch_size": 16}), ("step", 3), ("back", 0), ("back", 2), ("step", 8), ("back", 1)])  # fmt: skip
@given(st.lists(MOVES, max_size=12))
def test_whatever_was_done_between_it_goes_on_as_it_would_have(moves: list[tuple[str, Any]]) -> None:
    """Batch norm, dropout, own data; the oracle is a deep copy that was made when the state was kept."""
    run, states = tiny(epochs=3), {}
    twin = copy.deepcopy(run)
    for what, how in moves:
        if what == "keep":
            states[how] = Kept.of(run, f"kept {how}"), copy.deepcopy(run)
        elif what == "back":
            if how in states:
                states[how][0].back_into(run)
                twin = copy.deepcopy(states[how][1])
                same(run, twin)
        else:
            for one in (run, twin):
                DO[what](one, how)
    for one in (run, twin):
        one.step(3)
    same(run, twin)


def rival(name: str, **more: object) -> Callable[[], Run]:
    return lambda: methods.build(
        name, model=net(), data=mine(), batch_size=8, pretrain=1, epochs=3, compression=4.0, **more
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(),
        lambda: tiny(Tied(), compression=3),
        lambda: tiny(smoothing=0.9, ramp=0.5, freeze=0.3),
        lambda: tiny(cut_at=0.2, pretrain=0),
        lambda: tiny(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), include="*", exclude="0.bias"),
        rival("dns"),
        rival("admm"),
        rival("lobs", until=0.4),
        rival("magnitude"),
    ],
    ids=["own", "tied", "frozen", "cut", "picked", "dns", "admm", "lobs", "magnitude"],
)
@pytest.mark.filterwarnings("ignore")
def test_all_kinds_of_runs(make: Callable[[], Run]) -> None:
    run = make()
    run.step(14)
    state, twin = Kept.of(run), copy.deepcopy(run)
    alone = state.run()
    run.step(11)
    run.reset(seed=5)
    run.step(4)
    same(state.run(), twin)  # whatever the one that was kept does meanwhile
    state.back_into(run)
    all_alike(run, copy.deepcopy(twin))
    all_alike(alone, copy.deepcopy(twin))
    state.back_into(run)  # again: nothing that has been done since has changed what is kept
    same(run, twin)


def test_as_if_it_had_been_done_so_from_the_beginning() -> None:
    """Without any copy as an oracle: another run, by name, that has done only what counts."""
    run, straight = (Run(pretrain=1, hold=1.0) for _ in range(2))
    run.step(8)
    state = Kept.of(run, "a")
    run.set(compression=200.0)
    run.step(9)
    state.back_into(run)
    run.set(lr=0.05)
    run.step(6)
    straight.step(8)
    straight.set(lr=0.05)
    straight.step(6)
    same(run, straight)


def test_after_another_model_and_other_data_by_name() -> None:
    module, data = net(), mine()
    run = tiny(module)
    run.step(8)
    state, twin = Kept.of(run), copy.deepcopy(run)
    run.reset(model="lenet300", data="digits", pretrain=0)
    run.step(2)
    state.back_into(run)
    assert run.model is module and run.source_model is module and run.data.digest == data.digest
    all_alike(run, twin)
    named = Run("lenet300", "digits", pretrain=0)
    named.step(3)
    state, twin = Kept.of(named), copy.deepcopy(named)
    named.reset(model="lenet5", batch_size=256)
    named.step(1)
    state.back_into(named)
    all_alike(named, twin, 2)


def test_options_that_were_not_given_follow_the_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = methods.build("dns", model="lenet300", data="digits", pretrain=0)
    state = Kept.of(run)
    run.reset(margin=0.5)
    state.back_into(run)
    monkeypatch.setitem(type(run.method).recipes, ("digits", "lenet5"), {"thresholds": "size"})
    run.reset(model="lenet5")
    assert (run.options["margin"], run.options["thresholds"]) == (0.1, "size")


def test_what_has_watched_the_steps_that_are_undone_watches_no_more() -> None:
    run, seen = tiny(pretrain=0), []
    run.recorders.append(lambda step, *_: seen.append(step))
    run.step(3)
    state = Kept.of(run)
    run.step(2)
    state.back_into(run)
    run.step(4)
    assert seen == [1, 2, 3, 4, 5] and run.recorders == [] and run.steps == 7


def test_of_one_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tiny(), tiny()
    state, before = Kept.of(run, "a"), everything(other)
    with pytest.raises(ValueError, match=r"run must be the one that 'a' was kept of; kept.run\(\) is one"):
        state.back_into(other)
    with pytest.raises(TypeError, match=r"run must be a gsm_lab.Run, got int"):
        state.back_into(3)
    assert not differs(before, everything(other))
    with pytest.raises(TypeError, match="run must be a gsm_lab"):
        Kept.of(net())
    with pytest.raises(ValueError, match="name must be text with something to read in it, got ' '"):
        Kept.of(run, " ")
    with pytest.raises(TypeError, match="name must be text, got 3"):
        Kept.of(run, 3)
    run.recorders.append(lambda *_: state.back_into(run))
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        run.step()


@pytest.mark.parametrize("spoil", [
    lambda tensors, plain: tensors.pop("momentum/0"),
    lambda tensors, plain: plain.pop("steps"),
    lambda tensors, plain: plain.update(data_digest="0" * 16),
    lambda tensors, plain: plain.update(method="dns"),
    lambda tensors, plain: tensors.update({"history/steps/step": torch.zeros(3, dtype=torch.int32)}),
    lambda tensors, plain: tensors.update({"model/head.weight": torch.zeros(3, 3)}),
    lambda tensors, plain: plain["knobs"].update(momentum=7),
])  # fmt: skip
def test_a_state_that_is_none_leaves_the_run_where_it_is(spoil: Callable[[dict, dict], object]) -> None:
    run = tiny()
    run.step(9)
    tensors, plain = run.state()
    plain = copy.deepcopy(plain)
    run.step(3)
    spoil(tensors, plain)
    if "momentum/0" not in tensors:
        tensors["momentum/99"] = torch.zeros(2)
    watching = [lambda *_: None]
    run.recorders, twin, before = watching, copy.deepcopy(run), everything(run)
    with pytest.raises(CheckpointError):
        go_back(run, tensors, plain, run.source_model, run.source_data)
    assert not differs(before, everything(run)) and run.recorders is watching
    twin.recorders = []
    all_alike(run, twin)


def test_a_line_of_what_it_is() -> None:
    run = tiny(pretrain=1)
    run.pretrain(4)
    assert Kept.of(run, "early").line == "early: dense step 4, 4×, β 0.9"
    run.step(7)  # an evaluation
    run.steps = 1500
    cut = 100 * run.history.evaluation_frame()["cut_accuracy"].iloc[-1]
    state = Kept.of(run, "kept 1")
    assert state.line == f"kept 1: step 1,500, 4×, β 0.9, cut {cut:.1f}%" and repr(state) == f"Kept({state.line})"
    assert (state.steps, state.knobs) == (1500, run.knobs) and state.cut == pytest.approx(cut / 100)
    one = rival("dns")()
    assert Kept.of(one, "b").line == "b: dns, dense step 0, 4×, β 0.9"


def test_a_shelf_holds_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    run, shelf = tiny(pretrain=0), Shelf()
    for _ in range(kept.MOST + 3):
        shelf.keep(run)
        run.step()
    assert shelf.names == [f"kept {i}" for i in range(4, kept.MOST + 4)]
    assert [state.steps for state in shelf] == list(range(3, kept.MOST + 3))
    first = shelf["kept 5"]
    again = shelf.keep(run, "kept 5")
    assert shelf["kept 5"] is again is not first and len(shelf) == kept.MOST and shelf.names[-1] == "kept 5"
    with pytest.raises(KeyError, match=r"nothing is kept as 'kept 1'; there is 'kept 4', "):
        shelf["kept 1"]
    monkeypatch.setattr(kept, "MEGABYTES", 2.5 * again.nbytes / 1e6)
    shelf.keep(run, "big")
    assert shelf.names == ["kept 5", "big"] and shelf.nbytes <= 1e6 * kept.MEGABYTES
    monkeypatch.setattr(kept, "MEGABYTES", 0)
    shelf.keep(run, "bigger")
    assert shelf.names == ["bigger"]


def test_what_it_takes() -> None:
    """Two numbers of 32 bits a parameter, and a row of the history a step, as the documentation says."""
    run = Run(pretrain=0)
    run.step(40)
    parameters = sum(p.numel() for p in run.model.parameters())
    row = run.history.steps.array().dtype.itemsize
    state = Kept.of(run)
    assert row <= 70 and 0 <= state.nbytes - 8 * parameters - 40 * row < 50_000
    assert 2.1e6 < 8 * parameters + 1500 * row < 2.3e6


def test_a_name_that_somebody_gave_is_not_taken_again() -> None:
    run, shelf = tiny(), Shelf()
    for name, called in (
        ("kept 2", "kept 2"),
        (None, "kept 1"),
        (None, "kept 3"),
        ("kept 4", "kept 4"),
        (None, "kept 5"),
    ):
        assert shelf.keep(run, name).name == called
    assert len(shelf) == 5
