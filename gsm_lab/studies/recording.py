"""What is recorded while a run trains, after each of its gated steps.

`Recorder` records what each weight goes through while the gate opens and shuts on it, in less than 14 bytes a weight.
`Attached` is what the recorders of `paths` share. A recorder is attached to a run by making it, is not saved with the
run, and ends with a reset of the run.
"""

from __future__ import annotations

import numpy as np

from gsm_lab.checks import kind, whole
from gsm_lab.optim.groups import flat_mask, keep_masks
from gsm_lab.studies import scan
from gsm_lab.training.history import Rows
from gsm_lab.training.run import Run
from gsm_lab.wording import layer_name


class Recorder:
    """Records, from the next step of a run on, when each weight is passive and what becomes of it meanwhile.

    Args:
        run: is recorded from now on (`run.recorders`), until its `reset`; any model, any data.
        patience: a weight re-activated after at least so many passive steps in a row is *woken*. Unless given, the
            steps of an epoch: each training sample has then had a chance to speak for the weight.

    Attributes:
        first, last: the steps recorded are first + 1 to last.
        every: how many steps share a row of `sums`; doubles when the table is full.
        sums: int64 [rows, 4, layers], sums over these steps of: the pool, weights passive one step earlier; those of
            them that were re-activated; of these the woken; and those that had been near zero while passive.
        ended: int64 [layers, bins], how many passive stretches a re-activation ended, by length (`scan.length_bins`).

    Raises:
        TypeError: `run` is not a Run.
        ValueError: `patience` is not a whole number >= 1.

    A weight that is passive at the first recorded step has been so since the gate closed, or the recorder was made:
    its stretch counts from there. The recorder holds 12 bytes a weight, and a reference to the mask of the last step,
    which the history holds too. In each step it reads every weight once, for the smallest |w|; for all else it reads
    only the weights at which the gate moved.
    """

    def __init__(self, run: Run, patience: int | None = None) -> None:
        kind("run", run, Run, "a gsm_lab.Run")
        patience = run.epoch_steps if patience is None else patience
        patience = whole("patience", patience, valid="a whole number of steps")
        self.run, self.history, self.patience = run, run.history, patience
        self.layers = {layer_name(name): size for name, size in run.history.layers.items()}
        self.bounds = np.cumsum([0, *self.layers.values()])
        n, layers = int(self.bounds[-1]), len(self.layers)
        self.first = self.last = run.steps
        # For each weight the step it was last active at, unless it is now, and its longest stretch: read in one go.
        self._pair = np.zeros((n, 2), np.int32)
        self._pair[:, 0] = self.first
        self._least = np.full(n, scan.NEVER, np.uint16)
        self._reactivations = np.zeros(n, np.uint16)
        self._mask: np.ndarray | None = None
        self._active = np.zeros(layers, np.int64)
        self.every = 1
        self.sums = np.zeros((max(64, min(1024, n // (64 * layers) // 2 * 2)), 4, layers), np.int64)
        self.ended = np.zeros((layers, scan.BINS), np.int64)
        run.recorders.append(self)

    # -- per weight ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> np.ndarray:
        """Who was active at the last step: bool [N], in the order of `run.opt.active_mask()`, as all that follows."""
        return np.zeros(len(self._pair), bool) if self._mask is None else self._mask.copy()

    @property
    def last_active(self) -> np.ndarray:
        """The step each weight was last active at, `first` if at none since: int32 [N]."""
        return np.where(self.active, np.int32(self.last), self._pair[:, 0])

    @property
    def stretch(self) -> np.ndarray:
        """Length of the passive stretch each weight is in, in steps, 0 for active ones: int32 [N]."""
        return np.int32(self.last) - self.last_active

    @property
    def longest(self) -> np.ndarray:
        """Longest passive stretch that a re-activation ended, in steps, 0 where there was none: int32 [N]."""
        return self._pair[:, 1].copy()

    @property
    def smallest(self) -> np.ndarray:
        """Smallest |w| after any step at which the weight was passive, inf where there was none: float32 [N].

        Rounded down by less than 0.2% (a 512th), but never past 1e-3 or 1e-4: what is below these is told exactly.
        What is under 5.4e-20 comes as 0, and from 1.85e19 on as inf.
        """
        return scan.sizes(self._least)

    @property
    def reactivations(self) -> np.ndarray:
        """How often each weight was re-activated (65,535 stands for more, too): uint16 [N]."""
        return self._reactivations.copy()

    @property
    def woken(self) -> np.ndarray:
        """Which weights were re-activated after at least `patience` passive steps in a row: bool [N]."""
        return self._pair[:, 1] >= self.patience

    @property
    def nbytes(self) -> int:
        """Bytes in use, those of the mask it shares with the history included."""
        arrays = (self._pair, self._least, self._reactivations, self.sums, self.ended)
        return sum(a.nbytes for a in arrays) + (0 if self._mask is None else self._mask.nbytes)

    # -- a step ----------------------------------------------------------------------------------------------------

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """Record a step: `active` bool [N], kept until the next call; `weights` float32, by layer, only read.

        Raises ValueError when it is not the step after the last one seen.
        """
        if step != self.last + 1:
            raise ValueError(f"step must be {self.last + 1}, the one after the last that was recorded, got {step}")
        if self._mask is None:
            self._active[:] = np.diff(np.flatnonzero(active).searchsorted(self.bounds))
            before, sums = active, np.zeros_like(self.sums[0])
        else:
            before, sums = self._mask, self._row(step)
        scan.step(
            active, before, weights, self.bounds, step, self._pair, self._least, self._reactivations, self.ended,
            sums, self._active, self.patience,
        )  # fmt: skip
        self._mask, self.last = active, step

    def _row(self, step: int) -> np.ndarray:
        """The row of `sums` for a step; when there is none, rows are added up in pairs."""
        row = (step - self.first - 2) // self.every
        if row == len(self.sums):
            self.sums[: row // 2] = self.sums[0::2] + self.sums[1::2]
            self.sums[row // 2 :] = 0
            self.every, row = 2 * self.every, row // 2
        return self.sums[row]


class Attached:
    """A recorder that knows whether its run was reset since it was attached. Raises TypeError where it is no Run."""

    def __init__(self, run: Run) -> None:
        kind("run", run, Run, "a gsm_lab.Run")
        self.run, self._history = run, run.history
        run.recorders.append(self)

    def _check(self, rows: Rows | None) -> None:
        """Raises ValueError after a reset of the run, and while there are no `rows`."""
        if self.run.history is not self._history:
            raise ValueError(f"run was reset after {type(self).__name__} was attached; attach a new one")
        if rows is None or not len(rows.array()):
            raise ValueError("run has taken no gated step since the recorder was attached; call run.step(n) first")


def survivors(run: Run) -> np.ndarray:
    """Which weights a cut would keep now: bool [N], in the order of `run.opt.active_mask()`."""
    masks = keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).values()
    return flat_mask(masks).numpy()


def gather(weights: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Entries of the layers' values at sorted flat positions of all of them joined: float32 [len(chosen)]."""
    bounds = np.cumsum([0, *(w.size for w in weights)])
    cuts = np.searchsorted(chosen, bounds)
    parts = [w.reshape(-1)[chosen[a:b] - start]
             for w, start, a, b in zip(weights, bounds, cuts, cuts[1:], strict=False)]  # fmt: skip
    return np.concatenate(parts)
