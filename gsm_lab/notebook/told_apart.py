"""What runs are made of beside their knobs: losses, adapters, networks of one's own and what these began with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from gsm_lab.training.derivatives import named
from gsm_lab.training.run import Run

_LINE = 60  # characters of a line of a network
_TENSORS = ("_parameters", "_buffers", "_modules")  # of a module, beside its attributes without an underscore


def told_apart(runs: Mapping[str, Run]) -> dict[str, dict[str, str]]:
    """Where runs differ in what is no knob: what -> name of the run -> which it has, in a word or two."""
    found = {
        "loss": _words([run.loss for run in runs.values()], same, named),
        "output": _words([run.output for run in runs.values()], same, lambda f: "as it is" if f is None else named(f)),
    }
    if all(isinstance(run.source_model, nn.Module) for run in runs.values()):
        models = [run.model for run in runs.values()]
        found["model"] = _words(models, partial(same, values=False), lambda model: type(model).__name__, _differing)
        if len(set(found["model"])) == 1:
            found["initial weights"] = _words([began(run) for run in runs.values()], str.__eq__, lambda _: "")
    names = list(runs)
    return {what: dict(zip(names, words, strict=True)) for what, words in found.items() if len(set(words)) > 1}


def same(f: Any, g: Any, values: bool = True) -> bool:
    """Whether two things are one, or made alike: functions of one line with equal values in them, modules, objects.

    False also where it cannot be told. Without `values`, tensors need only be of one shape and type.
    """
    try:
        return _same(f, g, values)
    except Exception:  # what somebody has written may raise anything when it is compared, or refer to itself
        return False


def _same(f: Any, g: Any, values: bool) -> bool:
    def all_same(a: Sequence[Any], b: Sequence[Any]) -> bool:
        return len(a) == len(b) and all(_same(x, y, values) for x, y in zip(a, b, strict=True))

    if f is g:
        return True
    if type(f) is not type(g):
        return False
    if isinstance(f, torch.Tensor):
        alike = (f.shape, f.dtype) == (g.shape, g.dtype)
        return alike and (not values or torch.equal(f.detach().cpu(), g.detach().cpu()))
    if isinstance(f, np.ndarray):
        return (f.shape, f.dtype) == (g.shape, g.dtype) and (not values or bool(np.array_equal(f, g)))
    if isinstance(f, list | tuple):
        return all_same(f, g)
    if isinstance(f, dict):
        return f.keys() == g.keys() and all_same(list(f.values()), [g[key] for key in f])
    if isinstance(f, CellType):
        return all_same(_held(f), _held(g))
    if isinstance(f, FunctionType):
        parts = ([h.__defaults__, h.__kwdefaults__, h.__closure__] for h in (f, g))
        return f.__code__ == g.__code__ and all_same(*parts)
    if isinstance(f, MethodType):
        return all_same([f.__func__, f.__self__], [g.__func__, g.__self__])
    if isinstance(f, partial):
        return all_same([f.func, f.args, f.keywords], [g.func, g.args, g.keywords])
    if isinstance(f, nn.Module):
        return all_same(*([_attributes(h), *(getattr(h, name) for name in _TENSORS)] for h in (f, g)))
    return bool(f == g) or (hasattr(f, "__dict__") and not isinstance(f, type) and all_same([vars(f)], [vars(g)]))


def _held(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds that no list of its tensors has, and its print may not show, such as `label_smoothing`."""
    return {name: value for name, value in vars(module).items() if name[:1] != "_" and name != "training"}


def began(run: Run) -> str:
    """A digest of the values that a network of one's own came with."""
    digest = hashlib.sha256()
    for name, value in sorted((run.initial or {}).items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _words(
    things: Sequence[Any],
    alike: Callable[[Any, Any], bool],
    name: Callable[[Any], str],
    among: Callable[[list[Any]], list[str]] | None = None,
) -> list[str]:
    """A name for each, the same for those that are alike, and another for those that are not.

    `among`: names things that all differ, better than each by its `name`; it may give "" or the same for some.
    """
    firsts: list[Any] = []
    which = []
    for thing in things:
        at = next((i for i, first in enumerate(firsts) if alike(first, thing)), len(firsts))
        if at == len(firsts):
            firsts.append(thing)
        which.append(at)
    words = among(firsts) if among and len(firsts) > 1 else [""] * len(firsts)
    words = [word or name(first) for word, first in zip(words, firsts, strict=True)]
    if len(set(words)) < len(words):
        words = [f"{word} no. {i}".strip() for i, word in enumerate(words, 1)]
    return [words[at] for at in which]


def _differing(models: list[nn.Module]) -> list[str]:
    """Of networks as they are printed, the first line in which they differ, from where it does; "" where none does."""
    printed = [repr(model).splitlines() for model in models]
    for i in range(max(map(len, printed))):
        lines = [lines[i].strip() if i < len(lines) else "nothing more" for lines in printed]
        if len(set(lines)) > 1:
            alike = next(
                (k for k, of in enumerate(zip(*lines, strict=False)) if len(set(of)) > 1), min(map(len, lines))
            )
            start = alike - _LINE // 2 if max(map(len, lines)) > _LINE else 0
            return [f"…{line[start : start + _LINE]}" if start > 0 else line[:_LINE] for line in lines]
    return [""] * len(models)
