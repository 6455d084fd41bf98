"""Recorders of single weights: the paths of some of them, and how the set of the active ones settles."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsm_lab.checks import integer, kind, one_of, several, whole
from gsm_lab.studies.recording import Attached, gather, survivors
from gsm_lab.training.history import THRESHOLDS, Rows
from gsm_lab.training.run import Run

KINDS = ("kept", "switched", "passive")


class Paths(Attached):
    """The values of a few hundred weights at every step.

    Where the records take more than `limit` bytes, every second one is dropped, and so on.

    The weights are chosen once, by `seed`, at the first step that is recorded, so without knowing what becomes of them:
    the same number from each layer, half of these among the weights active in that step, half among the others.

    Args:
        run: to attach to, before its first gated step if the table shall begin where the gate closes.
        weights: how many (fewer where the model has not as many).
        seed: of the choice; independent of the run's.
        limit: bytes.

    Raises:
        ValueError: `weights` is no whole number >= 1.
    """

    def __init__(self, run: Run, weights: int = 300, seed: int = 0, limit: int = 1_000_000) -> None:
        weights, seed, limit = whole("weights", weights), integer("seed", seed, 0), whole("limit", limit)
        super().__init__(run)
        self.chosen = np.empty(0, np.int64)  # flat positions, sorted
        self.start = np.empty(0, np.float32)  # |w| of all weights after the first step, as 1,001 quantiles
        self._wanted, self._seed, self._limit = weights, seed, limit
        self._rows: Rows | None = None
        self._times = np.zeros(0, np.int32)

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """Record a step; called by the run."""
        if self._rows is None:
            self._choose(active, weights)
        self._times += active[self.chosen]
        self._rows.append((step, gather(weights, self.chosen), self._times))

    def _choose(self, active: np.ndarray, weights: list[np.ndarray]) -> None:
        random, parts, begin = np.random.default_rng(self._seed), [], 0
        for i, w in enumerate(weights):
            wanted = min(w.size, self._wanted // len(weights) + (i < self._wanted % len(weights)))
            here = active[begin : begin + w.size]
            on, off = np.flatnonzero(here), np.flatnonzero(~here)
            of_on = min(len(on), max(wanted // 2, wanted - len(off)))
            parts += [begin + random.choice(on, of_on, replace=False)]
            parts += [begin + random.choice(off, wanted - of_on, replace=False)]
            begin += w.size
        self.chosen = np.sort(np.concatenate(parts)).astype(np.int64)
        self.start = np.quantile(np.abs(np.concatenate([w.reshape(-1) for w in weights])), np.linspace(0, 1, 1001))
        n = (len(self.chosen),)
        # times active are summed up, so that rows may go without losing an active step between those that stay
        self._rows = Rows(np.dtype([("step", np.int32), ("w", np.float32, n), ("times", np.int32, n)]), self._limit)
        self._times = np.zeros(n, np.int32)

    def frame(self, layer: str | None = None) -> pd.DataFrame:
        """One row a weight and recorded step, of one layer or of all.

        Columns: weight (flat position), layer, kind, step, w, magnitude (|w|), active (share of the steps since the
        row before, 0..1, in which it received its gradient). A kind is "kept" (among the Q largest |w| now),
        "switched" (active at some step, not kept) or "passive" (never active).

        Raises ValueError for an unknown layer, before the first step, and after a reset of the run.
        """
        self._check(self._rows)
        names = list(self._history.layers)
        if layer is not None:
            one_of("layer", layer, names)
        of = np.searchsorted(np.cumsum(list(self._history.layers.values())), self.chosen, side="right")
        kind = np.where(survivors(self.run)[self.chosen], 0, np.where(self._times > 0, 1, 2))
        rows = self._rows.array()
        step, w = rows["step"].astype(np.int64), rows["w"].T
        active = np.diff(rows["times"], axis=0, prepend=0) / np.diff(step, prepend=step[0] - 1)[:, None]
        each = len(step)
        table = pd.DataFrame(
            {
                "weight": np.repeat(self.chosen, each),
                "layer": pd.Categorical.from_codes(np.repeat(of, each), names),
                "kind": pd.Categorical.from_codes(np.repeat(kind, each), KINDS),
                "step": np.tile(step, len(kind)),
                "w": w.reshape(-1),
                "magnitude": np.abs(w).reshape(-1),
                "active": active.T.reshape(-1),
            }
        )
        return table if layer is None else table[table["layer"] == layer].reset_index(drop=True)

    def falls(self) -> pd.DataFrame:
        """How far weights that were never active have fallen, beside the recurrence and the closed form.

        Columns: step; measured (median of |w| over |w| at the first recorded step), low, high (10th and 90th
        percentile); exact (the recurrence, followed with the learning rate, momentum and decay in force at each step),
        closed_form (exp(-sum of lr * decay / (1 - momentum))).

        Raises ValueError when no weight stayed passive, when attached after the first gated step, and as `frame`.
        """
        self._check(self._rows)
        rows = self._rows.array()
        if rows["step"][0] != 1:
            raise ValueError(f"Paths must be attached before the first gated step, got it after {rows['step'][0] - 1}")
        never = self._times == 0
        if not never.any():
            raise ValueError(f"weights = {self._wanted} sampled ones were all active at some step; sample more")
        fallen = np.abs(rows["w"][:, never].astype(np.float64)) / np.abs(rows["w"][0, never].astype(np.float64))
        exact, closed = predicted(self.run, int(rows["step"][-1]))
        low, middle, high = np.percentile(fallen, (10, 50, 90), axis=1)
        at = rows["step"] - 1
        return pd.DataFrame(
            {
                "step": rows["step"].astype(np.int64), "measured": middle, "low": low, "high": high,
                "exact": np.abs(exact[at] / exact[0]), "closed_form": closed[at] / closed[0],
            }
        )  # fmt: skip

    def expected_near_zero(self, steps: np.ndarray | None = None) -> pd.DataFrame:
        """Shares of all weights that would be near zero if every weight had stayed passive since the first step.

        Args:
            steps: when; by default the recorded ones. Before the first of these, shares are NaN.

        Returns:
            step, `expected_1e-3`, `expected_1e-4` (0..1): the |w| of the first step, shrunk by the recurrence.
        """
        self._check(self._rows)
        step = self._rows.array()["step"].astype(np.int64)
        first = step[0]
        if steps is not None:
            step = np.array([whole("steps", one, 0) for one in several("steps", steps)], np.int64)
        exact = np.abs(predicted(self.run, max(int(step.max()), int(first)))[0])
        # where it swings, a weight is near zero for good only when the envelope is
        envelope = np.maximum.accumulate(exact[::-1])[::-1] / exact[first - 1]
        shrunk = np.where(step >= first, envelope[step - 1], np.nan)
        place = np.linspace(0, 1, len(self.start))
        shares = {f"expected_{t:.0e}".replace("e-0", "e-"): np.interp(t / shrunk, self.start, place, left=0.0)
                  for t in THRESHOLDS}  # fmt: skip
        return pd.DataFrame({"step": step, **shares})


def predicted(run: Run, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A passive weight after each of steps 1..`steps` of a run, 1 before the first: recurrence, and closed form.

    With the knobs as they were in each step, schedule included; float64 [steps] each. Raises TypeError, ValueError.
    """
    kind("run", run, Run, "a gsm_lab.Run")
    if not run.steps:
        raise ValueError("run has taken no gated step yet; call run.step(n) first")
    at = np.arange(1, whole("steps", steps) + 1)
    momentum, decay = (run.history.knob_values(name, at) for name in ("momentum", "weight_decay"))
    rows = run.history.steps.array()
    lr = rows["lr_scheduled"].astype(np.float64)[np.searchsorted(rows["step"], at, side="right") - 1]
    exact, w, z = np.empty(steps), 1.0, 0.0
    for k, (a, b, d) in enumerate(zip(lr.tolist(), momentum.tolist(), decay.tolist(), strict=True)):
        z = b * z + d * w
        w -= a * z
        exact[k] = w
    return exact, np.exp(-np.cumsum(lr * decay / (1.0 - momentum)))


class ActiveSets(Attached):
    """Which weights are active, and which a cut would keep, every `every` steps.

    Where the records take more than `limit` bytes, every second one is dropped, and so on.

    Args:
        run: to attach to, before its first gated step.
        every: steps from one record to the next; by default an epoch.
        limit: bytes.
    """

    def __init__(self, run: Run, every: int | None = None, limit: int = 32_000_000) -> None:
        every = None if every is None else whole("every", every, valid="a whole number of steps")
        limit = whole("limit", limit)
        super().__init__(run)
        self.every = every or run.epoch_steps
        count = run.opt.weights
        bits = (-(-count // 8),)
        fields = [("step", np.int32), ("asked", np.int32), ("removed", np.float32), ("contested", np.float32)]
        self._rows = Rows(np.dtype([*fields, ("active", np.uint8, bits), ("kept", np.uint8, bits)]), limit)
        self.first = np.zeros(count, np.int32)  # step in which a weight was first active; 0: never
        self._ever = np.zeros(count, bool)  # active at some step so far
        self._since = np.zeros(count, bool)  # and at some step since the last record

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """Record a step; called by the run."""
        self.first[np.flatnonzero(active > self._ever)] = step
        self._ever |= active
        self._since |= active
        if step % self.every:
            return
        kept = survivors(self.run)
        w = np.concatenate([w.reshape(-1) for w in weights])
        total = float(np.linalg.norm(w)) or 1.0
        removed, contested = (float(np.linalg.norm(w[who])) / total for who in (~kept, self._since & ~kept))
        asked = np.count_nonzero(self._since)
        self._rows.append((step, asked, removed, contested, np.packbits(active), np.packbits(kept)))
        self._since[:] = False

    def frame(self) -> pd.DataFrame:
        """One row a record; shares 0..1 of the final Q, the weights that would stay if the run were cut now.

        Columns: step; active (share of the final Q that was active in that step), ever (share that had been active
        by then), kept (share that a cut at that step would have kept); asked (distinct weights active in the `every`
        steps up to this one, over Q: 1 where all batches agree); removed (norm of what a cut would have removed over
        the norm of all weights: the distance between live and cut model); contested (the part of that norm in
        weights that had been active in those `every` steps: what the batches still ask for, and would not get).

        Raises ValueError before the first record, and after a reset of the run.
        """
        self._check(self._rows)
        final, rows = survivors(self.run), self._rows.array()
        q = max(1, np.count_nonzero(final))
        bits = np.packbits(final)
        shares = {k: [np.unpackbits(row & bits).sum() / q for row in rows[k]] for k in ("active", "kept")}
        joined = np.sort(self.first[final & (self.first > 0)])
        ever = np.searchsorted(joined, rows["step"], side="right") / q
        return pd.DataFrame(
            {
                "step": rows["step"].astype(np.int64), "active": shares["active"], "ever": ever, "kept": shares["kept"],
                "asked": rows["asked"] / q, "removed": rows["removed"].astype(np.float64),
                "contested": rows["contested"].astype(np.float64),
            }
        )  # fmt: skip

    def joining(self) -> pd.Series:
        """When the weights of the final Q were first active.

        Returns:
            weights (the final Q), never (how many of them have never been active), half, nine_tenths, last: the step
            by which half, 90% and all of the others had been active; NaN where there are none.
        """
        self._check(self._rows)
        first = self.first[survivors(self.run)]
        joined = first[first > 0]
        when = np.quantile(joined, (0.5, 0.9, 1.0), method="inverted_cdf") if len(joined) else (np.nan,) * 3
        names = ["weights", "never", "half", "nine_tenths", "last"]
        return pd.Series([len(first), len(first) - len(joined), *when], names)
