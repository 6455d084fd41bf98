"""The history against a naive log of every mask and every weight, and its promises about memory and thinning."""

import copy
import itertools
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab import Run
from gsm_lab.knobs import KNOBS, LIVE
from gsm_lab.training.history import History, Rows

LAYERS = {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
SMALL = {"a": 5, "b": 3}
untimed = settings(deadline=None)
ROW = np.dtype([("step", np.int32), ("value", np.float32)])


def small_record(history: History, step: int, active: list[int], near: tuple[int, int] = (0, 0)) -> None:
    """One step of the layers `SMALL`; so many weights under 1e-3 and 1e-4 in layer b, none in layer a."""
    mask = np.zeros(8, dtype=bool)
    mask[active] = True
    b = np.ones(3, np.float32)
    b[: near[0]] = -5e-4
    b[: near[1]] = 5e-5
    history.record(step, step / 10, 1 / step, 0.5, 0.1, mask, [np.ones((5, 1), np.float32), b])


# ------------------------------------------------------------------------------------------------ what it says


@pytest.fixture(scope="module")
def logged() -> tuple[Run, pd.DataFrame]:
    """A real run with knobs that move, and the same told by somebody who kept every mask and looked at every weight."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other on a busy machine
    run = Run(compression=20, pretrain=1, evaluate_every=15, seed=4)
    moves = {20: {"compression": 200.0}, 40: {"momentum": 0.5, "lr": 0.05}, 41: {"compression": 2.0}, 50: {"hold": 1.0}}
    rows, before = [], None
    for step in range(1, 61):
        run.set(**moves.get(step - 1, {}))
        row = {"step": step, "epoch": step / 22, "lr_scheduled": run.lr}
        row |= {name: run.knobs[name] for name in LIVE}
        run.step()
        row["threshold"] = run.opt.threshold
        group = run.opt.param_groups[0]
        masks = [run.opt.active(p).clone() for p in group["params"]]
        for name, mask, p, old in zip(group["names"], masks, group["params"], before or masks, strict=True):
            row[f"active/{name}"] = int(mask.count_nonzero())
            row[f"reactivated/{name}"] = len(torch.nonzero(mask & ~old))
            for bound in ("1e-3", "1e-4"):
                row[f"under_{bound}/{name}"] = int((p.detach().double().abs() < np.float32(bound)).sum())
        before = masks
        if step % 15 == 0:
            row |= {"live_accuracy": run.evaluate(), "cut_accuracy": run.evaluate(cut=True)}
        rows.append(row)
    torch.set_num_threads(threads)
    return run, pd.DataFrame(rows)


def test_a_real_run_against_a_naive_log(logged: tuple[Run, pd.DataFrame]) -> None:
    run, expected = logged
    frame = run.history.frame()
    for column in expected:
        np.testing.assert_allclose(frame[column], expected[column], rtol=1e-6, err_msg=column)
    for total in ("active", "reactivated", "under_1e-3", "under_1e-4"):
        parts = expected[[f"{total}/{layer}" for layer in LAYERS]].sum(axis=1)
        np.testing.assert_array_equal(frame[total], parts)
        assert parts.nunique() >= 3, f"{total} hardly moves: this run shows nothing"
    assert set(frame) - set(expected) == {"loss", "active", "reactivated", "under_1e-3", "under_1e-4"} | {
        f"kept/{layer}" for layer in LAYERS
    }
    assert run.history.reactivations == frame["reactivated"].sum()


def test_active_is_q(logged: tuple[Run, pd.DataFrame]) -> None:
    frame = logged[0].history.frame()
    np.testing.assert_array_equal(frame["active"], 266_200 // frame["compression"])


def test_kept_adds_up_to_q_where_it_was_evaluated(logged: tuple[Run, pd.DataFrame]) -> None:
    frame = logged[0].history.frame().set_index("step")
    kept = frame[[f"kept/{layer}" for layer in LAYERS]].dropna()
    assert list(kept.index) == [15, 30, 45, 60]
    np.testing.assert_array_equal(kept.sum(axis=1), 266_200 // frame["compression"][kept.index])


def test_evaluation_frame_begins_where_the_gate_closed(logged: tuple[Run, pd.DataFrame]) -> None:
    run = logged[0]
    evaluations = run.history.evaluation_frame()
    assert list(evaluations["step"]) == [0, 15, 30, 45, 60]
    assert evaluations["live_accuracy"][0] == np.float32(run.base)
    assert evaluations["cut_accuracy"][0] == np.float32(run.magnitude)


def test_loss_is_that_of_the_batch_before_the_update() -> None:
    run = Run(pretrain=0, seed=4)
    model = copy.deepcopy(run.model)
    x, y = run.batches.batch(0)
    run.step()
    np.testing.assert_allclose(
        run.history.frame()["loss"], torch.nn.functional.cross_entropy(model(x), y).item(), rtol=1e-6
    )


def test_a_history_without_steps_has_its_columns() -> None:
    history = History(LAYERS)
    assert history.frame().empty and history.evaluation_frame().empty
    full = History(LAYERS)
    full.record(1, 0.1, 1.0, 0.1, 0.1, np.ones(266_200, bool), [np.ones(n, np.float32) for n in LAYERS.values()])
    assert list(history.frame()) == list(full.frame())


def test_small_masks_by_hand() -> None:
    history = History(SMALL)
    small_record(history, 1, [0, 5, 6], (2, 1))
    small_record(history, 2, [0, 1, 6], (3, 0))
    small_record(history, 3, [5, 6, 7], (0, 0))
    frame = history.frame()
    assert frame["reactivated"].tolist() == [0, 1, 2] and history.reactivations == 3
    assert frame["reactivated/a"].tolist() == [0, 1, 0] and frame["reactivated/b"].tolist() == [0, 0, 2]
    assert frame["active/a"].tolist() == [1, 2, 0] and frame["active/b"].tolist() == [2, 1, 3]
    assert frame["under_1e-3/b"].tolist() == [2, 3, 0] and frame["under_1e-4"].tolist() == [1, 0, 0]
    assert not frame["under_1e-3/a"].any()


def test_frames_are_copies() -> None:
    history = History(SMALL)
    small_record(history, 1, [0])
    history.evaluated(1, 0.5, 0.25, [1, 0])
    for frame in (history.frame, history.evaluation_frame):
        first = frame()
        first.loc[:, :] = 7
        assert not (frame() == 7).any().any()


# ------------------------------------------------------------------------------------------------ knobs and events


def test_a_knob_is_constant_between_its_moves() -> None:
    history = History(SMALL)
    history.moved(0, "lr", None, 0.1)
    for step in range(1, 31):
        small_record(history, step, [0])
        if step == 10:
            history.moved(10, "lr", 0.1, 0.2)
        if step == 29:
            history.moved(29, "lr", 0.2, 0.4)
    assert history.frame()["lr"].tolist() == [0.1] * 10 + [0.2] * 19 + [0.4]
    assert history.frame()["momentum"].isna().all()


@untimed
@given(
    moves=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["lr", "hold"]), st.integers(1, 3))), data=st.data()
)
def test_knob_columns_against_settings_noted_at_each_step(
    moves: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    now = {"lr": 1, "hold": 1}
    history = History(SMALL)
    for name, value in now.items():
        history.moved(0, name, None, value)
    noted = []
    for step in range(12):
        for _, name, value in (move for move in moves if move[0] == step):
            if now[name] != value:
                history.moved(step, name, now[name], value)
                now[name] = value
        noted.append(dict(now))
        small_record(history, step + 1, [0])
    frame = history.frame()
    for name in now:
        assert frame[name].tolist() == [values[name] for values in noted]
    steps = [(event["step"], event["knob"]) for event in history.events]
    assert steps == sorted(steps, key=lambda place: place[0]) and len(set(steps)) == len(steps)
    for name in now:  # each takes over from the one before, and none moves nothing
        chain = [event for event in history.events if event["knob"] == name]
        assert all(a["new"] == b["old"] for a, b in itertools.pairwise(chain))
        assert all(event["old"] != event["new"] for event in chain)


def test_moves_between_two_steps_are_one_and_there_and_back_is_none() -> None:
    history = History(SMALL)
    for value in (0.2, 0.3, 0.4):
        history.moved(5, "lr", 0.1, value)
        history.moved(5, "momentum", 0.9, value)
    assert history.events == [
        {"step": 5, "knob": "lr", "old": 0.1, "new": 0.4},
        {"step": 5, "knob": "momentum", "old": 0.9, "new": 0.4},
    ]
    history.moved(5, "lr", 0.4, 0.1)
    assert [event["knob"] for event in history.events] == ["momentum"]
    history.moved(6, "momentum", 0.4, 0.9)
    assert len(history.events) == 2


# ------------------------------------------------------------------------------------------------ memory


@untimed
@given(most=st.integers(1, 40), n=st.integers(0, 600))
def test_thinned_rows_stay_evenly_spaced_from_the_first_to_nearly_the_last(most: int, n: int) -> None:
    rows = Rows(ROW, most * ROW.itemsize)
    for step in range(n):
        rows.append((step, step / 2))
        assert len(rows.array()) <= max(2, most)
    steps = rows.array()["step"]
    assert steps.tolist() == list(range(0, n, rows.every))
    np.testing.assert_array_equal(rows.array()["value"], steps / 2)
    assert rows.every == 1 or len(steps) > rows.most // 2, "thinned more than it had to be"


@untimed
@given(most=st.integers(1, 40), n=st.integers(0, 200), more=st.integers(0, 200))
def test_rows_restored_go_on_alike(most: int, n: int, more: int) -> None:
    straight, first = Rows(ROW, most * ROW.itemsize), Rows(ROW, most * ROW.itemsize)
    for step in range(n):
        straight.append((step, 1.0))
        first.append((step, 1.0))
    then = Rows(ROW, most * ROW.itemsize)
    array, counters = first.state()
    then.restore(array.copy(), **json.loads(json.dumps(counters)))
    for step in range(n, n + more):
        straight.append((step, 1.0))
        then.append((step, 1.0))
    np.testing.assert_array_equal(straight.array(), then.array())
    assert straight.state()[1] == then.state()[1]


@untimed
@given(masks=st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=60))
def test_the_total_of_reactivations_is_exact_where_rows_are_thinned(masks: list[set[int]]) -> None:
    history = History(SMALL, limit=300)
    for step, active in enumerate(masks, 1):
        small_record(history, step, list(active))
    assert history.reactivations == sum(len(b - a) for a, b in itertools.pairwise(masks))
    assert len(history.steps.array()) <= 300 / history.steps.array().dtype.itemsize
    frame = history.frame()
    assert frame["step"].tolist() == list(range(1, len(masks) + 1, history.steps.every))
    for step, row in frame.set_index("step").iterrows():  # what is left of the rows is what they were
        assert row["active"] == len(masks[step - 1])
        assert row["reactivated"] == (len(masks[step - 1] - masks[step - 2]) if step > 1 else 0)


def test_evaluations_survive_thinning_and_stand_at_the_row_before_them() -> None:
    history = History(SMALL, limit=2000)
    history.evaluated(0, 0.0, 0.0, [5, 3])
    for step in range(1, 1001):
        small_record(history, step, [0])
        if step % 300 == 0:
            history.evaluated(step, step / 1000, step / 2000, [4, 3])
    assert history.steps.every > 10 and history.evaluations.every == 1
    found = history.frame().dropna(subset="live_accuracy")
    np.testing.assert_allclose(found["live_accuracy"], [0.3, 0.6, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found["cut_accuracy"], [0.15, 0.3, 0.45], rtol=1e-6)
    assert all(
        0 <= evaluated - row < history.steps.every
        for evaluated, row in zip((300, 600, 900), found["step"], strict=True)
    )
    assert history.evaluation_frame()["step"].tolist() == [0, 300, 600, 900]


def test_of_two_evaluations_of_a_step_the_later_counts() -> None:
    history = History(SMALL)
    small_record(history, 1, [0])
    history.evaluated(1, 0.1, 0.1, [1, 1])
    history.evaluated(1, 0.2, 0.2, [1, 1])
    np.testing.assert_allclose(history.frame()["live_accuracy"], [0.2], rtol=1e-6)
    assert len(history.evaluation_frame()) == 1


def test_100_000_steps_of_lenet300_take_at_most_50_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real masks and weights; counting them is left out, which takes no memory of its own but most of the time."""
    weights = [np.zeros(n, np.float32) for n in LAYERS.values()]
    masks = [np.zeros(266_200, bool), np.ones(266_200, bool)]
    tracemalloc.start()
    try:
        history = History(LAYERS)
        for step in (1, 2):
            history.record(step, 0.0, 1.0, 0.1, 0.1, masks[step % 2].copy(), weights)
        monkeypatch.setattr("gsm_lab.training.history.flags", lambda *_: (np.zeros(3, np.int32), np.zeros(3, np.int32)))
        monkeypatch.setattr("gsm_lab.training.history.near_zero", lambda *_: [0, 0])
        for step in range(3, 100_001):
            history.record(step, step / 22, 1.0, 0.1, 0.1, masks[step % 2], weights)
            if step % 50 == 0:
                history.evaluated(step, 0.5, 0.5, [1, 2, 3])
            if step % 20 == 0:
                history.moved(step, "lr", step - 20.0, float(step))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(history.steps.array()) == 100_000 and len(history.evaluations.array()) == 2_000
    assert peak <= 50e6, f"{peak / 1e6:.1f} MB at its peak, {held / 1e6:.1f} MB at the end"


def test_a_longer_run_of_a_deeper_net_stays_bounded() -> None:
    layers = {f"layer{i}": 1 for i in range(57)}
    history = History(layers, limit=1_000_000)
    mask, weights = np.ones(57, bool), [np.ones(1, np.float32)] * 57
    for step in range(1, 3001):
        history.record(step, 0.0, 1.0, 0.1, 0.1, mask, weights)
    assert history.steps.array().nbytes <= 1_000_000 and history.steps.every == 4
    assert len(history.frame()) == 750


# ------------------------------------------------------------------------------------------------ state


def test_a_history_restored_goes_on_alike() -> None:
    rng = np.random.default_rng(0)
    straight, first, then = (History(SMALL, limit=1500) for _ in range(3))
    for knob in LIVE:
        for history in (straight, first):
            history.moved(0, knob, None, KNOBS[knob].default)
    for step in range(1, 101):
        if step == 51:
            arrays, plain = first.state()
            arrays, plain = {name: a.copy() for name, a in arrays.items()}, json.loads(json.dumps(plain))
            then.restore(arrays, plain)
            pd.testing.assert_frame_equal(first.frame(), then.frame(), check_exact=True)
        active, near = np.flatnonzero(rng.random(8) < 0.4).tolist(), (int(rng.integers(4)), 0)
        for history in (straight, then if step > 50 else first):
            small_record(history, step, active, near)
            if step % 7 == 0:
                history.evaluated(step, step / 100, 0.0, [1, 1])
                history.moved(step, "lr", 0.0, float(step))
    assert straight.steps.every > 1
    pd.testing.assert_frame_equal(straight.frame(), then.frame(), check_exact=True)
    pd.testing.assert_frame_equal(straight.evaluation_frame(), then.evaluation_frame(), check_exact=True)
    assert straight.events == then.events and straight.reactivations == then.reactivations
