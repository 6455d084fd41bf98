"""What a checkpoint has to hold to be a run: its plain values by themselves, and its tensors beside the run to be.

A checksum tells a damaged file; this tells one that another version has written, or somebody's own program. All of it
is looked at before anything changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from gsm_lab import knobs as settings
from gsm_lab.checks import is_number
from gsm_lab.training.parts import Parts

ROOMS = ("model", "initial", "momentum", "average", "method", "gate", "history", "random")  # of tensors
_LARGEST = 2**53  # of a number that JSON's readers take for a whole one


def plain_values(header: str) -> dict[str, Any]:
    """The plain values in the header of a checkpoint. Raises ValueError saying what is wrong with it."""

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        plain = json.loads(header, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"its header is {_short(plain)}, not a JSON object")
    return plain


def must_describe_a_run(plain: dict[str, Any]) -> None:
    """Raises ValueError naming the first value that cannot be one of a run."""
    for name, (kind, valid) in _VALUES.items():
        if name not in plain and name in _LATER:
            continue
        if name not in plain:
            raise ValueError(f"{name!r} is not in its header")
        if not kind(plain[name]):
            raise ValueError(f"{name!r} in its header must be {valid}, got {_short(plain[name])}")
    for name in ("base", "magnitude"):
        if "metric" not in plain and not _share(plain[name]):
            raise ValueError(f"{name!r} in its header must be a share from 0 to 1, or null, got {_short(plain[name])}")
    events = ("step", "knob", "old", "new")
    for event in plain["history"]["events"]:
        if not (_is_dict(event) and set(event) == set(events) and _count(event["step"])):
            raise ValueError(f"an event of its history must have {', '.join(events)}, got {_short(event)}")
        if event["knob"] in settings.KNOBS:
            for value in (event["old"], event["new"]):
                if value is not None:
                    settings.KNOBS[event["knob"]].check(value)
    for table in ("steps", "evaluations"):
        counters = plain["history"][table]
        if not (_is_dict(counters) and set(counters) == {"every", "seen"} and all(map(_count, counters.values()))):
            raise ValueError(f"'history' in its header must count its {table}, got {_short(counters)}")
        if counters["every"] < 1:
            raise ValueError(f"'history' in its header has every = {counters['every']}; valid: 1 or more")
    for name in ("knobs", "given"):
        known = {k: v for k, v in plain[name].items() if k not in ("model", "data")}
        settings.checked(known)


def must_fit(run: Parts, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors by what they belong to, and by name.

    Raises ValueError naming the first that is missing, unknown, or of another shape or type than in `run`.
    """
    parts: dict[str, dict[str, Tensor]] = {room: {} for room in ROOMS}
    for name, tensor in tensors.items():
        room, _, rest = name.partition("/")
        if room not in parts or not rest:
            raise ValueError(f"it holds a tensor {name!r}, which is none of a run")
        parts[room][rest] = tensor
    own = {name: t for name, t in run.model.state_dict().items() if isinstance(t, Tensor)}
    like_the_model = {name: (t.shape, t.dtype) for name, t in own.items()}
    try:
        _same("model", parts["model"], like_the_model)
    except ValueError as error:
        raise ValueError(f"its weights do not fit the model: {error}") from None
    if parts["initial"]:
        _same("initial", parts["initial"], like_the_model)
    params = [p for group in run.opt.param_groups for p in group["params"]]
    for room in ("momentum", "average"):
        known = {str(i): (p.shape, p.dtype) for i, p in enumerate(params)}
        _same(room, parts[room], {name: known[name] for name in parts[room] if name in known})
    if parts["gate"]:
        _same("gate", parts["gate"], {"candidates": ((run.opt.weights,), torch.bool)})
    try:
        torch.Generator().set_state(parts["random"]["run"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"random/run is not the state of a generator ({type(error).__name__})") from None
    _history(run, parts["history"], plain["history"])
    return parts


def _history(run: Parts, arrays: dict[str, Tensor], plain: dict[str, Any]) -> None:
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for table in ("steps", "evaluations"):
        columns = getattr(run.history, table).array().dtype
        step = arrays.get(f"{table}/step")
        rows = 0 if step is None or step.ndim != 1 else len(step)
        if rows > plain[table]["seen"]:
            raise ValueError(f"history/{table}/step has {rows:,} rows, of {plain[table]['seen']:,} that there were")
        for name in columns.names or ():
            base, shape = columns[name].base, columns[name].shape
            expected[f"{table}/{name}"] = ((rows, *shape), torch.int32 if base.kind == "i" else torch.float32)
    if "before" in arrays:
        expected["before"] = ((math.ceil(sum(run.history.layers.values()) / 8),), torch.uint8)
    _same("history", arrays, expected)


def _same(room: str, found: dict[str, Tensor], expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    for name in sorted(expected.keys() ^ found.keys()):
        what = "is missing" if name in expected else "is in it, and is none of this run"
        raise ValueError(f"{room}/{name} {what}")
    for name, (shape, dtype) in expected.items():
        t = found[name]
        if (tuple(t.shape), t.dtype) != (tuple(shape), dtype):
            raise ValueError(f"{room}/{name} is {t.dtype} {tuple(t.shape)}; the run has {dtype} {tuple(shape)}")


def _count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < _LARGEST


def _number(x: Any) -> bool:
    return x is None or is_number(x)


def _share(x: Any) -> bool:
    return x is None or 0 <= x <= 1


def _of(*kinds: type) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, kinds)


_is_dict, _text, _text_or_none = _of(dict), _of(str), _of(str, NoneType)


def _knobs(x: Any) -> bool:
    return _is_dict(x) and _text(x.get("model")) and _text(x.get("data"))


def _of_history(x: Any) -> bool:
    return (
        _is_dict(x)
        and {"events", "reactivations", "layers", "steps", "evaluations"} <= x.keys()
        and isinstance(x["events"], list)
        and _count(x["reactivations"])
        and _is_dict(x["layers"])
        and all(map(_count, x["layers"].values()))
    )


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "knobs": (_knobs, "the settings by name, model and data among them"),
    "given": (_is_dict, "settings by name"),
    "options": (_is_dict, "settings by name"),
    "method": (_text, "a name"),
    "own_model": (_text_or_none, "a name or null"),
    "own_data": (_text_or_none, "a name or null"),
    "own_loss": (_text_or_none, "a name or null"),
    "data_digest": (_text, "text"),
    "history": (_of_history, "the events, counters and layers of a history"),
    "steps": (_count, "a whole number >= 0"),
    "dense_steps": (_count, "a whole number >= 0"),
    "metric": (_text, "text"),
    "own_metric": (_text, "a name"),
    "base": (_number, "a number or null"),
    "magnitude": (_number, "a number or null"),
    "shorn": (_of(bool), "true or false"),
    "extra": (_is_dict, "what modules keep beside their tensors, by name"),
    "beside": (_is_dict, "checksums by file"),
}
_LATER = ("options", "method", "metric", "own_metric", "shorn", "extra", "beside")  # not in the first checkpoints


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
