"""`Kept`: a run as it was, to come back to: undo for whoever plays with it. `Shelf`: the last few of them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator

from torch import nn

from gsm_lab.checks import kind, shown, text
from gsm_lab.models import copied
from gsm_lab.training.going_back import go_back
from gsm_lab.training.run import Run

MOST, MEGABYTES = 8, 64  # that a shelf holds: of LeNet-300-100, eight take 18 MB


class Kept:
    """The whole state of a run at one moment, in memory: weights, momenta, history, random numbers, settings.

    Made by `Kept.of(run, name)`; changes nothing in the run, and nothing that the run does changes it. It takes two
    numbers of 32 bits a parameter and some 70 bytes a step of the history: 2.2 MB for LeNet-300-100 after 1,500 steps.
    Data and a model of the user's own are not copied: the run's own are used again.

    Attributes:
        name: what it is called. steps: gated steps it had done. knobs: every setting in force, by name.
        cut: test accuracy, 0..1, or what else the run measures, that a cut left at the latest evaluation, None before
            the first.
        nbytes: that it takes.
        line: what it is, in a line: "kept 1: step 1,500, 60×, β 0.9, cut 95.0%".
    """

    def __init__(self, run: Run, name: str) -> None:
        kind("run", run, Run, "a gsm_lab.Run")
        if not text("name", name).strip():
            raise ValueError(f"name must be text with something to read in it, got {shown(name)}")
        with run.between_steps():
            self._tensors, plain = run.state()
            self._plain = copy.deepcopy(plain)
            self._own = tuple(None if isinstance(s, str) else s for s in (run.source_model, run.source_data))
            self._given_options = dict(run.given_options)
            self._method, self._loss, self._output = run.method, run.given_loss, run.output
            self._given_metric = run.given_metric
            self._of = weakref.ref(run)
            evaluations = run.history.evaluations.array()
            self.cut = float(evaluations["cut_accuracy"][-1]) if len(evaluations) else None
            self._metric = run.history.metric
            self._dense = None if run.base is not None else run.dense_steps
        self.name, self.steps, self.knobs = name, self._plain["steps"], dict(self._plain["knobs"])

    @classmethod
    def of(cls, run: Run, name: str = "kept") -> Kept:
        """The run as it is between two steps.

        Raises TypeError for what is no run or no name, ValueError for an empty name, RuntimeError in the middle of a
        step.
        """
        return cls(run, name)

    @property
    def nbytes(self) -> int:
        """How many bytes its tensors take."""
        return sum(t.nbytes for t in self._tensors.values())

    @property
    def line(self) -> str:
        """What it is, in a line."""
        rival = [] if self._method.name == "gsm" else [self._method.name]
        where = f"step {self.steps:,}" if self._dense is None else f"dense step {self._dense:,}"
        parts = [*rival, where, f"{self.knobs['compression']:g}×", f"β {self.knobs['momentum']:g}"]
        if self.cut is not None:
            what = "cut" if self._metric.is_accuracy else f"{self._metric.name} if cut"
            parts.append(f"{what} {self._metric.shown(self.cut, 1)}")
        return f"{self.name}: {', '.join(parts)}"

    def back_into(self, run: Run) -> None:
        """Put the run that this was kept of back to where it was; from there it goes on to the bit as it did then.

        Also after a reset with another model or data set, by name. As after a reset, `run.opt`, `run.history` and the
        model of a name are new objects, and `run.recorders` is empty: what these have seen of the steps that are undone
        stays with them, and would not fit what comes. A player that plays the run plays on.

        Raises TypeError for what is no run, ValueError for another run than the one that was kept, RuntimeError in the
        middle of a step: the run is then as it was.
        """
        if kind("run", run, Run, "a gsm_lab.Run") is not self._of():
            raise ValueError(f"run must be the one that {self.name!r} was kept of; kept.run() is one in that state")
        with run.between_steps():
            go_back(run, self._tensors, self._plain, *self._own)
            run.given_options = dict(self._given_options)

    def run(self) -> Run:
        """An independent run in that state: of all that can change it shares nothing with the one that was kept."""
        method = copy.copy(self._method)  # with what it was made with; what it remembers of a run, it begins anew
        method.taken = False
        (model, data), loss = self._own, self._loss
        if model is not None:
            model, of_module = copied(model, loss if isinstance(loss, nn.Module) else None)
            loss = loss if of_module is None else of_module
        given = {"model": model, "data": data, "loss": loss, "output": self._output, "method": method}
        given["metric"] = self._given_metric
        tensors = {name: t.clone() for name, t in self._tensors.items()}
        run = Run.from_state(tensors, copy.deepcopy(self._plain), **given, where=self.name)
        run.given_options = dict(self._given_options)
        return run

    def __repr__(self) -> str:
        return f"Kept({self.line})"


class Shelf:
    """The states that somebody has kept of a run, the oldest first.

    There are at most `MOST` of them, of `MEGABYTES` together: when there would be more, the oldest go. The newest one
    always stays.
    """

    def __init__(self) -> None:
        self._kept: list[Kept] = []
        self._count = 0

    def keep(self, run: Run, name: str | None = None) -> Kept:
        """Keep the run as it is, by default as "kept 1", "kept 2", ...; one of the same name makes room for it."""
        if name is None:
            self._count += 1
            while f"kept {self._count}" in self.names:  # somebody has called one so
                self._count += 1
        kept = Kept.of(run, f"kept {self._count}" if name is None else name)
        others = [other for other in self._kept if other.name != kept.name]
        self._kept = [*others, kept][-MOST:]
        while len(self._kept) > 1 and self.nbytes > 1e6 * MEGABYTES:
            del self._kept[0]
        return kept

    @property
    def nbytes(self) -> int:
        """How many bytes all of them take."""
        return sum(kept.nbytes for kept in self._kept)

    def __getitem__(self, name: str) -> Kept:
        for kept in self._kept:
            if kept.name == name:
                return kept
        raise KeyError(f"nothing is kept as {shown(name)}; there is {', '.join(map(repr, self.names)) or 'nothing'}")

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return [kept.name for kept in self._kept]

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept))

    def __len__(self) -> int:
        return len(self._kept)
