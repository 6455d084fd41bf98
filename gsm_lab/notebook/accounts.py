"""What a comparison has to know of its runs, beside their histories: what they are, and which weights they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from gsm_lab.figures.differences import Account, not_on_one_scale
from gsm_lab.figures.differences import checked as named
from gsm_lab.notebook.told_apart import same, told_apart
from gsm_lab.optim import keep_masks
from gsm_lab.optim.groups import flat_mask
from gsm_lab.training.history import History
from gsm_lab.training.run import Run

EVERY = 50  # steps after which, while somebody plays, it is looked at anew which weights runs share


def checked(runs: Any) -> dict[str, Run]:
    """`runs`, if it maps two to four names to as many runs. Raises TypeError, ValueError."""
    runs = named(runs, Run, "a gsm_lab.Run, as Run('lenet300', 'digits') makes it", least=2)
    for a, b in combinations(runs, 2):
        if runs[a] is runs[b]:
            raise ValueError(
                f"runs must be different ones, got the same as {a!r} and {b!r}; copy.deepcopy makes another"
            )
        if _changed(runs[a]) & _changed(runs[b]):
            raise ValueError(
                f"runs must have models of their own, and {a!r} and {b!r} would train the same parameters or buffers; "
                "copy.deepcopy(model) makes others"
            )
        one, other = runs[a].metric, runs[b].metric
        if one.same_scale(other) and not same(one.fn, other.fn):
            raise ValueError(
                f"runs must be measured by the same metric to be compared, got two functions called {one.name!r}, as "
                f"{a!r} and {b!r}"
            )
    return runs


def _changed(run: Run) -> set[int]:
    """What its steps change in its model: parameters that are trained, and buffers of modules in training mode."""
    buffers = (b for m in run.model.modules() if m.training for b in m.buffers(recurse=False))
    return {id(p) for p in run.model.parameters() if p.requires_grad} | {id(b) for b in buffers}


class Accounts:
    """Accounts of runs, by name, as they are at the time; to be asked under the lock of the runs."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        self._tested: dict[str, tuple[Any, str]] = {}
        self._shared: tuple[Any, list[str]] = (None, [])
        self._apart: tuple[Any, dict[str, dict[str, str]]] = (None, {})

    def histories(self) -> dict[str, History]:
        """The histories; after a reset they are others."""
        return {name: run.history for name, run in self.runs.items()}

    def all(self) -> dict[str, Account]:
        """What `gsm_lab.figures.comparison.told` takes."""
        key = [(run.model, run.loss) for run in self.runs.values()]  # of another network after a reset
        if self._apart[0] is None or any(a is not b for new, old in zip(key, self._apart[0], strict=True)
                                         for a, b in zip(new, old, strict=True)):  # fmt: skip
            self._apart = key, told_apart(self.runs)
        others = {name: {what: of[name] for what, of in self._apart[1].items()} for name in self.runs}
        return {
            name: Account(
                run.history, run.knobs, run.options, run.method.name, run.data.digest, tested, run.epoch_steps,
                others[name],
            )
            for (name, run), tested in zip(self.runs.items(), self._test_sets(), strict=True)
        }  # fmt: skip

    def drawn(self) -> dict[str, Any]:
        """What a figure is given beside the histories: what the headline adds, and what titles must not compare."""
        return {"note": self.note(), "apart": not_on_one_scale(self.all())}

    def note(self) -> str:
        """What the headline of a comparison has to add."""
        if len(set(self._test_sets())) == 1:
            return ""
        return f"the test sets differ: {next(iter(self.runs.values())).history.metric.scores} cannot be compared"

    def in_common(self, at_leisure: bool = False) -> list[str]:
        """As `in_common`. To look takes as long as some steps: `at_leisure`, only at every fiftieth step or so."""
        at = [(id(run.opt), run.base is None, run.nonzeros, run.steps) for run in self.runs.values()]
        before = self._shared[0]
        soon = (
            at_leisure
            and before
            and all(a[:3] == b[:3] and 0 <= b[3] - a[3] < EVERY for a, b in zip(before, at, strict=True))
        )
        if before != at and not soon:
            self._shared = at, in_common(self.runs)
        return self._shared[1]

    def _test_sets(self) -> list[str]:
        """For each run a digest of its test set, or of all its data, where all have the same."""
        digests = [run.data.digest for run in self.runs.values()]
        if len(set(digests)) == 1:
            return digests
        for name, run in self.runs.items():
            if self._tested.get(name, (None, ""))[0] is not run.data:
                arrays = [run.data.test_x.float().cpu().numpy(), run.data.test_y.cpu().numpy()]
                content = b"".join(repr(array.shape).encode() + array.tobytes() for array in arrays)
                self._tested[name] = run.data, hashlib.sha256(content).hexdigest()
        return [self._tested[name][1] for name in self.runs]


def in_common(runs: Mapping[str, Run]) -> list[str]:
    """For each two runs of networks of the same shapes, how many of the weights that a cut would keep are the same.

    Runs before the end of their dense epochs are left out.
    """
    said, masks = [], {}
    for name, run in runs.items():
        if run.base is not None:
            masks[name] = flat_mask(keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).values()).numpy()
    for a, b in combinations(masks, 2):
        if [p.shape for p in runs[a].tensors] != [p.shape for p in runs[b].tensors]:
            continue
        sizes, total = (int(masks[a].sum()), int(masks[b].sum())), masks[a].size
        same, fewer = int(np.count_nonzero(masks[a] & masks[b])), max(1, min(sizes))
        chance = sizes[0] * sizes[1] / total / fewer
        seeds = "" if runs[a].settings.seed == runs[b].settings.seed else ", of other seeds,"
        at = f"{a} at step {runs[a].steps:,} and {b} at {runs[b].steps:,}"
        said.append(
            f"Of the weights that a cut would keep, {at}{seeds} have {same:,} in common: {100 * same / fewer:.1f}%, "
            f"by chance {100 * chance:.1f}%."
        )
    return said
