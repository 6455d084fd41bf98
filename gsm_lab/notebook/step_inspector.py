"""The playground's Taylor view: steps that are about to be drawn, held against what Taylor predicted for them.

Looking costs about as much as six training steps, so it is rationed: the time that a look took has to be made up for by
39 times as much training before the next one. It happens in two hooks of the optimizer, one before its step and one
after it, in which nothing is changed; at all other steps they cost a comparison.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np

from gsm_lab.notebook.player import FRAME, Player
from gsm_lab.studies.steps import Before, relative_error
from gsm_lab.training.history import Rows
from gsm_lab.training.run import Run

SHARE = 0.025  # of the time that looking may take
LOOKS = 4000  # kept; then every second one is, as in a history


class Look(NamedTuple):
    """One step, seen closely: changes of its batch's loss, and relative errors (1 is 100%; NaN: below the floor).

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


LOOK = np.dtype([("step", np.int32), *((name, np.float32) for name in Look._fields[1:])])


class Watch:
    """Looks at steps of a run: at those that a player is about to draw, as often as `SHARE` allows.

    Attributes:
        last: the latest look, None before the first. failure: why the latest attempt came to nothing, or "".
        seconds: what looking has taken so far.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.player: weakref.ReferenceType[Player] | None = None  # a run must not keep alive who plays with it
        self._wanted = -1
        self.seconds = 0.0
        self._hooks: list[Any] = []
        self._opt: Any = None
        self._attaching = threading.Lock()
        self.attach()

    def attach(self) -> None:
        """Hold on to the run's optimizer; a reset has made another one, and what was seen before it is forgotten."""
        with self._attaching:
            if self._opt is (opt := self.run.opt):
                return
            self.detach()
            self._rows = Rows(LOOK, LOOKS * LOOK.itemsize)
            self.last: Look | None = None
            self.failure = ""
            self._before: Before | None = None
            self._next_at = self._took = 0.0  # not before this time; seconds of the look in progress, or the last
            self._costs: deque[float] = deque(maxlen=4)  # of those before it
            self._opt = opt
            self._hooks = [opt.register_step_pre_hook(self._before_step), opt.register_step_post_hook(self._after_step)]

    def detach(self) -> None:
        """Let go of the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._opt = [], None

    def expect(self, n: int) -> None:
        """The last of the `n` steps from here on will be looked at whatever it costs."""
        self.attach()
        self._wanted = self.run.steps + n if isinstance(n, int) else -1  # the run will refuse what is none

    def looks(self) -> np.ndarray:
        """What was seen, a structured array with the fields of `Look`."""
        return self._rows.array()

    def _due(self) -> bool:
        if self.run.steps + 1 == self._wanted:
            return True
        player = self.player() if self.player is not None else None
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
        if self.run.base is None or not self._due():  # dense epochs have no gate to look at
            return
        self._timed(self._arm)

    def _after_step(self, *_: Any) -> None:
        if self._before is not None:
            self._timed(self._look)
            self._before = None

    def _arm(self) -> None:
        self._before = Before(self.run)

    def _look(self) -> None:
        before = self._before
        dw, floor = before.moved(), before.problem.floor
        true, (first, second) = before.change(dw), before.predicted(dw)
        metric, without = before.at_threshold()
        errors = [relative_error(e, t, floor) for e, t in ((first, true), (second, true), (metric, abs(without)))]
        self.last, self.failure = Look(before.step, true, first, second, metric, without, *errors), ""
        with np.errstate(over="ignore"):
            self._rows.append(self.last)

    def _timed(self, work: Callable[[], None]) -> None:
        """Do it, and space the looks so that they take their share; what goes wrong is no matter of the training's."""
        start = time.perf_counter()
        try:
            work()
        except Exception as error:
            self._before, self.failure = None, f"{type(error).__name__}: {error}"
        end = time.perf_counter()
        self._took += end - start
        self.seconds += end - start
        usual = statistics.median([*self._costs, self._took])  # one that was held up by another program counts little
        self._next_at = max(end + usual * (1 / SHARE - 1), start + FRAME)


class TaylorView:
    """The view's read-out and what its plots show; where it is not `shown`, no step is looked at.

    Attributes:
        text: the read-out, a widget. watch: who looks, None where nobody does.
    """

    def __init__(self, run: Run, shown: bool = True) -> None:
        self.watch = Watch(run) if shown else None
        self.text = widgets.HTML()
        self.text.add_class("gsm-taylor")

    def follow(self, player: Player) -> None:
        """Look at the steps that this player will draw."""
        if self.watch is not None:
            self.watch.player = weakref.ref(player)

    def expect(self, n: int) -> None:
        """`n` steps are about to be done, then a frame."""
        if self.watch is not None:
            self.watch.expect(n)

    def looks(self) -> np.ndarray | None:
        """What the plots show (see `figures.looks`), None where the view is hidden; nothing yet after a reset."""
        if self.watch is None:
            return None
        self.watch.attach()
        return self.watch.looks()

    def show(self) -> None:
        """Bring the read-out up to date."""
        if self.watch is not None:
            self.text.value = sentence(self.watch)

    def close(self) -> None:
        """Look no more."""
        if self.watch is not None:
            self.watch.detach()


def sentence(watch: Watch) -> str:
    """The latest look in words and numbers, as HTML."""
    look = watch.last
    if look is None:
        if watch.failure:
            return f"<b>Taylor view:</b> this step could not be looked at: {escape(watch.failure)}"
        return "<b>Taylor view:</b> nothing yet; it looks at some of the steps once the gate has closed"
    text = (
        f"<b>Step {look.step:,}, change of its batch's loss:</b> predicted {_signed(look.first)} (g·Δw), "
        f"{_signed(look.second)} with curvature, true {_signed(look.true)}{_off(look.error_first, look.error_second)}"
    )
    if math.isnan(look.metric):
        return text + " · <b>the gate is open:</b> no weight is at the threshold"
    if not look.metric and math.isnan(look.without):
        return text + " · <b>the threshold is 0:</b> fewer than Q weights have any |g·w|"
    return (
        f"{text} · <b>without the weight at the threshold, size of the change:</b> "
        f"predicted {_signed(look.metric)} (|g·w|), true {_signed(abs(look.without))}{_off(look.error_metric)}"
    )


def _signed(x: float) -> str:
    return f"{x:.2e}".replace("-", "−") if x and abs(x) < 1e-4 else f"{x:.3g}".replace("-", "−")


def _off(*errors: float) -> str:
    said = [_percent(e) for e in errors if not math.isnan(e)]
    return ", " + " and ".join(said) + " off" if said else ", too small or too large to compare"


def _percent(error: float) -> str:
    return f"{100 * error:,.0f}%" if error >= 0.01 else f"{100 * error:.1g}%"
