"""Tensors of a model picked out by name, by glob or by module: what `include=` and `exclude=` take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

Pick = str | nn.Module | nn.Parameter
Picks = Pick | Iterable[Pick] | None
_LONGEST = 200  # characters of a name in an error


def listed(picks: Picks) -> list[Pick]:
    """One pick or several, as a list."""
    if picks is None:
        return []
    return [picks] if isinstance(picks, str | nn.Module | Tensor) or not isinstance(picks, Iterable) else [*picks]


def _told(pick: object) -> str:
    """A pick in words, not too long."""
    try:
        text = repr(pick)
    except Exception:  # an int of 5,000 digits, a list in itself
        text = ""
    return text if 0 < len(text) <= _LONGEST else f"a {type(pick).__name__} that is too long to be one"


class Names:
    """The names under which a model's tensors can be picked.

    Args:
        model: the module that has them; a tied tensor has several names.
        more: names of tensors that are no parameters, and for each the parameters that it stands for.
    """

    def __init__(self, model: nn.Module, more: dict[str, list[nn.Parameter]]) -> None:
        self._model = model
        self._tensors = {name: [p] for name, p in model.named_parameters(remove_duplicate=False)} | more

    def of(self, picks: Picks, argument: str, least: int = 0) -> set[int]:
        """The `id` of each parameter that the picks name.

        Args:
            picks: names of tensors or modules, globs over these names (`*` also stands for dots), modules or parameters
                of the model, or several of all that.
            argument: where they come from, for errors.
            least: dimensions that a tensor must have; others are passed over.

        Raises:
            TypeError: a pick of another kind.
            ValueError: a pick that is no part of the model, or names nothing.
        """
        found = set[int]()
        for pick in listed(picks):
            its = {id(p): p for p in self._of(pick, argument)}
            wide = {key for key, p in its.items() if p.ndim >= least}
            if not wide:
                called = _told(pick) if isinstance(pick, str) else f"a {type(pick).__name__}"
                raise ValueError(
                    f"{argument} must name tensors of {least} dimensions or more, and {called} names none"
                    if its
                    else f"{argument} names {called}, which has no parameters"
                )
            found |= wide
        return found

    def _of(self, pick: Pick, argument: str) -> list[nn.Parameter]:
        if isinstance(pick, str):
            its = [p for name, tensors in self._tensors.items() if _matches(name, pick) for p in tensors]
            if not its:
                raise ValueError(
                    f"{argument} names {_told(pick)}, and {self._called} has no such tensors; it has {self._near(pick)}"
                )
            return its
        if isinstance(pick, nn.Parameter):
            if not any(pick is p for p in self._model.parameters()):
                raise ValueError(
                    f"{argument} holds a parameter of shape {tuple(pick.shape)} that is none of {self._called}"
                )
            return [pick]
        if isinstance(pick, nn.Module):
            if not any(pick is module for module in self._model.modules()):
                raise ValueError(f"{argument} holds a {type(pick).__name__} that is no part of {self._called}")
            return list(pick.parameters())
        raise TypeError(f"{argument} must be a name, a glob, a module or a list of these, got {_told(pick)}")

    @property
    def _called(self) -> str:
        return f"model {type(self._model).__name__}"

    def _near(self, pick: str) -> str:
        names = dict.fromkeys(x for name in self._tensors for x in (name, *_prefixes(name)))
        near = get_close_matches(pick, names, n=4, cutoff=0.4) or [*self._tensors][:4]
        return ", ".join(map(repr, near)) + (", ..." if len(names) > len(near) else "")


def _prefixes(name: str) -> Iterator[str]:
    """The modules that a tensor is in, by name, from the inner to the outermost."""
    while name := name.rpartition(".")[0]:
        yield name


def _matches(name: str, pick: str) -> bool:
    return any(pick == x or fnmatchcase(x, pick) for x in (name, *_prefixes(name)))
