"""Settings worth playing with, each with what to look at."""

from __future__ import annotations

from dataclasses import dataclass

from gsm_lab.knobs import KNOBS
from gsm_lab.training.run import Run


@dataclass(frozen=True)
class Preset:
    """Live knobs to set at once, and one line on what happens then."""

    name: str
    explanation: str
    knobs: dict[str, float]

    def fits(self, run: Run) -> bool:
        """Whether the run takes notice of all that is set here: a rival refuses what only says something about GSM."""
        return all(self.knobs.get(name, KNOBS[name].default) == KNOBS[name].default for name in run.method.ignores)


_GSM = {"compression": 60.0, "momentum": 0.9, "weight_decay": 3e-3, "lr": 0.1, "smoothing": 0.0}

# The values are for LeNet-300-100 on the digits; what they show holds elsewhere too.
PRESETS: tuple[Preset, ...] = (
    Preset("GSM at 60×", "One weight in 60 sees the loss, the rest halves every 231 steps: soon the cut is free.",
           _GSM),
    Preset("plain SGD", "The gate is open: every weight sees the loss, and nothing has to go (target 0%).",
           {**_GSM, "compression": 1.0}),
    Preset("too little momentum", "No momentum: passive weights halve ten times slower, and the cut hurts.",
           {**_GSM, "momentum": 0.0}),
    Preset("no decay", "Nothing pulls passive weights to zero: they stay as they are, and the cut ruins the net.",
           {**_GSM, "weight_decay": 0.0}),
    Preset("Q too small", "133 weights for ten digits: near zero is reached, but too few are left to know them.",
           {**_GSM, "compression": 2000.0}),
    Preset("too much decay", "Passive weights swing through zero, and the active ones shrink too: accuracy suffers.",
           {**_GSM, "weight_decay": 3e-2}),
    Preset("smoothed gate", "An option, not the paper's: batches agree on who stays, and hardly any weight comes back.",
           {**_GSM, "smoothing": 0.99}),
)  # fmt: skip
