"""How the set of active weights settles: which are active, and which a cut would keep, at some steps of a run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsm_lab.checks import whole
from gsm_lab.studies.recording import Attached, survivors
from gsm_lab.training.history import Rows
from gsm_lab.training.run import Run

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.int64)  # bits set in a byte


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
        share = {name: np.array([_ONES[row & bits].sum() for row in rows[name]]) / q for name in ("active", "kept")}
        joined = np.sort(self.first[final & (self.first > 0)])
        ever = np.searchsorted(joined, rows["step"], side="right") / q
        return pd.DataFrame(
            {
                "step": rows["step"].astype(np.int64), "active": share["active"], "ever": ever, "kept": share["kept"],
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
        when = dict(zip(("half", "nine_tenths", "last"), (0.5, 0.9, 1.0), strict=True))
        steps = {n: np.quantile(joined, q, method="inverted_cdf") if len(joined) else np.nan for n, q in when.items()}
        return pd.Series({"weights": len(first), "never": int((first == 0).sum()), **steps})
