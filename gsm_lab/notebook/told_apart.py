"""What runs are made of beside their knobs: losses, adapters, networks of one's own and what these began with."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn

from gsm_lab.training.derivatives import named
from gsm_lab.training.run import Run

_LINE = 60  # characters of a line of a network


def told_apart(runs: Mapping[str, Run]) -> dict[str, dict[str, str]]:
    """Where runs differ in what is no knob: what -> name of the run -> which it has, in a word or two."""
    own = all(isinstance(run.source_model, nn.Module) for run in runs.values())
    found = {
        "loss": _words([run.loss for run in runs.values()], same, named),
        "output": _words([run.output for run in runs.values()], same, lambda f: "as it is" if f is None else named(f)),
    }
    if own:
        models = [repr(run.model) for run in runs.values()]
        found["model"] = _networks(models)
        if len(set(models)) == 1:
            found["initial weights"] = _words([began(run) for run in runs.values()], str.__eq__, lambda _: "")
    names = list(runs)
    return {what: dict(zip(names, words, strict=True)) for what, words in found.items() if len(set(words)) > 1}


def same(f: Any, g: Any) -> bool:
    """Whether two functions, or modules, or None, do the same as far as can be told: one, or of the same making."""
    if f is g:
        return True
    if isinstance(f, nn.Module) and isinstance(g, nn.Module):
        a, b = f.state_dict(), g.state_dict()
        return (type(f), repr(f)) == (type(g), repr(g)) and a.keys() == b.keys() and all(
            torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
        )  # fmt: skip
    if isinstance(f, FunctionType) and isinstance(g, FunctionType):  # of one line that has run twice, as in a loop
        parts = ((h.__defaults__, h.__kwdefaults__, [c.cell_contents for c in h.__closure__ or ()]) for h in (f, g))
        return f.__code__ == g.__code__ and _equal(*parts)
    return _equal(f, g)


def began(run: Run) -> str:
    """A digest of the values that a network of one's own came with."""
    digest = hashlib.sha256()
    for name, value in sorted((run.initial or {}).items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # arrays have no one answer, and what somebody has written may raise anything
        return False


def _words(things: Sequence[Any], alike: Callable[[Any, Any], bool], name: Callable[[Any], str]) -> list[str]:
    """A name for each, the same for those that are alike, and another for those that are not."""
    firsts: list[Any] = []
    which = []
    for thing in things:
        at = next((i for i, first in enumerate(firsts) if alike(first, thing)), len(firsts))
        if at == len(firsts):
            firsts.append(thing)
        which.append(at)
    words = [name(first) for first in firsts]
    if len(set(words)) < len(words):
        words = [f"{word} no. {i}".strip() for i, word in enumerate(words, 1)]
    return [words[at] for at in which]


def _networks(models: Sequence[str]) -> list[str]:
    """Of networks as they are printed, the first line in which they differ."""
    for lines in itertools.zip_longest(*(model.splitlines() for model in models), fillvalue=""):
        if len(set(lines)) > 1:
            return [line.strip()[:_LINE] or "nothing more" for line in lines]
    return ["" for _ in models]
