"""The playground's read-outs, as HTML, and its state line."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from gsm_lab.checks import shown
from gsm_lab.knobs import KNOBS, checked
from gsm_lab.notebook.player import Player
from gsm_lab.notebook.presets import Preset, halves, in_force
from gsm_lab.optim import budget
from gsm_lab.training.run import Run


def explained(run: Run, chosen: Preset | None) -> str:
    """What is set, and what it does: see `presets.in_force`."""
    name, said = in_force(run, chosen)
    return f"<b>{escape(name)}</b>: {escape(said)}"


def half_life_text(run: Run) -> str:
    """How fast a passive weight decays at the learning rate in force."""
    said = halves(run)
    more = {"stays where it is": " (no decay)", "swings through zero": ": α · η is above (1 − √β)²"}
    return f"<b>A passive weight {said}</b>{more.get(said, ' = ln 2 · (1 − β) / (α · η)')}"


def status(run: Run, player: Player) -> str:
    """Whether it plays or why it has paused, and how far it is."""
    playing = player.playing
    if run.base is None and run.dense_left and playing:
        return f"dense epochs first: {run.dense_left:,} steps until the gate closes"
    parts = [f"step {run.steps:,}", f"epoch {run.steps / run.epoch_steps:.1f}"]
    if run.lr != run.settings.lr:
        parts.append(f"α in force {run.lr:.2g}")
    if playing and player.rate:
        parts.append(f"{player.rate:,.0f} steps/s")
    word = "playing" if playing else "paused"
    if player.note and not playing:
        word += f" ({player.note})"
    return f"<b>{escape(word)}</b> · " + " · ".join(parts)


def budget_text(run: Run) -> str:
    """How many weights receive their gradient: Q, or fewer where the gate finds no more with any T.

    Of a rival, how many a cut leaves: its gate, if it has one, goes by other rules.
    """
    weights, c = run.opt.weights, run.settings.compression
    q = budget(weights, compression=c)
    if run.method.name != "gsm":
        return f"<b>Q = {q:,} of {weights:,} weights ({c:g}×)</b> are left by a cut"
    text = f"<b>Q = {q:,} of {weights:,} weights ({c:g}×)</b> receive their gradient"
    row = run.history.steps.array()[-1:]
    if not len(row):
        return text
    at_most = budget(weights, compression=float(run.history.knob_values("compression", row["step"])[0]))
    active = int(row["active"].sum())
    if active >= at_most:
        return text
    return text.replace("receive", "may receive") + (
        f", but in step {int(row['step'][0]):,} <b>only {active:,}</b> of {at_most:,} did: |g·w| of all others is 0. "
        "They have decayed until the product is too small for float32, or no sample's gradient reaches them; "
        "a few steps at 1×, with the gate open, let them grow again"
    )


def got(what: Any) -> str:
    """A value in a few words, for a message; of an object that is no plain value its type."""
    plain = isinstance(what, str | int | float | None | list | tuple | dict)
    text = shown(what) if plain else f"a {type(what).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def read_state(line: str, run: Run) -> dict[str, Any]:
    """The knobs in a state line, checked.

    Raises TypeError, ValueError saying what a state looks like, or that this one is of a model or data that are not the
    run's own.
    """
    example = 'a state is one line like {"gsm_lab": 1, "knobs": {"compression": 60}}'
    if not isinstance(line, str):
        raise TypeError(f"{example}, got {got(line)}")
    try:
        state = json.loads(line)
        knobs = state["knobs"]
        version = state["gsm_lab"]
        if not isinstance(knobs, dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{example}, got {line[:60]!r}") from None
    if version != 1 or isinstance(version, bool):
        raise ValueError(f"the state is of version {got(version)}, and 1 is the one that is read here: {example}")
    own = [name for name in ("model", "data") if name in knobs and knobs[name] not in KNOBS[name].choices]
    for name in own:
        if knobs[name] != run.knobs[name]:
            valid = ", ".join(dict.fromkeys([run.knobs[name], *KNOBS[name].choices]))
            raise ValueError(f"the state is of {name} {knobs[name]!r}, which is not here; valid: {valid}")
    return checked({name: value for name, value in knobs.items() if name not in own})
