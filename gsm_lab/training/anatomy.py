"""What a model consists of, to notice when somebody has exchanged a part of it."""

from __future__ import annotations

from itertools import chain

from torch import nn


class Anatomy:
    """The modules and parameters of a model as they are when this is made; to ask for changes costs little."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.look()

    def look(self) -> None:
        """From now on, what is there now is as it should be."""
        self._places = [place for m in self.model.modules() for place in (m._modules, m._parameters)]
        self._parts = [part for place in self._places for part in place.values()]  # held: an id may come back else
        self._ids = [*map(id, self._parts)]
        self._named = dict(self.model.named_parameters())
        self._first = next(iter(self._named.values()))
        self._kind = self._first.dtype, self._first.device

    def exchanged(self) -> dict[nn.Parameter, nn.Parameter] | None:
        """None where nothing has changed; else parameters that were exchanged: old -> the one that is there now.

        Raises RuntimeError, naming it, for one that does not fit in the place of the one that was there.
        """
        if [*map(id, chain.from_iterable(map(dict.values, self._places)))] != self._ids:
            return self._compared()
        if (self._first.dtype, self._first.device) != self._kind:
            dtype, device = self._kind
            raise RuntimeError(
                f"run.model was moved to {self._first.dtype} on {self._first.device} after the run was made, on "
                f"{dtype} on {device}: move it before that, or move it back"
            )
        return None

    def _compared(self) -> dict[nn.Parameter, nn.Parameter]:
        now = dict(self.model.named_parameters())
        if {id(p) for p in now.values()} == {id(p) for p in self._named.values()}:
            return {}  # a module was put around others, or a parameter has another name
        for name in {**self._named, **now}:
            before, after = self._named.get(name), now.get(name)
            if before is None or after is None or _laid_out(before) != _laid_out(after):
                raise RuntimeError(
                    f"{name!r} of run.model was {_described(before)} when the run was made, and is "
                    f"{_described(after)}: optimizer and history cannot go on with that; make a new Run"
                )
        return {p: now[name] for name, p in self._named.items() if now[name] is not p}


def _laid_out(p: nn.Parameter) -> tuple[object, ...]:
    return p.shape, p.dtype, p.device, p.requires_grad


def _described(p: nn.Parameter | None) -> str:
    if p is None:
        return "not there"
    frozen = "" if p.requires_grad else ", requires_grad=False"
    return f"{list(p.shape)} of {p.dtype} on {p.device}{frozen}"
