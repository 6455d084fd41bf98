"""The Taylor view: which steps are inspected, and what is shown of them."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from gsm_lab import Playground, Run
from gsm_lab.figures import taylor_view
from gsm_lab.notebook import step_inspector
from gsm_lab.studies.steps import steps
from tests.notebook.playgrounds import Net, mine, press, until


def looked(pg: Playground) -> list[int]:
    """The steps that were looked at."""
    return pg.taylor.inspected()["step"].tolist()


def taylor_lines(pg: Playground) -> list[go.Scatter]:
    return [trace for trace in pg.figure.data if trace.legend in taylor_view.LEGENDS]


def test_taylor_view_shows_what_the_study_says(pg: Playground) -> None:
    pg.show("Taylor")
    assert "nothing yet" in pg.taylor.text.value and looked(pg) == []
    assert [len(trace.x) for trace in taylor_lines(pg)] == [0] * 6
    pg.step(1)
    pg.step(7)
    assert looked(pg)[0] == 1 and looked(pg)[-1] == pg.taylor.last.step == 8
    table = steps(Run(hold=1.0, pretrain=0), 8).iloc[7]
    last = pg.taylor.last
    assert [last.true, last.first, last.second] == pytest.approx(table[["true", "first", "second"]].tolist(), rel=1e-9)
    assert last.error_first == pytest.approx(table["error of first"], rel=1e-6)
    assert last.metric == pg.run.opt.threshold and last.error_metric < 0.5
    text = pg.taylor.text.value.replace("−", "-")
    assert f"Step 8, change of its batch's loss:</b> predicted {last.first:.3g} (g·Δw)" in text
    assert f"true {last.true:.3g}, {100 * last.error_first:,.0f}% and " in text and " off · <b>without" in text
    lines = taylor_lines(pg)
    assert [trace.x[-1] for trace in lines] == [8] * 6
    assert all(isinstance(t.y, np.ndarray) and t.x.dtype == t.y.dtype == np.float32 for t in lines)
    assert [trace.y[-1] for trace in lines[:3]] == pytest.approx([last.true, last.first, last.second], rel=1e-6)
    titles = [note.text for note in pg.figure.layout.annotations if note.name in ("change", "error")]
    pg.show()
    assert "Step 8: predicted" in titles[0] and "off by" in titles[1]


def test_taylor_view_changes_nothing(board: Callable[..., Playground]) -> None:
    def net() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))

    knobs = {"hold": 1.0, "pretrain": 2, "batch_size": 8, "compression": 4.0}
    pg = board(Run(net(), mine(), **knobs))
    for _ in range(12):
        pg.step(1)
    assert looked(pg) == list(range(1, 13))
    alone = Run(net(), mine(), **knobs)
    alone.step(12)
    for (name, a), b in zip(pg.run.model.state_dict().items(), alone.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    pd.testing.assert_frame_equal(pg.run.history.frame(), alone.history.frame())
    assert torch.equal(pg.run.random_state, alone.random_state)


def test_taylor_view_takes_its_share_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.002  # a look has a few of these, so it takes 8 ms
        return now[0]

    monkeypatch.setattr(step_inspector, "time", SimpleNamespace(perf_counter=clock))
    run = Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=8, compression=4.0)
    player = SimpleNamespace(closed=False, playing=True, ending=False, frame_due=True)
    watch = step_inspector.Inspector(run)
    run.step(5)
    assert len(watch.inspected()) == 0  # nobody plays it
    watch.player = lambda: player
    run.step(3000)
    assert 10 < len(watch.inspected()) < 300
    assert watch.seconds <= step_inspector.SHARE * now[0] + 0.01
    seen, now[0] = len(watch.inspected()), now[0] + 10
    player.frame_due = False  # it waits for a frame, but not forever
    watch._next_at = now[0] + 0.01
    run.step(4)
    assert len(watch.inspected()) == seen
    now[0] += 1
    run.step(1)
    assert len(watch.inspected()) == seen + 1
    run.step(1)
    player.ending = True  # the last of those asked for is looked at in any case
    run.step(1)
    assert watch.inspected()["step"].tolist()[-1] == run.steps == watch.last.step and len(watch.inspected()) == seen + 2
    watch.detach()
    run.step(1)
    assert len(watch.inspected()) == seen + 2


def test_taylor_view_while_playing_and_at_the_last_of_fifty(pg: Playground) -> None:
    pg.play()
    until(pg, lambda: len(pg.taylor.inspected()) > 2)
    press(pg, "pause")
    press(pg, "step_50")
    assert pg.taylor.last.step == pg.run.steps


def test_taylor_view_through_dense_epochs_and_reset(board: Callable[..., Playground]) -> None:
    pg = board(Run(Net(), mine(), hold=1.0, pretrain=3, batch_size=8, compression=4.0))
    pg.run.pretrain(5)
    pg.show("Taylor")
    assert looked(pg) == [] and "once the gate has closed" in pg.taylor.text.value
    pg.step(2)
    assert looked(pg)[-1] == 2
    for reset in (pg.reset, pg.run.reset, lambda: press(pg, "reset"), lambda: pg.set(compression=1.0)):
        reset()
        pg._draw()
    assert looked(pg) == [] and "nothing yet" in pg.taylor.text.value and len(taylor_lines(pg)[0].x) == 0
    pg.step(1)
    assert looked(pg) == [1] and "the gate is open" in pg.taylor.text.value
    assert "off by" in next(note.text for note in pg.figure.layout.annotations if note.name == "error")


def test_taylor_view_of_what_is_not_finite(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.step(1)
    pg.set(lr=100)
    with pytest.raises(FloatingPointError):
        for _ in range(60):
            pg.step(1)
    assert pg.taylor.last.step >= 2 and not abs(pg.taylor.last.true) < 1e3
    pg._draw()
    assert all(not np.isinf(trace.y).any() for trace in taylor_lines(pg))
    pg.reset(lr=0.1)
    monkeypatch.setattr(pg.run, "loss", lambda x, y: (x * float("nan")).sum())
    with pytest.raises(FloatingPointError):
        pg.step(1)
    pg._draw()
    assert "could not be looked at" in pg.taylor.text.value and "nan" in pg.taylor.text.value
    monkeypatch.undo()
    pg.step(1)
    assert pg.taylor.last.step == 1 and not pg.taylor.failure


def test_taylor_view_that_fails_stops_no_training(pg: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("<b>no second derivative</b>")

    monkeypatch.setattr(step_inspector.Before, "predicted", fails)
    pg.step(3)
    assert pg.run.steps == 3 and pg.player.error is None and looked(pg) == []
    assert "&lt;b&gt;no second derivative" in pg.taylor.text.value


def test_taylor_view_hidden(board: Callable[..., Playground]) -> None:
    pg = board(hide="taylor")
    pg.step(2)
    assert not pg.taylor.shown and pg.taylor.inspected() is None and not pg.run.opt._optimizer_step_pre_hooks
    assert taylor_lines(pg) == [] and len(pg.figure.layout.annotations) == 4
    assert "Taylor" not in [view for _, view in pg.views.tabs.options]
    full = board()
    assert len(taylor_lines(full)) == 6
    dashes = {trace.line.dash for trace in taylor_lines(full)[:3]}
    symbols = {trace.marker.symbol for trace in taylor_lines(full)[:3]}
    assert len(dashes) == len(symbols) == 3
    assert not board(full.run).player.closed and full.player.closed
    full.close()
    assert len(full.run.opt._optimizer_step_pre_hooks) == 1  # the newer playground's


def probes(*errors: tuple[float, float]) -> np.ndarray:
    rows = np.zeros(len(errors), step_inspector.INSPECTION)
    rows["step"], rows["error_second"] = range(1, len(errors) + 1), np.nan
    rows["error_first"], rows["error_metric"] = np.transpose(errors)
    return rows


@pytest.mark.parametrize(("errors", "said"), [
    ([(0.5, 0.01)], "Taylor is off by 50% for a step, 1% for one weight"),
    ([(0.1, 0.01), (0.3, 0.03), (0.2, 0.02)], "Median of 3: off by 20% for a step, 2% for one weight"),
    ([(0.1, 0.01)] * 20 + [(0.3, 0.03)] * 5, "Median of 9: off by 30% for a step, 3% for one weight"),
    ([(0.1, 0.01)] * 9 + [(0.3, np.nan)], "Median of 9: off by 10% for a step"),  # the gate is open now
    ([(0.1, 0.01)] * 9 + [(np.nan, np.nan)], "Nothing that could be compared"),  # too small now
    ([(np.nan, 0.01)] * 2, "Median of 2: off by 1% for one weight"),
])  # fmt: skip
def test_the_title_speaks_of_what_the_latest_step_has(errors: list[tuple[float, float]], said: str) -> None:
    assert taylor_view.titles(probes(*errors))[1] == said
