"""What a view of a network shows, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from gsm_lab.checks import kind
from gsm_lab.studies.view import FEATURES, INPUTS, PIXELS, POSITIONS, View

NOUNS = {PIXELS: "pixel", FEATURES: "feature", POSITIONS: "kernel position", INPUTS: "input"}
_LONGEST = 28  # characters of a layer's name


def checked(view: View, name: str = "view") -> View:
    """The view. Raises TypeError where it is none."""
    return kind(name, view, View, "a View, as gsm_lab.studies.network.look returns it")


def titles(view: View) -> tuple[str, str]:
    """What the two plots show: how many inputs have a weight left, and how much of the layer is left."""
    noun, began = NOUNS[checked(view).kind], view.step > 0
    which = f"{view.reached:,} of {view.count:,} {noun}s"
    if view.reached in (0, view.count):
        which = f"All {view.count:,} {noun}s" if view.reached else f"None of the {view.count:,} {noun}s"
    if view.count == 1:
        which = f"The only {noun}" if view.reached else f"Not even the only {noun}"
    has = "has" if view.reached <= 1 else "have"
    left = f"{which} {f'still {has}' if began else 'would keep'} a weight"
    among = f"all {view.of_units:,}" if view.alive == view.of_units else f"{view.alive:,} of {view.of_units:,}"
    where = "" if view.of_units == 1 else f", in {among} {_unit(view)}s"
    much = f"{percent(view.layer_kept, view.weights)} of its weights{where}"
    if view.layer_kept in (0, view.weights):
        one, many = ("its only weight", "all of its") if view.layer_kept else ("no weight", "none of its")
        much = one if view.weights == 1 else f"{many} {view.weights:,} weights"
    right = f"{layer(view)} keeps {much}" if began else f"a cut now would leave {layer(view)} {much}"
    return left, right + came_back(view)


def sentence(view: View) -> str:
    """The same as one sentence, for a figure."""
    return "; ".join(titles(view))


def changed(first: View, last: View) -> str:
    """What happened between two views, as one sentence."""
    noun, steps = NOUNS[checked(last, "last").kind], last.step - checked(first, "first").step
    if not steps:
        return sentence(last)
    said = [
        f"{noun}s that keep a weight {_from_to(f'{first.reached:,}', f'{last.reached:,}')} (of {last.count:,})",
        f"{_unit(last)}s {_from_to(f'{first.alive:,}', f'{last.alive:,}')} (of {last.of_units:,})",
        f"weights of {layer(last)} {_from_to(*(percent(v.layer_kept, v.weights) for v in (first, last)))}",
    ]
    return f"In {_many(steps, 'step')}, {', '.join(said)}"


def captions(view: View, most: int) -> tuple[str, str]:
    """What stands under the two plots; `most`: how many marks there are at most."""
    noun, unit = NOUNS[view.kind], _unit(view)
    if view.kind in (PIXELS, POSITIONS):
        left = f"rows and columns of the {'image' if view.kind == PIXELS else 'kernel'}"
    else:
        left = noun if view.inputs.shape[0] == 1 else f"{noun}s, row by row"
    shown = len(view.shown)
    right = f"all {view.of_units:,} {unit}s" if shown > 1 else f"the only {unit}"
    if shown < view.of_units:
        right = f"the {shown:,} of {view.of_units:,} {unit}s with most weights kept"
    dots = " " if view.returned is None else "dot: came back in this step"
    if view.returned is not None and view.reactivated.size > most:
        dots += f" ({most:,} at most)"
    return left, f"{right}<br>{dots}"


def came_back(view: View) -> str:
    """How many weights of the layer came back, as a clause; nothing where that is not known."""
    if view.returned is None:
        return ""
    return f"; {f'{view.returned:,}' if view.returned else 'none'} came back in this step"


def of_unit(view: View) -> Callable[[int, int], str]:
    """A function from the number of a unit, and how many weights it keeps, to what is said of it."""
    unit, size = _unit(view), view.weights // view.of_units
    return lambda i, kept: f"{unit} {i}: {kept:,} of {_many(size, 'weight')} kept"


def layer(view: View) -> str:
    """The name of the layer, its end where it is long."""
    name = view.layer if len(view.layer) <= _LONGEST else f"…{view.layer[1 - _LONGEST :]}"
    return escape(name, quote=False)


def percent(part: int, whole: int) -> str:
    """A share in percent, two digits of it that count; 0% and 100% only where it is none and all."""
    if part in (0, whole):
        return "100%" if part else "0%"
    share = 100 * part / whole
    if share < 0.01:
        return "under 0.01%"
    if share >= 99:
        return f"{min(share, 99.9):.1f}%"
    return f"{share:.0f}%" if share >= 10 else f"{float(f'{share:.2g}'):g}%"


def _unit(view: View) -> str:
    return "kernel" if view.kind == POSITIONS else "unit"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _from_to(first: str, last: str) -> str:
    return f"stay {last}" if first == last else f"go from {first} to {last}"
