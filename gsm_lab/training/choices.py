"""What is chosen for a run: settings and options of its method, checked, and filled up with what works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsm_lab.knobs import KNOBS, Settings, resolve
from gsm_lab.recipes import recipe_of
from gsm_lab.training.method import Method


def checked(method: Method, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, as they were given, and options of the method, checked.

    Raises ValueError for an option that is not valid, for what is neither (of a method that has options), and for a
    setting that the method takes no notice of.
    """
    mine = {knob.name: knob for knob in method.options}
    if method.ignores or mine:
        for name in given.keys() - KNOBS.keys() - mine.keys():
            raise ValueError(
                f"{method.name} has no setting {name!r}: its options are {', '.join(mine) or 'none'}, "
                f"the knobs {', '.join(KNOBS)}"
            )
    refuse_ignored(method, given)
    options = {name: mine[name].check(value) for name, value in given.items() if name in mine}
    return {name: value for name, value in given.items() if name not in mine}, options


def refuse_ignored(method: Method, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that the method takes no notice of, unless it has its default."""
    for name in method.ignores:
        if name in given and KNOBS[name].check(given[name]) != KNOBS[name].default:
            raise ValueError(
                f"{name} must be {KNOBS[name].default:g} for {method.name}, got {given[name]!r}: it is an option of "
                "GSM's gate"
            )


def resolved(
    method: Method, given: Mapping[str, Any], given_options: Mapping[str, Any], data: str, model: str
) -> tuple[Settings, dict[str, Any]]:
    """All settings and all options: those given, else what works for this data and model, else the defaults."""
    recipe = method.recipe(recipe_of(data, model))
    options = {option.name: recipe.pop(option.name, option.default) for option in method.options}
    return resolve(recipe | given, data, model), options | given_options
