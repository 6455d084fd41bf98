"""How figures fit into the narrowest cell of a notebook: lines of a title, ticks, names, rows of a legend.

A figure does not know how wide it will be drawn, and plotly breaks no line and leaves out no tick that it was told to
draw. So all of it is made to fit the narrowest cell; in a wider one there is room between.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

NARROWEST = 568  # pixels: a cell's output beside JupyterLab's file browser, on a page of 1,000
ROOM = NARROWEST - 120  # of it a plot has, beside tick labels and margins
LINE = 60  # characters of a title, in bold letters of 16 pixels, in the narrowest cell
LETTER = 7.4  # pixels, a little more than letters of 13 pixels are wide in the mean
SHOWN = 12  # lines of a plot that can be told apart, or names along an axis
_LONG = 22  # characters of a name
_SMALL = 6.7  # pixels, letters of 13 pixels in the mean


def wrapped(said: str, letters: int = LINE) -> str:
    """A text in lines of up to so many characters."""
    return "<br>".join(textwrap.wrap(said, letters, break_long_words=letters == LINE, break_on_hyphens=False)) or said


def letters(room: float) -> int:
    """How many characters of 14 pixels, which titles of axes and plots are set in, go into so many pixels."""
    return max(6, int(room / (LETTER * 14 / 13)))


def legend_rows(names: Iterable[str], room: float = NARROWEST - 24) -> int:
    """How many rows a legend of these names takes: as many columns as the longest one leaves room for."""
    widths = [LETTER * len(name) + 46 for name in names]
    if sum(widths) <= room:
        return 1
    return math.ceil(len(widths) / max(1, int(room / max(widths))))


def few(names: Sequence[Any], most: int = SHOWN) -> list[Any]:
    """All of them, or `most`, evenly spread from the first to the last."""
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def short_names(names: Sequence[str], most: int = _LONG) -> list[str]:
    """The names, each of about `most` characters, and as different as they were.

    Of a long one the parts between dots that all have are left out, then parts are cut to three letters; a number says
    which it is where that is not enough.
    """
    if all(len(name) <= most for name in names):
        return list(names)
    split = [[name] if " " in name else name.split(".") for name in names]
    while len(split) > 1 and min(map(len, split)) > 1 and len({parts[0] for parts in split}) == 1:
        split = [parts[1:] for parts in split]
    while len(split) > 1 and min(map(len, split)) > 1 and len({parts[-1] for parts in split}) == 1:
        split = [parts[:-1] for parts in split]
    short = [".".join(parts) for parts in split]
    if any(len(name) > most for name in short):
        short = [".".join(part if part.isdigit() else part[:3] for part in parts[:-1]) + f".{parts[-1]}"
                 if len(parts) > 1 else parts[0] for parts in split]  # fmt: skip
    cut = [name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - 1) // 2 :]}" for name in short]
    return [f"{name} #{i}" if cut.count(name) > 1 and len(set(names)) > 1 else name for i, name in enumerate(cut, 1)]


def names_axis(names: Iterable[Any]) -> dict[str, Any]:
    """Arguments of an axis of names: in lines where these have room; else upright, short, and some of them if many."""
    every = list(dict.fromkeys(str(name) for name in names))
    room = ROOM / max(1, len(every)) - 6
    texts = ["<br>".join(wrapped(part, max(6, int(room / _SMALL))) for part in name.split("<br>")) for name in every]
    crowded = any(_SMALL * len(part) > room for text in texts for part in text.split("<br>"))
    texts = short_names([name.replace("<br>", " ") for name in every], 26) if crowded else texts
    shown = few(range(len(every)), 2 * SHOWN)  # by their place, which is what an axis of names counts in
    return {"tickvals": shown, "ticktext": [texts[i] for i in shown], "tickangle": -90 if crowded else 0}


def ticks(values: Iterable[float], room: float = ROOM) -> dict[str, list]:
    """Ticks of a log axis at these values, but those that have no room beside the one before; labelled in full.

    (plotly labels a log axis with lone digits.)
    """
    values = sorted({float(value) for value in values})
    texts = [_label(value) for value in values]
    if len(values) < 2:
        return {"tickvals": values, "ticktext": texts}
    per_decade = 0.9 * room / math.log10(values[-1] / values[0])
    at = [per_decade * math.log10(value / values[0]) for value in values]
    half = [LETTER * min(len(text), 6) / 2 + 4 for text in texts]
    kept = [len(values) - 1]  # the greatest is what such a plot is about; from there down
    for i in reversed(range(len(values) - 1)):
        if at[kept[-1]] - at[i] >= half[kept[-1]] + half[i]:
            kept.append(i)
    kept.reverse()
    return {"tickvals": [values[i] for i in kept], "ticktext": [texts[i] for i in kept]}


def log_axis(values: Any, most: int = 7) -> dict[str, Any]:
    """Arguments of a logarithmic axis for these values: up to `most` ticks, and a range where there is nothing to show.

    What is not above zero has no place on it. Between ticks lies a factor of 100, 1,000, ..., or 10, or about 3, or 2,
    or a fixed step where the values span less than that.
    """
    values = np.asarray(values, np.float64).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    axis: dict[str, Any] = {"type": "log"}
    if not values.size:
        return {**axis, "range": [-3, 0], **_labelled([1e-3, 1e-2, 0.1, 1.0])}
    low, high = float(values.min()), float(values.max())
    if high / low < 1.0001:  # one value: between its halves and its double
        low, high = low / 2, 2 * high
        axis["range"] = [math.log10(low), math.log10(high)]
    return {**axis, **_labelled(_between(low, high, most))}


def placed(x: Any, y: Any, texts: Sequence[str], height: float) -> list[str | None]:
    """Where the label of each point has room, as plotly's `textposition`, and None where it has none.

    `x`, `y`: [n], as drawn (logarithms on a log axis), all points of a plot that is `height` pixels high at least.
    """

    def on(values: Any, length: float) -> np.ndarray:
        values = np.asarray(values, float)
        low, high = np.nanmin(values), np.nanmax(values)
        return 0.05 * length + 0.9 * length * (values - low) / ((high - low) or 1.0)

    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in zip(on(x, ROOM), on(y, height), strict=True)]
    points, found = list(taken), []
    for (left, bottom, right, top), text in zip(points, texts, strict=True):
        wide, tall, middle, level = LETTER * len(text) + 4, 18, (left + right) / 2, (bottom + top) / 2
        boxes = {
            "top center": (middle - wide / 2, top, middle + wide / 2, top + tall),
            "bottom center": (middle - wide / 2, bottom - tall, middle + wide / 2, bottom),
            "middle right": (right, level - tall / 2, right + wide, level + tall / 2),
            "middle left": (left - wide, level - tall / 2, left, level + tall / 2),
        }
        free = (place for place, box in boxes.items() if box[0] >= 0 and box[2] <= ROOM and not any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken if b[2] - b[0] > 0
        ))  # fmt: skip
        place = next(free, None)
        found.append(place)
        if place:
            taken.append(boxes[place])
    return found


def _between(low: float, high: float, most: int) -> list[float]:
    """Round numbers from about `low` to about `high`, at least two of them, where there are any, and up to `most`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if high / low < 4:
        step = 10.0 ** math.floor(math.log10((high - low) / 2))
        for factor in (1, 2, 5, 10, 20):
            by = factor * step
            found = [k * by for k in range(math.ceil(low / by), math.floor(high / by) + 1)]
            if len(found) <= most:
                return [float(f"{value:.6g}") for value in found]
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{m}e{e}") for e in range(first, last + 1) for m in mantissas]
        found = [value for value in found if low / 1.2 <= value <= high * 1.2]
        if len(found) <= most:
            return found
    every = math.ceil((last - first) / (most - 1))
    return [float(f"1e{e}") for e in range(first, last + 1, every) if -300 < e < 300]


def _labelled(values: list[float]) -> dict[str, list]:
    return {"tickvals": values, "ticktext": [_label(value) for value in values]}


def _label(value: float) -> str:
    """A number as it is, or as a power of ten: 0.001, 5,000, 2·10⁻⁵."""
    if 1e-3 <= value < 1e6:
        return f"{value:,.6g}" if value >= 1e4 else f"{value:.6g}"
    power = math.floor(math.log10(value) + 1e-9)
    mantissa = float(f"{value / 10.0**power:.4g}")
    times = "" if mantissa == 1 else f"{mantissa:g}·"
    return f"{times}10<sup>{f'{power}'.replace('-', '−')}</sup>"
