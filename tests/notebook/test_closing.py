"""A playground that is closed leaves nothing behind; a new one closes the one before."""

import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import ipywidgets as widgets
import pytest

from gsm_lab import Playground, Run, methods
from gsm_lab.notebook.playground import LIVE, RESTARTS
from tests.notebook.playgrounds import SECONDS, Net, inside, mine, press, until


def registered() -> set[str]:
    return set(widgets.widget._instances)


def all_gone(references: list[weakref.ref]) -> None:
    """Nothing keeps what was there; on a busy machine a closed player's thread may take a while to its end."""
    deadline = time.monotonic() + SECONDS
    while gc.collect() is not None and [one for one in references if one() is not None]:
        assert time.monotonic() < deadline, [gc.get_referrers(one()) for one in references]
        time.sleep(0.05)


def test_new_playground_closes_the_one_before(board: Callable[..., Playground]) -> None:
    before = board()
    before.play()
    until(before, lambda: before.run.steps > 2)
    after = board()
    reached = before.run.steps
    assert before.player.closed and not before.player._thread.is_alive()
    for click in (
        before.buttons["play"].click,
        before.buttons["step"].click,
        before.preset_buttons[0].click,
        lambda: setattr(before.controls["lr"].slider, "value", 0.1),
    ):
        before.failure.value = ""
        click()
        assert "run the cell again" in before.failure.value
    with pytest.raises(RuntimeError, match="run the cell again"):
        before.play()
    assert before.run.steps == reached
    press(after, "step")
    assert after.run.steps == 1


def test_closing(board: Callable[..., Playground]) -> None:
    pg = board()
    pg.play()
    until(pg, lambda: pg.run.steps > 2)
    thread, all_of_it = pg.player._thread, inside(pg)
    pg.close()
    assert not thread.is_alive()
    assert all(widget.comm is None for widget in all_of_it)
    pg.close()
    gc.collect()


@pytest.mark.parametrize("kind", ["gsm", "rival", "hidden", "own"])
def test_closed_it_is_freed_with_its_run(kind: str) -> None:
    before = registered()
    if kind == "rival":
        pg = Playground(methods.build("magnitude", model="lenet300", data="digits", pretrain=0))
    elif kind == "own":
        pg = Playground(Run(Net(), mine(), hold=1.0, pretrain=0, batch_size=10, compression=4.0))
    else:
        pg = Playground(Run(pretrain=0), hide=[*LIVE, *RESTARTS, "presets", "figure"] if kind == "hidden" else [])
    pg.step(1)
    gone = [weakref.ref(one) for one in (pg, pg.run, pg.run.model, pg.run.opt, pg.player)]
    pg.close()
    pg.close()
    assert registered() == before
    del pg
    all_gone(gone)


def test_a_cell_that_is_run_again_and_again_leaves_one_playground() -> None:
    before, run = registered(), Run(pretrain=0)
    counts, runs = [], []
    for i in range(8):
        pg = Playground(run if i % 2 else Run(pretrain=0))
        if not i % 2:
            runs.append(weakref.ref(pg.run))
        counts.append(len(registered()))
    assert len(set(counts)) == 1
    pg.close()
    del pg
    all_gone(runs)
    assert registered() == before
    assert run.step(1) is None and run.steps == 1  # it can go on without them


def test_a_playground_that_is_refused_leaves_the_one_before(pg: Playground) -> None:
    before = registered()
    for wrong, error in (({"run": "lenet300"}, TypeError), ({"hide": ["plots"]}, ValueError)):
        with pytest.raises(error):
            Playground(**wrong)
    assert registered() == before and not pg.player.closed


def test_what_cells_have_shown_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pg = Playground(Run(pretrain=0))
    names = {"_oh": {1: 5, 3: pg}, "_3": pg, "_1": 5, "_": pg, "__": 5, "___": ""}
    shell = SimpleNamespace(user_ns=names, displayhook=SimpleNamespace(_=pg, __=5, ___=""))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    pg.close()
    assert names == {"_oh": {1: 5}, "_1": 5, "_": "", "__": 5, "___": ""}
    assert vars(shell.displayhook) == {"_": "", "__": 5, "___": ""}


SHOWN = """
import gc, weakref
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in ("import gsm_lab as gl; pg = gl.Playground()", "pg", "pg", "1 + 1"):
    shell.run_cell(cell, store_history=True).raise_error()
gone = [weakref.ref(x) for x in (shell.user_ns["pg"], shell.user_ns["pg"].run)]
assert shell.user_ns["_2"] is shell.user_ns["_3"] is shell.user_ns["pg"]
shell.run_cell("pg.close(); del pg", store_history=True).raise_error()
gc.collect()
assert [one() for one in gone] == [None, None], "kept"
assert shell.user_ns["_4"] == shell.user_ns["_oh"][4] == 2, "what else was shown stays"
"""


def test_a_playground_that_a_cell_has_shown_is_gone_when_it_is_closed() -> None:
    """IPython keeps what cells show in several places, by number, by age, and among hidden names."""
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


LEFT = """
import gsm_lab as gl
run = gl.Run(data="digits", pretrain=0)
gl.Playground(run).close()
kept = gl.explore(lambda c: gl.figures.dashboard(run.history), c=[1, 2]), gl.Playground(run)
"""


def test_a_program_that_ends_says_nothing_of_widgets() -> None:
    """They go when nothing can be imported any more."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LEFT], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_to_look_at_a_closed_playground_puts_no_hooks_back() -> None:
    run = Run(pretrain=0)
    pg = Playground(run)
    pg.step(2)
    seen = len(pg.taylor.inspected())
    assert seen and run.opt._optimizer_step_post_hooks
    pg.close()
    assert len(pg.taylor.inspected()) == seen  # as `picture` asks
    assert not run.opt._optimizer_step_post_hooks and not run.opt._optimizer_step_pre_hooks
