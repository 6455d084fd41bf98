"""What happened in a run: a row of numbers a step, a row an evaluation, the events between them, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm_lab.knobs import LIVE
from gsm_lab.metric import ACCURACY, Metric
from gsm_lab.optim.fused import loader
from gsm_lab.turns import turn

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (1e-3, 1e-4)  # below these a weight is near zero
_PER_LAYER = ("active", "reactivated", "under_1e-3", "under_1e-4")
CHUNK = 65_536  # weights whose |w| is formed at a time: that stays small, and in the cache
COMPILED = f"{__name__}_compiled"


class Rows:
    """A growing table of fixed columns that thins itself out: at `limit` bytes every second row goes.

    From then on only every second step is taken (then every fourth, ...), so rows stay evenly spaced.
    """

    def __init__(self, dtype: np.dtype, limit: int) -> None:
        self.most = max(2, limit // dtype.itemsize // 2 * 2)  # even, or the row after a thinning stands off the grid
        self.every = 1
        self._rows = np.zeros(0, dtype)
        self._used = 0
        self._seen = 0

    def append(self, row: tuple) -> None:
        """Take the row, or not, if the table has been thinned out."""
        wanted = self._seen % self.every == 0
        self._seen += 1
        if not wanted:
            return
        if self._used == len(self._rows):
            self._make_room()
        self._rows[self._used] = row
        self._used += 1

    def array(self) -> np.ndarray:
        """The rows, a structured array (a view: copy what is to be kept)."""
        return self._rows[: self._used]

    def _make_room(self) -> None:
        if len(self._rows) < self.most:
            more = min(max(1024, len(self._rows)), self.most - len(self._rows))
            self._rows = np.concatenate([self._rows, np.zeros(more, self._rows.dtype)])
            return
        kept = self._rows[: self._used : 2].copy()
        self._rows[: len(kept)] = kept
        self._used, self.every = len(kept), 2 * self.every

    def state(self) -> tuple[np.ndarray, dict[str, int]]:
        """Rows and counters, from which `restore` continues alike."""
        return self.array(), {"every": self.every, "seen": self._seen}

    def restore(self, rows: np.ndarray, every: int, seen: int) -> None:
        """Continue from a `state()`."""
        self._rows = np.array(rows, self._rows.dtype)
        self._used, self.every, self._seen = len(rows), every, seen


class History:
    """The record of one run. Read from another thread, it waits for the step that is being done.

    Args:
        layers: name and number of weights of each prunable tensor, in the order of the flat mask.
        limit: bytes that rows may take; beyond that they are thinned out evenly (see `Rows`).
        metric: what `live` and `cut` are of an evaluation, without its function.

    The arrays call these two `live_accuracy` and `cut_accuracy`, whatever the metric is; the frames go by its name.
    """

    def __init__(self, layers: dict[str, int], limit: int = 40_000_000, metric: Metric = ACCURACY) -> None:
        self.layers, self.metric = layers, metric
        count = (np.int32, (len(layers),))
        numbers = [(name, np.float32) for name in ("epoch", "loss", "threshold", "lr_scheduled")]
        self.steps = Rows(np.dtype([("step", np.int32), *numbers, *((c, *count) for c in _PER_LAYER)]), limit)
        accuracies = [("live_accuracy", np.float32), ("cut_accuracy", np.float32)]
        self.evaluations = Rows(np.dtype([("step", np.int32), *accuracies, ("kept", *count)]), limit // 10)
        self.events: list[dict[str, Any]] = []
        self.reactivations = 0  # of all steps, also where rows were thinned out
        self._bounds = np.cumsum([0, *layers.values()])
        self._before: np.ndarray | None = None  # who was active in the last step, bool [N]
        self._earlier: np.ndarray | None = None  # and in the one before it

    def record(
        self,
        step: int,
        epoch: float,
        loss: float,
        threshold: float,
        lr: float,
        active: np.ndarray,
        weights: list[np.ndarray],
    ) -> None:
        """Record one step.

        Args:
            step: how many gated steps there have been, this one included.
            epoch: passes over the training set since the gate closed.
            loss: of this step's batch, before the update.
            threshold: the smallest T = |g * w| that was active.
            lr: learning rate in force, schedule included.
            active: who received a gradient, bool [N]; kept by reference until the next call but one.
            weights: the layers' values after the step, float32, each contiguous.
        """
        held, reactivated = flags(active, self._before, self._bounds)
        self._earlier, self._before = self._before, active
        near = [near_zero(w.reshape(-1), THRESHOLDS) for w in weights]
        counts = np.array([held, reactivated, [n[0] for n in near], [n[1] for n in near]], np.int32)
        counts = self._total(counts)
        self.reactivations += int(counts[1].sum())
        self.steps.append((step, epoch, loss, threshold, lr, *counts))

    def evaluated(self, step: int, live: float, cut: float, kept: list[int]) -> None:
        """Record an evaluation: the metric as the model is and as if cut, weights of each layer that stay."""
        self.evaluations.append((step, live, cut, self._total(np.array(kept, np.int32))))

    def moved(self, step: int, knob: str, old: Any, new: Any) -> None:
        """Record that a knob moved after `step` steps. Moves of one knob between two steps count as one, or as none."""
        for i in reversed(range(len(self.events))):
            event = self.events[i]
            if event["step"] != step:
                break
            if event["knob"] == knob:
                event["new"] = new
                if event["old"] == new:  # there and back
                    del self.events[i]
                return
        self.events.append({"step": step, "knob": knob, "old": old, "new": new})

    @turn
    def last_active(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Who was active in the last step and in the one before, bool [N]: not to be written to.

        None where nothing is known: before the first step, and of the step before after the first one and a resume.
        """
        return self._before, self._earlier

    @turn
    def frame(self) -> pd.DataFrame:
        """One row a step.

        Columns: step, epoch, loss, threshold, lr_scheduled; active, reactivated, under_1e-3, under_1e-4 (weights, in
        total and as `active/NAME` by layer); live_accuracy, cut_accuracy, `kept/NAME` at evaluations, NaN between them
        (of another metric its name, live_RMSE, cut_RMSE); every live knob as it was in that step.
        """
        rows = self.steps.array()
        columns: dict[str, np.ndarray] = {
            name: rows[name].copy() for name in ("step", "epoch", "loss", "threshold", "lr_scheduled")
        }
        columns |= {name: rows[name].sum(axis=1) for name in _PER_LAYER}
        for name in _PER_LAYER:
            columns |= {f"{name}/{layer}": rows[name][:, i].copy() for i, layer in enumerate(self.layers)}
        import pandas as pd  # 35 MB, which who only looks on does not need

        frame = pd.DataFrame(columns)
        evaluations = self.evaluation_frame()
        place = np.searchsorted(columns["step"], evaluations["step"], side="right") - 1
        evaluations = evaluations[place >= 0].drop(columns="step").set_axis(place[place >= 0])
        frame = frame.join(evaluations[~evaluations.index.duplicated(keep="last")])
        for name in LIVE:
            frame[name] = self.knob_values(name, frame["step"].to_numpy())
        return frame

    @turn
    def evaluation_frame(self) -> pd.DataFrame:
        """One row an evaluation: step, live_accuracy, cut_accuracy, and `kept/NAME`, weights of a layer that stay.

        Of another metric the two go by its name: `history.metric.columns`.
        """
        rows = self.evaluations.array()
        kept = {f"kept/{layer}": rows["kept"][:, i].copy() for i, layer in enumerate(self.layers)}
        live, cut = self.metric.columns
        last = {"step": rows["step"].copy(), live: rows["live_accuracy"].copy(), cut: rows["cut_accuracy"].copy()}
        import pandas as pd

        return pd.DataFrame(last | kept).drop_duplicates("step", keep="last")

    @turn
    def knob_values(self, name: str, steps: np.ndarray) -> np.ndarray:
        """The value of a live knob in each of `steps`; the first event of each knob, at step 0, says where it began."""
        moves = [(e["step"], e["new"]) for e in self.events if e["knob"] == name]
        if not moves:
            return np.full(len(steps), np.nan)
        # a knob that moved after step k is in force from step k + 1 on
        which = np.searchsorted([step for step, _ in moves], steps, side="left") - 1
        return np.asarray([new for _, new in moves])[np.maximum(which, 0)]

    @turn
    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain values from which `restore` continues to the bit."""
        arrays, plain = {}, {"events": self.events, "reactivations": self.reactivations, "layers": self.layers}
        for table in ("steps", "evaluations"):
            rows, plain[table] = getattr(self, table).state()
            arrays |= {f"{table}/{column}": np.ascontiguousarray(rows[column]) for column in rows.dtype.names}
        if self._before is not None:
            arrays["before"] = np.packbits(self._all_of(self._before))
        return arrays, plain

    def restore(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Continue from a `state()` of a history with the same layers."""
        self.events, self.reactivations = plain["events"], plain["reactivations"]
        for table in ("steps", "evaluations"):
            target: Rows = getattr(self, table)
            rows = np.zeros(len(arrays[f"{table}/step"]), target.array().dtype)
            for column in rows.dtype.names:
                rows[column] = arrays[f"{table}/{column}"]
            target.restore(rows, **plain[table])
        self._before = self._earlier = None
        if "before" in arrays:
            count = sum(self.layers.values())
            self._before = self._part_of(np.unpackbits(arrays["before"], count=count).astype(bool))

    # A history of which each process has a part of every layer says otherwise: see `gsm_lab.distributed.fsdp`.

    def _total(self, counts: np.ndarray) -> np.ndarray:
        return counts

    def _all_of(self, flags: np.ndarray) -> np.ndarray:
        return flags

    def _part_of(self, flags: np.ndarray) -> np.ndarray:
        return flags


# -- what is counted after every step; compiled where numba is installed -----------------------------------------------


def flags(now: np.ndarray, before: np.ndarray | None, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many entries are set in each layer, and how many of these were not set before (none without a `before`).

    Args:
        now, before: bool [N].
        bounds: int64 [layers + 1], where layers begin and end.

    Returns:
        Two int32 [layers].
    """
    before = now if before is None else before
    if module := loader.compiled(COMPILED):
        return module.flags(now, before, bounds)
    layers = [(now[a:b], before[a:b]) for a, b in pairwise(bounds.tolist())]
    came = [np.count_nonzero(np.greater(x, y)) for x, y in layers]
    return np.array([np.count_nonzero(x) for x, _ in layers], np.int32), np.array(came, np.int32)


def near_zero(w: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    """How many |w| are below each threshold; w is float32 [n]."""
    limits = np.array(thresholds, np.float32)
    if module := loader.compiled(COMPILED):
        return module.near_zero(w, limits).tolist()
    counts = np.zeros(len(limits), np.int64)
    for start in range(0, w.size, CHUNK):
        magnitude = np.abs(w[start : start + CHUNK])
        counts += [np.count_nonzero(magnitude < limit) for limit in limits]
    return counts.tolist()
