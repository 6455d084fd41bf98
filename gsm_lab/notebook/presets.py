"""Settings worth playing with, each with what to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gsm_lab.knobs import KNOBS, half_life, oscillates
from gsm_lab.optim import budget
from gsm_lab.training.run import Run
from gsm_lab.wording import number


@dataclass(frozen=True)
class Preset:
    """Live knobs to set at once, and one line on what happens then.

    In the line, {Q} is how many weights get their gradient, and {halves} how fast passive ones decay.
    """

    name: str
    explanation: str
    knobs: dict[str, float]

    def fits(self, run: Run) -> bool:
        """Whether the line is about the run: they are all about GSM's gate, which a rival does not have."""
        return run.method.name == "gsm"

    def holds(self, run: Run) -> bool:
        """Whether the run's knobs are these."""
        return all(run.knobs[name] == value for name, value in self.knobs.items())

    def said(self, run: Run) -> str:
        """The line, for this run as it is now."""
        return self.explanation.format(Q=f"{run.nonzeros:,}", halves=halves(run))

    def promised(self, run: Run) -> str:
        """The line, for this run as these knobs would make it."""
        k = run.knobs | self.knobs
        q = budget(run.opt.weights, compression=k["compression"])
        return self.explanation.format(Q=f"{q:,}", halves=_halves(k["lr"], k["momentum"], k["weight_decay"]))


def halves(run: Run) -> str:
    """How fast a passive weight of the run decays: what to say after "it"."""
    return _halves(run.lr, run.knobs["momentum"], run.knobs["weight_decay"])


def _halves(lr: float, momentum: float, weight_decay: float) -> str:
    steps = half_life(lr, momentum, weight_decay)
    if math.isinf(steps):
        return "stays where it is"
    if oscillates(lr, momentum, weight_decay):
        return "swings through zero"
    return f"halves every {f'{steps:,.0f}' if steps >= 10 else f'{steps:.2g}'} steps"


def in_force(run: Run, chosen: Preset | None) -> tuple[str, str]:
    """What is set: a name, and what it does, or what has moved since it was `chosen`."""
    if (preset := next((p for p in PRESETS if p.fits(run) and p.holds(run)), None)) is not None:
        return preset.name, preset.said(run)
    if chosen is None:
        return "settings of your own", f"a passive weight {halves(run)}."
    moved = [name for name, value in chosen.knobs.items() if run.knobs[name] != value]
    said = ", ".join(f"{KNOBS[name].label or name} {number(run.knobs[name])}" for name in moved)
    return chosen.name, f"moved since: {said}. A passive weight now {halves(run)}."


_GSM = {"compression": 60.0, "momentum": 0.9, "weight_decay": 3e-3, "lr": 0.1, "smoothing": 0.0}

# The values are for LeNet-300-100 on the digits; what they show holds elsewhere too.
PRESETS: tuple[Preset, ...] = (
    Preset("GSM at 60×", "One weight in 60 sees the loss; each other one {halves}, until a cut costs nothing.", _GSM),
    Preset("plain SGD", "The gate is open: every weight sees the loss, and a cut takes none.",
           {**_GSM, "compression": 1.0}),
    Preset("too little momentum", "A passive weight {halves}, ten times more slowly than at momentum 0.9: "
           "a cut hurts.", {**_GSM, "momentum": 0.0}),
    Preset("no decay", "A passive weight {halves}: nothing pulls it to zero, and a cut takes what still works.",
           {**_GSM, "weight_decay": 0.0}),
    Preset("Q too small", "Only {Q} weights see the loss: small weights go, but too few are left for the task.",
           {**_GSM, "compression": 2000.0}),
    Preset("too much decay", "A passive weight {halves}; the active ones shrink too, and the network fits worse.",
           {**_GSM, "weight_decay": 3e-2}),
    Preset("smoothed gate", "An option, not the paper's: batches agree on who stays, and hardly any weight comes back.",
           {**_GSM, "smoothing": 0.99}),
)  # fmt: skip
