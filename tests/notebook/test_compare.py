"""`Compare` without a browser, and `InStep`, what it plays: as many steps of each, and what each would do alone."""

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from gsm_lab import Compare, Dataset, Playground, Run, methods
from gsm_lab.figures import comparison
from gsm_lab.notebook.in_step import InStep
from gsm_lab.notebook.player import Player
from gsm_lab.training.fitting import evaluating
from tests.notebook.players import SECONDS, Fake, done
from tests.runs import differs, everything, mine, net, plain, tiny

NO_DENSE = {"pretrain": 0, "hold": 1.0}


@pytest.fixture
def compare() -> Iterator[Callable[..., Compare]]:
    made: list[Compare] = []

    def new(**runs: Run) -> Compare:
        made.append(Compare(runs or {"a": tiny(**NO_DENSE), "b": tiny(net(1), momentum=0.0, **NO_DENSE)}))
        return made[-1]

    yield new
    for one in made:
        one.close()


def until(one: Compare, condition: Callable[[], bool]) -> None:
    """Wait until it holds, without asking for anything, which would be drawn."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        one.player._thread.join(0.01)


def press(one: Compare, name: str) -> None:
    one.buttons[name].click()
    done(one.player)
    if name != "play":
        until(one, lambda: not one.player.playing)
    one._draw()


# ------------------------------------------------------------------------------------------------ in step


def test_a_bar_counts_the_steps_of_all(compare: Callable[..., Compare], capsys: pytest.CaptureFixture[str]) -> None:
    """Dense ones, those by which one is behind, and `n` of each."""
    ahead, behind = tiny(**NO_DENSE), tiny(net(1), pretrain=1)
    ahead.step(7)
    board = compare(a=ahead, b=behind)
    board.step(12, progress=True)
    total = 12 + behind.dense_steps + 7 + 12
    assert f"{total}/{total}" in capsys.readouterr().err and board.in_step.steps == 19
    board.step(1)
    assert capsys.readouterr().err == ""


def test_a_playground_has_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    playground = Playground(tiny(**NO_DENSE))
    try:
        playground.step(12, progress=True)
        assert "12/12" in capsys.readouterr().err and playground.run.steps == 12
    finally:
        playground.close()


def test_runs_played_in_step_do_what_they_do_alone(compare: Callable[..., Compare]) -> None:
    """Dropout and batch norm, dense epochs, another method: to the bit, whoever comes between."""
    made = [
        lambda: tiny(hold=1.0), lambda: tiny(net(1), pretrain=0, hold=1.0),
        lambda: methods.build("dns", model=net(2), data=mine(), batch_size=8, pretrain=1, epochs=50, compression=4.0),
    ]  # fmt: skip
    runs, alone = [make() for make in made], [make() for make in made]
    for one in (runs[1], alone[1]):
        one.step(4)
    board = compare(**dict(zip("abc", runs, strict=True)))
    board.player.threads = None
    waits = "a begins with its dense epochs, 10 steps to go; c begins with its dense epochs, 10 steps to go"
    assert board.in_step.waits_for == waits and waits in board.status.value
    board.step(5)
    board.player.play(6)
    until(board, lambda: not board.player.playing)
    assert [run.steps for run in runs] == [15] * 3 and board.in_step.waits_for == ""
    for run, other in zip(runs, alone, strict=True):
        other.step(15 - other.steps)
        assert not differs(everything(run), everything(other))


def test_no_turn_ends_between_the_runs(compare: Callable[..., Compare]) -> None:
    board = compare()
    a, b = board.runs.values()
    seen: list[tuple[int, int]] = []
    board.play()
    for _ in range(30):
        with board.player.lock:
            seen.append((a.steps, b.steps))
    until(board, lambda: a.steps > 20)
    board.pause()
    assert all(x == y for x, y in [*seen, (a.steps, b.steps)]) and board.player.error is None


def test_who_is_behind_catches_up_and_can_be_paused_meanwhile() -> None:
    a, b, c = Fake(), Fake(), Fake(dense=3)
    a.steps, b.steps = 5000, 4990
    one = InStep({"a": a, "b": b, "c": c})
    assert (one.base, one.steps, one.to_do()) == (None, 0, {"a": 0, "b": 10, "c": 3})
    one.pretrain(4)
    assert (b.steps, c.steps, c.dense_left) == (4994, 1, 0) and a.steps == 5000
    assert one.waits_for == "b catches up, 6 steps to go; c catches up, 4,999 steps to go"
    c.steps = 4999
    player = Player(one)
    try:
        player.play(3)  # what comes before does not count
        a.until(lambda: not player.playing)
        assert [run.steps for run in (a, b, c)] == [5003] * 3 and one.waits_for == "" and one.steps == 5003
        c.steps -= 50
        c.at = lambda steps: player.pause_with("here") if steps == 4980 else None
        player.play()
        c.until(lambda: not player.playing)
        done(player)
        assert c.steps == 4981 and a.steps == b.steps == 5003
    finally:
        player.close()


def test_the_end_of_one_schedule_pauses_all() -> None:
    one = InStep({"a": Fake(end=7), "b": Fake()})
    player = Player(one)
    try:
        player.play()
        one.runs["a"].until(lambda: not player.playing)
        assert player.note == "the schedule of a has come to its end" and one.steps == 7
    finally:
        player.close()


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, None])
def test_a_number_of_steps_that_is_none(compare: Callable[..., Compare], wrong: object) -> None:
    board = compare()
    board.play()
    for step in (board.in_step.step, board.step):
        with pytest.raises(ValueError, match=r"^n must be a whole number of steps >= 0, got"):
            step(wrong)
    assert board.player.playing


def test_an_error_in_one_stops_all_and_is_said_with_its_name(compare: Callable[..., Compare]) -> None:
    class Breaks(Exception):
        pass

    board = compare()
    a, b = board.runs.values()
    board.step(2)

    def fail(step: int, *_: Any) -> None:
        if step == 5:
            raise FloatingPointError("no number in <head>")

    b.recorders.append(fail)
    press(board, "play")
    until(board, lambda: not board.player.playing)
    board._draw()
    said = "Training of b stopped after step 5. FloatingPointError: b: no number in &lt;head&gt;"
    assert said in board.failure.value and (a.steps, b.steps) == (5, 5)
    b.recorders.clear()
    press(board, "step")
    assert board.failure.value == "" and (a.steps, b.steps) == (6, 6)

    def break_(*_: Any) -> None:
        raise Breaks(1, 2)

    a.recorders.append(break_)
    with pytest.raises(Breaks) as caught:
        board.step()
    assert caught.value.__notes__ == ["in the run 'a'"] and (a.steps, b.steps) == (7, 6)
    assert board.in_step.waits_for == "b catches up, 1 step to go"


def test_who_steps_a_run_elsewhere_has_the_player_pause(compare: Callable[..., Compare]) -> None:
    board = compare()
    a, b = board.runs.values()
    for run, other in ((a, b), (b, a)):
        board.play()
        until(board, lambda run=run: run.steps > 3)
        run.step(5)
        assert not board.player.playing and board.player.note == "the run is stepped from elsewhere"
        board._draw()
        assert "<b>paused (the run is stepped from elsewhere)</b>" in board.status.value
        assert run.steps == other.steps + 5 or run.steps == other.steps + 4
        assert "catches up" in board.status.value
        board.step(0)
        assert run.steps > other.steps
        board.step()
        assert run.steps == other.steps


# ------------------------------------------------------------------------------------------------ the widget


def test_buttons(compare: Callable[..., Compare]) -> None:
    board = compare()
    a, b = board.runs.values()
    assert "<b>paused</b>" in board.status.value and "step 0 of each" in board.status.value
    press(board, "step")
    press(board, "step_50")
    assert (a.steps, b.steps) == (51, 51) and all(trace.x[-1] == 51 for trace in board.figure.data[:2])
    press(board, "play")
    until(board, lambda: a.steps > 60)
    board._draw()
    assert "<b>playing</b>" in board.status.value and "steps/s of each" in board.status.value
    press(board, "pause")
    assert a.steps == b.steps and f"step {a.steps:,} of each" in board.status.value
    assert repr(board) == "Compare(a: Net on corners, b: Net on corners)"


def test_one_player_a_kernel(compare: Callable[..., Compare]) -> None:
    run = tiny(**NO_DENSE)
    pg = Playground(Run(**NO_DENSE))
    try:
        first = compare(a=run, b=tiny(net(1), **NO_DENSE))
        assert pg.player.closed and not first.player.closed
        second = compare(x=run, y=tiny(net(2), **NO_DENSE))
        assert first.player.closed and first.comm is None and not second.player.closed
        other = Playground(Run(**NO_DENSE))
        other.close()
        second.buttons["play"].click()
        assert "run the cell again" in second.failure.value and run.steps == 0
        second.buttons["pause"].click()
        with pytest.raises(RuntimeError, match="run the cell again"):
            second.play()
    finally:
        pg.close()


def test_what_is_no_comparison_is_refused_before_anything_changes(compare: Callable[..., Compare]) -> None:
    board, run = compare(), tiny()
    for wrong, error, said in (
        ([run, run], TypeError, "runs must map names to runs"),
        (None, TypeError, "runs must map names to runs"),
        ({}, ValueError, "runs must hold 2 to 4 of them, got none"),
        ({"a": run}, ValueError, "runs must hold 2 to 4 of them, got 1"),
        ({str(i): run for i in range(5)}, ValueError, "runs must hold 2 to 4 of them, got 5"),
        ({"a": run, 2: run}, TypeError, "runs must have text for names, got 2"),
        ({"a": run, "": run}, ValueError, "runs must have names of 1 to 16 characters, got ''"),
        ({"a": run, "b": net()}, TypeError, r"runs\['b'\] must be a gsm_lab.Run, as Run\(.*, got Net"),
        ({"a": run, "b": run}, ValueError, "runs must be different ones, got the same as 'a' and 'b'; copy.deepcopy"),
    ):
        with pytest.raises(error, match=said):
            Compare(wrong)
    assert not board.player.closed and run._player is None and run.steps == 0


def test_one_column_where_the_page_is_narrow(compare: Callable[..., Compare]) -> None:
    board = compare()
    for width, columns in ((899, 1), (1400, 2), (600, 1), (900, 2)):
        board._heard(None, {"width": width})
        board._draw()
        lefts = {axis.domain[0] for axis in board.figure.select_xaxes()}
        assert len(lefts) == columns
    board.player.close()
    board._heard(None, {"width": 700})
    assert {axis.domain[0] for axis in board.figure.select_xaxes()} == {0.0}


def test_what_the_page_gets_is_the_finished_figure(compare: Callable[..., Compare]) -> None:
    board = compare()
    for width, steps in ((1400, 7), (700, 0), (700, 12), (1400, 3)):
        board._heard(None, {"width": width})
        board.step(steps)
        done = comparison.comparison(board.accounts.histories(), 1 if width < 900 else 2)
        done.layout.update(autosize=True, width=width)
        assert go.Figure(board.figure.to_dict()).layout == done.layout
        for trace, other in zip(board.figure.data, done.data, strict=True):
            np.testing.assert_array_equal(trace.y, other.y)


def test_an_opened_view_watches_and_a_frame_says_which(compare: Callable[..., Compare]) -> None:
    board = compare()
    board._heard(None, {"opened": True})
    assert board.player.watched
    frame = board._draw()
    assert board.viewer.frame == frame
    board._heard(None, {"seen": frame})
    assert board.player._seen == frame


def test_picture(compare: Callable[..., Compare], monkeypatch: pytest.MonkeyPatch) -> None:
    board = compare()
    board.step(8)
    drawn = []
    monkeypatch.setattr("gsm_lab.figures.static", lambda figure, width: drawn.append(figure) or b"\x89PNG")
    assert board.picture().data == b"\x89PNG" and drawn[0].data[0].x[-1] == 8 and drawn[0].layout.meta["columns"] == 2

    def none(figure: object, width: int) -> bytes:
        raise RuntimeError("no browser")

    monkeypatch.setattr("gsm_lab.figures.static", none)
    picture = board.picture()
    assert picture.data is None and picture.figure == drawn[0]


def test_nothing_keeps_what_is_closed() -> None:
    import gc
    import weakref

    a, b = tiny(**NO_DENSE), tiny(net(1), **NO_DENSE)
    board = Compare({"a": a, "b": b})
    thread, gone = board.player._thread, [weakref.ref(a), weakref.ref(b), weakref.ref(board)]
    board.close()
    assert not thread.is_alive()
    del a, b, board
    gc.collect()
    assert [one() for one in gone] == [None] * 3


# ------------------------------------------------------------------------------------------------ words


def accuracy(run: Run, keep: set[int] | None) -> float:
    """By hand: of a copy, in evaluation mode, in which only these of the flat weights are left."""
    model = copy.deepcopy(run.model)
    if keep is not None:
        at = 0
        for p in (m.weight for m in model.modules() if isinstance(m, nn.Linear)):
            flat = p.data.view(-1)
            for i in range(len(flat)):
                if at + i not in keep:
                    flat[i] = 0.0
            at += len(flat)
    with evaluating(model), torch.no_grad():
        return float((model(run.data.test_x).argmax(1) == run.data.test_y).float().mean())


def kept(run: Run) -> set[int]:
    """The Q of greatest magnitude, by sorting."""
    flat = torch.cat([m.weight.detach().view(-1) for m in run.model.modules() if isinstance(m, nn.Linear)]).abs()
    return set(np.argsort(-flat.numpy(), kind="stable")[: run.nonzeros].tolist())


def test_the_words_by_an_oracle(compare: Callable[..., Compare]) -> None:
    a, b = (Run(plain(seed), mine(), batch_size=8, compression=c, evaluate_every=10, seed=s, **NO_DENSE)
            for seed, c, s in ((0, 4.0, 0), (0, 8.0, 1)))  # fmt: skip
    board = compare(a=a, b=b)
    board.step(10)
    lines = board.told.split("\n")
    sets, n = [kept(a), kept(b)], 8 * 16 + 16 * 4
    lives, cuts = ([100 * accuracy(run, s) for run, s in zip((a, b), which, strict=True)] for which in
                   ([None, None], sets))  # fmt: skip
    assert lines[0] == "What differs: compression C: a 4, b 8; seed: a 0, b 1."
    assert f"test accuracy: a {lives[0]:.1f}%, b {lives[1]:.1f}%." in lines
    assert f"if cut: a {cuts[0]:.1f}%, b {cuts[1]:.1f}%." in lines
    same, fewer = len(sets[0] & sets[1]), min(map(len, sets))
    chance = 100 * len(sets[0]) * len(sets[1]) / n / fewer
    assert lines[-1] == (
        f"Of the weights that a cut would keep, a at step 10 and b at 10, of other seeds, have {same} in common: "
        f"{100 * same / fewer:.1f}%, by chance {chance:.1f}%."
    )
    assert [len(s) for s in sets] == [n // 4, n // 8]
    board._draw()
    assert lines[-1] in board.differences.value and f"<td>{lives[1]:.1f}%</td>" in board.numbers.value


def test_weights_in_common_of_copies_and_of_other_networks(compare: Callable[..., Compare]) -> None:
    a = tiny(**NO_DENSE)
    a.step(3)
    b, c = copy.deepcopy(a), tiny(plain(), **NO_DENSE)
    c.step(3)
    board = compare(a=a, b=b, c=c)
    said = board.accounts.in_common()
    assert len(said) == 1 and f"have {a.nonzeros} in common: 100.0%" in said[0] and "seeds" not in said[0]
    assert "The models differ" in board.told
    seen = board.accounts.in_common(at_leisure=True)
    a.step()
    assert board.accounts.in_common(at_leisure=True) is seen, "while it plays, only now and then"
    assert "a at step 4 and b at 3" in board.accounts.in_common()[0]
    a.reset()
    assert "a at step 0" not in "".join(board.accounts.in_common(at_leisure=True)), "not before the gate closes"


def test_words_about_data(compare: Callable[..., Compare]) -> None:
    data, other = mine(), mine(1)
    fewer = Dataset(data.train_x[:40], data.train_y[:40], data.test_x, data.test_y, name="corners")
    made = {name: Run(net(i), of, batch_size=8, **NO_DENSE) for i, (name, of) in
            enumerate({"a": data, "fewer": fewer, "other": other}.items())}  # fmt: skip
    board = compare(a=made["a"], fewer=made["fewer"])
    assert "trained on" not in board.told and "tested on the same: accuracies can be compared" in board.told
    assert "a 10, fewer 5" in board.told
    board = compare(a=made["a"], other=made["other"])
    assert "The test sets differ: accuracies, and what a cut costs, cannot be compared." in board.told
    board._draw()
    headline = re.sub("<[^>]*>", " ", board.figure.layout.annotations[-1].text)
    assert "the test sets differ: accuracies cannot be compared" in headline
    assert "cannot be compared" in board.differences.value


def test_runs_on_numbers(compare: Callable[..., Compare]) -> None:
    """Beside each other by their R2, and in the same words; a run that is measured by its accuracy is refused."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 4)).astype(np.float32)
    y = x @ random.normal(size=4).astype(np.float32)
    data = Dataset(x[:40], y[:40], x[40:], y[40:], name="plane")
    runs = {name: Run(nn.Sequential(nn.Linear(4, wide), nn.ReLU(), nn.Linear(wide, 1)), data, batch_size=8, **NO_DENSE)
            for name, wide in (("a", 8), ("b", 16))}  # fmt: skip
    board = compare(**runs)
    board.step(3)
    for run in runs.values():
        run.evaluate()
    said, values = board.told, {name: run.evaluate() for name, run in runs.items()}
    assert "accurac" not in said and "test R2: a " in said and "the cut costs: a " in said
    assert values["a"] != values["b"]
    titles = " ".join(note.text for note in board.figure.layout.annotations)
    assert "R2 as it is" in titles and "accurac" not in titles.lower()
    with pytest.raises(ValueError, match=r"by the same metric to be compared, got a by R2 .*, b by accuracy"):
        Compare({"a": runs["a"], "b": tiny(**NO_DENSE)})
    assert not board.player.closed, "and nothing has changed"


def test_names_in_a_page_are_no_html(compare: Callable[..., Compare]) -> None:
    board = compare(**{"<i>a": tiny(**NO_DENSE), "b": tiny(net(1), momentum=0.5, **NO_DENSE)})
    board.step(7)
    for widget in (board.differences, board.numbers, board.status):
        assert "<i>" not in widget.value
    assert "&lt;i&gt;a" in board.numbers.value and json.dumps(board.told)
