"""What the playground says of a run, and its state line."""

import json
import math
from collections.abc import Callable

import pandas as pd
import pytest
import torch

from gsm_lab import Playground, Run
from gsm_lab.notebook import step_inspector
from tests.notebook.playgrounds import Net, mine, settle, until


def test_read_outs(pg: Playground) -> None:
    assert "Q = 4,436 of 266,200 weights (60×)" in pg.budget.value
    assert "halves every 231 steps" in pg.half_life.value and "ln 2 · (1 − β) / (α · η)" in pg.half_life.value
    pg.set(compression=100, momentum=0.5, lr=0.2, weight_decay=0.01)
    assert "Q = 2,662 of 266,200 weights (100×)" in pg.budget.value
    steps = math.log(2) * (1 - 0.5) / (0.2 * 0.01)
    assert f"halves every {steps:.0f} steps" in pg.half_life.value
    pg.set(weight_decay=0)
    assert "stays where it is" in pg.half_life.value and "no decay" in pg.half_life.value
    pg.set(weight_decay=0.03, momentum=0.99)
    assert "swings through zero" in pg.half_life.value


def test_read_outs_follow_the_schedule(board: Callable[..., Playground]) -> None:
    pg = board(Run(pretrain=0, epochs=1, hold=0.0))
    pg.step(12)
    assert f"α in force {pg.run.lr:.2g}" in pg.status.value and pg.run.lr < 0.06
    pg.buttons["play"].click()
    until(pg, lambda: not pg.player.playing)
    pg._draw()
    assert pg.run.finished and "paused (the schedule has come to its end" in pg.status.value


def test_the_read_out_says_how_many_truly_receive_a_gradient(board: Callable[..., Playground]) -> None:
    """Q may be more than there are weights with any |g w|: here all but one layer's rows have decayed to zero."""
    pg = board(Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=10, compression=2.0))
    assert "receive their gradient" in pg.budget.value and "only" not in pg.budget.value
    pg.step(1)
    assert "only" not in pg.budget.value
    with torch.no_grad():
        pg.run.model.one.weight[1:] = 0.0
        pg.run.model.two.weight[:, 1:] = 0.0
    pg.step(1)
    active = int(pg.run.history.steps.array()[-1]["active"].sum())
    assert active <= 9 < pg.run.nonzeros
    assert f"in step 2 <b>only {active}</b> of {pg.run.nonzeros} did: |g·w| of all others is 0" in pg.budget.value
    pg.set(compression=1.0)  # not yet a step with it: what is said is said of the step that was
    assert f"only {active}</b> of 45" in pg.budget.value
    pg.step(1)
    assert "only" not in pg.budget.value and "(1×)</b> receive" in pg.budget.value


@pytest.mark.parametrize(
    "metric, without, said",
    [
        (math.nan, math.nan, "the gate is open"),
        (0.0, math.nan, "the threshold is 0"),
        (0.0, 1e-3, "predicted 0 (|g·w|), true 0.001"),  # of a smoothed gate, where this batch has nothing to say
        (0.5, -0.25, "predicted 0.5 (|g·w|), true 0.25"),
    ],
)
def test_what_is_said_of_the_weight_at_the_threshold(metric: float, without: float, said: str) -> None:
    look = step_inspector.Inspection(3, 0.1, 0.1, 0.1, metric, without, 0.0, 0.0, math.nan)
    assert said in step_inspector.step_text(look)


def test_state_goes_round(board: Callable[..., Playground]) -> None:
    pg = board()
    pg.set(compression=33, momentum=0.95)
    pg.reset(seed=11, batch_size=40)
    pg.copy_button.click()
    line = pg.state_line.value
    assert line == pg.state and "\n" not in line and json.loads(line)["knobs"] == pg.run.knobs
    pg.step(5)
    losses = pg.run.history.frame()["loss"]
    other = board()
    other.step(1)
    other.state_line.value = line
    other.load_button.click()
    settle(other)
    assert other.run.knobs == pg.run.knobs and other.run.steps == 0 and not other.state_note.value
    assert {n: c.value for n, c in other.controls.items()} == {n: pg.run.knobs[n] for n in other.controls}
    other.step(5)
    pd.testing.assert_series_equal(other.run.history.frame()["loss"], losses)
    other.load_state(Playground.state.fget(pg))
    assert other.run.steps == 0


BAD = {
    "": "a state is one line", "nonsense": "a state is one line", "[1, 2]": "a state is one line",
    '"text"': "a state is one line", "3": "a state is one line",
    '{"gsm_lab": 2, "knobs": {}}': "the state is of version 2",
    '{"gsm_lab": 1, "knobs": [1]}': "a state is one line",
    '{"gsm_lab": 1, "knobs": {"momentum": 1.5}}': "momentum must be",
    '{"gsm_lab": 1, "knobs": {"sparsity": 1.5}}': "there is no knob &#x27;sparsity&#x27;",
    '{"gsm_lab": 1, "knobs": {"batch_size": 99999}}': "batch_size",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_state_lines(pg: Playground, line: str) -> None:
    pg.step(1)
    before = dict(pg.run.knobs)
    pg.state_line.value = line
    pg.load_button.click()
    settle(pg)
    assert BAD[line] in pg.state_note.value and "role='alert'" in pg.state_note.value
    with pytest.raises(ValueError, match=BAD[line].split("&")[0]):
        pg.load_state(line)
    assert pg.run.knobs == before and pg.run.steps == 1 and pg.player.error is None
    pg.state_line.value = pg.state
    pg.load_button.click()
    settle(pg)
    assert not pg.state_note.value and pg.run.steps == 0


@pytest.mark.parametrize("line", [None, 3, b"{}", {"gsm_lab": 1, "knobs": {}}, ["a"]])
def test_what_is_no_line_is_no_state(pg: Playground, line: object) -> None:
    with pytest.raises(TypeError, match=r"a state is one line like .* got "):
        pg.load_state(line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "a state is one line"),
        ('{"gsm_lab": 1, "knobs": {"lr": ' + "9" * 5000 + "}}", "a state is one line"),
        ('{"gsm_lab": 1, "knobs": {"lr": NaN}}', "lr must be"),
        ('{"gsm_lab": 1, "knobs": {"seed": [1]}}', "seed must be"),
        ('{"gsm_lab": 1, "knobs": {"model": "Net"}}', "is of model 'Net', which is not here; valid: lenet300"),
        ('{"gsm_lab": 1, "knobs": {"data": ["digits"]}}', "the state is of data .* valid: digits"),
        ('{"gsm_lab": 1, "knobs": {"seed": 5, "model": 3}}', "the state is of model 3"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_had_changes_nothing(pg: Playground, line: str, said: str) -> None:
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    before = dict(pg.run.knobs)
    with pytest.raises(ValueError, match=said):
        pg.load_state(line)
    assert pg.run.knobs == before and pg.run.steps > 2 and pg.player.playing
