"""The playground's Taylor view: steps that are about to be drawn, compared with what Taylor predicts for them.

To inspect a step costs about as much as six training steps, so inspections are rationed: each has to be made up for by
39 times as much training before the next one. They are done by two hooks of the optimizer, one before its step and one
after it, which change nothing; at all other steps the hooks cost a comparison.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np

from gsm_lab.notebook.player import FRAME, Player
from gsm_lab.studies.steps import Before, relative_error
from gsm_lab.training.history import Rows
from gsm_lab.training.run import Run
from gsm_lab.wording import error_percent

SHARE = 0.025  # of the time that inspections may take
KEPT = 4000  # inspections; when there are more, every second one stays, as in a history


class Inspection(NamedTuple):
    """One step: changes of its batch's loss, and relative errors (1 is 100%; NaN: below the floor).

    `first`, `second`, `true`: of the whole step, predicted as g.dw, as g.dw + dw'H dw / 2, and as it came out.
    `metric`, `without`: T = |g w| of the weight at the threshold, and the true change if that were set to zero.
    """

    step: int
    true: float
    first: float
    second: float
    metric: float
    without: float
    error_first: float
    error_second: float
    error_metric: float


INSPECTION = np.dtype([("step", np.int32), *((name, np.float32) for name in Inspection._fields[1:])])


def step_text(last: Inspection | None, failure: str = "") -> str:
    """The latest inspection of a step in words and numbers; without one, why (`failure`)."""
    if last is None:
        if failure:
            return f"<b>Taylor view:</b> this step could not be looked at: {escape(failure)}"
        return "<b>Taylor view:</b> nothing yet; it looks at some of the steps once the gate has closed"
    text = (
        f"<b>Step {last.step:,}, change of its batch's loss:</b> predicted {_signed(last.first)} (g·Δw), "
        f"{_signed(last.second)} with curvature, true {_signed(last.true)}{_off(last.error_first, last.error_second)}"
    )
    if math.isnan(last.metric):
        return text + " · <b>the gate is open:</b> no weight is at the threshold"
    if not last.metric and math.isnan(last.without):
        return text + " · <b>the threshold is 0:</b> fewer than Q weights have any |g·w|"
    return (
        f"{text} · <b>without the weight at the threshold, size of the change:</b> "
        f"predicted {_signed(last.metric)} (|g·w|), true {_signed(abs(last.without))}{_off(last.error_metric)}"
    )


def _signed(x: float) -> str:
    return (f"{x:.2e}" if x and abs(x) < 1e-4 else f"{x:.3g}").replace("-", "−")


def _off(*errors: float) -> str:
    said = [error_percent(e) for e in errors if not math.isnan(e)]
    return ", " + " and ".join(said) + " off" if said else ", too small or too large to compare"


class Inspector:
    """Inspects steps of a run, those that a player is about to draw, as often as `SHARE` allows; says what it found.

    Attributes:
        shown: whether the view is; where it is not, no step is inspected.
        text: the read-out, a widget.
        player: returns who plays the run, None where there is nobody.
        last: the latest inspection, None before the first.
        failure: why the latest attempt failed, or "".
        seconds: what inspections have taken so far.
    """

    def __init__(self, run: Run, shown: bool = True) -> None:
        self.run, self.shown = run, shown
        self.text = widgets.HTML()
        self.text.add_class("gsm-taylor")
        self.player: Callable[[], Player | None] = lambda: None  # weak: a run must not keep it alive
        self._wanted = -1
        self.seconds = 0.0
        self._hooks: list[Any] = []
        self._opt: Any = None
        self._attaching = threading.Lock()
        self.attach()

    def attach(self) -> None:
        """Hook into the run's optimizer. After a reset it is another one: inspections from before are forgotten."""
        with self._attaching:
            if not self.shown or self._opt is (opt := self.run.opt):
                return
            self.detach()
            self._rows = Rows(INSPECTION, KEPT * INSPECTION.itemsize)
            self.last: Inspection | None = None
            self.failure = ""
            self._before: Before | None = None
            self._next_at = self._took = 0.0  # the earliest time of the next; seconds of this one, or the last
            self._costs: deque[float] = deque(maxlen=4)  # seconds of those before it
            self._opt = opt
            self._hooks = [opt.register_step_pre_hook(self._before_step), opt.register_step_post_hook(self._after_step)]

    def detach(self) -> None:
        """Inspect no more steps of this optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def expect(self, n: int) -> None:
        """Inspect the last of the next `n` steps, whatever it costs."""
        self.attach()
        self._wanted = self.run.steps + n if isinstance(n, int) else -1  # the run refuses any other n

    def inspected(self) -> np.ndarray | None:
        """All inspections, a structured array with the fields of `Inspection`, none yet after a reset.

        None where the view is hidden.
        """
        self.attach()
        return self._rows.array() if self.shown else None

    def show(self) -> None:
        """Bring the read-out up to date."""
        if self.shown:
            self.text.value = step_text(self.last, self.failure)

    def _due(self) -> bool:
        if self.run.steps + 1 == self._wanted:
            return True
        player = self.player()
        if player is None or player.closed:
            return False
        if player.ending:
            return True
        late = time.perf_counter() - self._next_at
        return late >= 0 and (not player.playing or player.frame_due or late > FRAME)

    def _before_step(self, *_: Any) -> None:
        if self._took:
            self._costs.append(self._took)
        self._before, self._took = None, 0.0
        if self.run.base is not None and self._due():  # dense epochs have no gate to inspect
            with self._timed():
                self._before = Before(self.run)

    def _after_step(self, *_: Any) -> None:
        if (before := self._before) is None:
            return
        with self._timed():
            dw, floor = before.moved(), before.problem.floor
            true, (first, second) = before.change(dw), before.predicted(dw)
            metric, without = before.at_threshold()
            errors = [relative_error(e, t, floor) for e, t in ((first, true), (second, true), (metric, abs(without)))]
            self.last, self.failure = Inspection(before.step, true, first, second, metric, without, *errors), ""
            with np.errstate(over="ignore"):
                self._rows.append(self.last)
        self._before = None

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Time this part of an inspection, and set when the next may begin; an error in it stops no training."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._before, self.failure = None, f"{type(error).__name__}: {error}"
        end = time.perf_counter()
        self._took += end - start
        self.seconds += end - start
        # An inspection that another program held up counts little.
        usual = statistics.median([*self._costs, self._took])
        self._next_at = max(end + usual * (1 / SHARE - 1), start + FRAME)
