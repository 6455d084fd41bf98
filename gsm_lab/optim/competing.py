"""What `GSM` lets compete, and for how many places: the part of it that is no step."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gsm_lab.optim.device import Watch
from gsm_lab.optim.gate import Gate
from gsm_lab.optim.ranks import is_distributed
from gsm_lab.optim.selection import budget
from gsm_lab.optim.sgd import checked, first_non_finite
from gsm_lab.optim.sharded import ShardedGate
from gsm_lab.optim.standstill import Standstill


class Competing(torch.optim.SGD):
    """SGD that knows which of its weights compete, for how many places, and who had one: the base of `GSM`.

    Whoever derives from it sets `_first`, what the first group begins with, before SGD's constructor adds that, and
    calls `_start_fresh` after it. Its setters raise ValueError, before anything changes, for what is out of range.
    """

    _first: dict[str, Any]

    @property
    def weights(self) -> int:
        """N, the number of prunable weights."""
        return self._gate().count

    @property
    def nonzeros(self) -> int:
        """Q, how many weights receive their gradient in a step."""
        return budget(self.weights, **self._own())

    @nonzeros.setter
    def nonzeros(self, q: int) -> None:
        self._change(compression=None, nonzeros=q)

    @property
    def compression(self) -> float:
        """C = N / Q as it was set, or N / Q where Q was."""
        c = self._own()["compression"]
        return self.weights / max(1, self.nonzeros) if c is None else c

    @compression.setter
    def compression(self, c: float) -> None:
        self._change(compression=c, nonzeros=None)

    @property
    def smoothing(self) -> float:
        """Over how many steps, about 1 / (1 - smoothing), the gate looks at gradients; 0: only at this step's.

        Can be changed at any step; a gate that was not smoothed begins its averages anew.
        """
        return self.param_groups[0]["smoothing"]

    @smoothing.setter
    def smoothing(self, s: float) -> None:
        s = checked(s)
        if not (s and self.smoothing):  # averages of long ago would have their say when it is smoothed again
            for state in self.state.values():
                state.pop("gradient_average", None)
        for group in self.param_groups:
            group["smoothing"] = s

    @property
    def threshold(self) -> float:
        """The smallest T that was active in the last step (float32); 0.0 before the first step, and at Q = N.

        Where the gate is smoothed, the smallest |w| times mean |gradient|.
        """
        return float(self._gate().threshold)

    def active(self, p: Tensor) -> Tensor:
        """Which entries of the prunable tensor `p` received their gradient in the last step: bool, of p's shape.

        All False before the first step and after one that was refused. Raises ValueError when `p` is none of the
        optimizer's prunable tensors.
        """
        return self._gate().mask(p)

    def active_mask(self) -> Tensor:
        """`active` of all prunable tensors, flattened and joined in the order of the groups: bool [N], on the CPU.

        Of DTensors it has only this rank's parts.
        """
        return self._gate().active()

    @property
    def candidates(self) -> Tensor | None:
        """Which weights may become active, bool, as long and in the order of `active_mask`; None: all of them.

        For experiments that freeze the active set, or keep weights from coming back. Not part of `state_dict()`, and
        forgotten when a parameter group is added. At Q = N the gate is open to all.
        """
        return self._gate().candidates

    @candidates.setter
    def candidates(self, mask: Tensor | None) -> None:
        gate = self._gate()
        n = gate.size if isinstance(gate, ShardedGate) else gate.count
        if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (n,)):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"{mask!r}"
            raise ValueError(f"candidates must be None or a bool tensor of shape ({n},), got {got}")
        self._gate().candidates = mask

    def _gate(self) -> Gate | ShardedGate:
        """The gate over what competes now: the tensors of two or more dimensions in prunable groups, once each."""
        key = [(len(g["params"]), g["prunable"]) for g in self.param_groups]
        if key != self._gate_key:
            all_of_them = dict.fromkeys(p for g in self.param_groups for p in g["params"])
            competing = dict.fromkeys(p for g in self.param_groups if g["prunable"] for p in g["params"] if p.ndim >= 2)
            group_of = {p: i for i, g in enumerate(self.param_groups) for p in g["params"]}
            self._listed_twice = len(group_of) < sum(n for n, _ in key)
            self._others = [p for p in all_of_them if p not in competing]
            self._in_turn = [*competing, *self._others]
            self._groups_in_turn, self._asked = [group_of[p] for p in self._in_turn], []
            self._sharded = any(map(is_distributed, all_of_them))
            if self._sharded:
                self._gate_now = ShardedGate(list(competing), self._others, self._name, self._complaint)
            else:
                self._gate_now = Gate(list(competing))
            self._gate_key = key
        return self._gate_now

    def _complaint(self, p: Tensor, grad: Tensor) -> str | None:
        """What is wrong with the gradient of `p`, or this rank's part of it, if something is."""
        grad = grad.coalesce().values() if grad.is_sparse else grad
        # the sum is one pass without a temporary, but may overflow where all is finite: it only raises suspicion
        if math.isfinite(grad.sum().item()) or torch.isfinite(grad).all():
            return None
        return (
            f"the gradient of {self._name(p)} holds {first_non_finite(grad)}{' of this rank' * bool(self._sharded)}; "
            "no weight was changed. Lower the learning rate, or look for a division by zero in the loss"
        )

    def _name(self, p: Tensor) -> str:
        """What the parameter is called, from `names` (or torch's `param_names`), else by its place."""
        for g, group in enumerate(self.param_groups):
            for i, other in enumerate(group["params"]):
                if other is p:
                    names = group.get("names") or group.get("param_names") or ()
                    place = f"parameter {i} of group {g} (shape {tuple(p.shape)})"
                    return f"{names[i]!r}, {place}" if i < len(names) else place
        raise KeyError("not a parameter of this optimizer")

    # -- the budget lives in the parameter groups, so that state_dict() carries it -----------------------------------

    def _own(self) -> dict[str, Any]:
        group = self.param_groups[0]
        return {"compression": group["compression"], "nonzeros": group["nonzeros"]}

    def _change(self, **given: Any) -> None:
        budget(self.weights, **given)  # refuses what is out of range, before anything is changed
        for group in self.param_groups:
            group.update(given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; it competes unless it says `prunable=False`. Where `compression` was set, Q follows N."""
        param_group.setdefault("prunable", True)
        param_group.update({**self._own(), "smoothing": self.smoothing} if self.param_groups else self._first)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also takes the state of a plain SGD: what that does not say (budget, what competes) stays as it is."""
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for group, own in zip_longest(self.param_groups, before, fillvalue={}):
            for name in {"prunable", "compression", "nonzeros", "smoothing", "names"} & own.keys():
                group.setdefault(name, own[name])
        self._start_fresh()
        self._gate()  # now: Lightning's wrapper, whose methods are ours, would otherwise come first and make its own

    def _start_fresh(self) -> None:
        self._gate_key: list[tuple[int, bool]] | None = None
        self._watch = Watch()
        self._standstill = Standstill()
        self._asked: list[tuple[Any, ...]] = []
        # fused SGD asks GradScaler for the scaled gradients; the gate must see, and check, the true ones
        self._step_supports_amp_scaling = False
