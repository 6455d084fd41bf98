"""An optimizer whose gradients pass a gate: what competes in it, for how many places, and who had one."""

from __future__ import annotations

import sys
from itertools import zip_longest
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gsm_lab.optim.accelerator import Watch
from gsm_lab.optim.gate import Gate
from gsm_lab.optim.ranks.gate import ShardedGate
from gsm_lab.optim.ranks.group import is_distributed
from gsm_lab.optim.selection import budget
from gsm_lab.optim.settings import OWN, as_pythons, checked, refuse_settings
from gsm_lab.optim.sgd import uncompiled
from gsm_lab.optim.standstill import Standstill


class Gated(torch.optim.Optimizer):
    """The part of `GSM` that is no step.

    The budget lives in the parameter groups, so that `state_dict()` carries it. Whoever derives from it sets
    `_own_now`, what groups begin with that do not say it themselves, before the optimizer's constructor adds them, and
    calls `_start_fresh` after it. Setters raise ValueError, before anything changes, for what is out of range.
    """

    _own_now: dict[str, Any]
    zero_grad = uncompiled(torch.optim.Optimizer.zero_grad)
    state_dict = uncompiled(torch.optim.Optimizer.state_dict)
    load_state_dict = uncompiled(torch.optim.Optimizer.load_state_dict)
    _ready = False  # before its constructor has come to an end

    @property
    def weights(self) -> int:
        """N, the number of prunable weights; those of a lazy module count from its first batch on."""
        return self._gate().count

    @property
    def nonzeros(self) -> int:
        """Q, how many weights receive their gradient in a step."""
        return self._budget_of(self._own())

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
        return self._own()["smoothing"]

    @smoothing.setter
    def smoothing(self, s: float) -> None:
        self._change(smoothing=s)

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
        return self._gate().active().cpu()

    @property
    def candidates(self) -> Tensor | None:
        """Which weights may become active, bool, as long and in the order of `active_mask`; None: all of them.

        For experiments that freeze the active set, or keep weights from coming back. Not part of `state_dict()` (a copy
        of the optimizer has it), and forgotten when other tensors compete: a parameter group is added, parameters are
        exchanged. At Q = N the gate is open to all.
        """
        return self._gate().candidates

    @candidates.setter
    def candidates(self, mask: Tensor | None) -> None:
        n = self._gate().size
        if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (n,)):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"{mask!r}"
            raise ValueError(f"candidates must be None or a bool tensor of shape ({n},), got {got}")
        self._gate().candidates = mask

    def _gate(self) -> Gate | ShardedGate:
        """The gate over what competes now: the tensors of two or more dimensions in prunable groups, once each.

        It is made anew where the tensors in the groups are others than they were (a parameter group was added, somebody
        exchanged parameters, or gave one data of another size), and where one of a lazy module has got its values.
        """
        key = [[*map(id, g["params"]), g["prunable"]] for g in self.param_groups]
        if (
            key == self._gate_key
            and [p.numel() for p in self._gate_now.weights] == self._gate_now.sizes
            and all(map(is_lazy, self._lazy))
        ):
            return self._gate_now
        all_of_them = dict.fromkeys(p for g in self.param_groups for p in g["params"])
        competing = dict.fromkeys(p for g in self.param_groups if g["prunable"] for p in g["params"] if p.ndim >= 2)
        self._lazy = [p for p in all_of_them if is_lazy(p)]  # nobody knows yet how many dimensions they will have
        kind = ShardedGate if any(map(is_distributed, all_of_them)) else Gate
        name = WeakMethod(self._name)  # held by what this holds, a bound method would keep both for ever
        others = [p for p in all_of_them if p not in competing]
        self._gate_now, self._gate_key = kind([*competing], others, lambda p: name()(p)), key
        self._asked: list[tuple[Any, ...]] = []  # so that the next step finds out anew what it is to do
        return self._gate_now

    def _name(self, p: Tensor) -> str:
        """What the parameter is called, from `names` (or torch's `param_names`), else by its place."""
        for g, group in enumerate(self.param_groups):
            for i, other in enumerate(group["params"]):
                if other is p:
                    names = group.get("names") or group.get("param_names") or ()
                    place = f"parameter {i} of group {g} (shape {tuple(p.shape)})"
                    return f"{names[i]!r}, {place}" if i < len(names) else place
        raise KeyError("not a parameter of this optimizer")

    def _own(self) -> dict[str, Any]:
        """What the gate is asked to do now.

        Where somebody has set it in one of the groups (which is all that a wrapper such as Accelerate's hands on), that
        counts, and goes to all of them. Raises ValueError where groups say different things, or it is out of range.
        """
        now, new = self._own_now, {}
        for group in self.param_groups:
            for name in OWN:
                if group[name] is now[name] or group[name] == now[name]:
                    continue
                if name in new and new[name] is not group[name] and new[name] != group[name]:
                    raise ValueError(
                        f"{name} is one for the whole model, got {new[name]!r} and {group[name]!r} in groups"
                    )
                new[name] = group[name]
        if new:
            self._change(**new)
        return self._own_now

    def _change(self, **given: Any) -> None:
        """Have all groups ask for it; raises ValueError before anything changes."""
        for name, other in (("compression", "nonzeros"), ("nonzeros", "compression")):
            if given.get(name) is not None:
                given.setdefault(other, None)
        own = {name: as_pythons(value) for name, value in {**self._own_now, **given}.items()}
        self._budget_of(own)
        own["smoothing"] = checked(own["smoothing"])
        if not (own["smoothing"] and self._own_now["smoothing"]):
            for state in self.state.values():  # averages of long ago would have their say when it is smoothed again
                state.pop("gradient_average", None)
        self._own_now = own
        for group in self.param_groups:
            group.update(own)

    def _budget_of(self, own: dict[str, Any]) -> int:
        """Q; raises ValueError for a budget that is out of range, or where the gate cannot rank what competes."""
        asked, gate = {name: own[name] for name in ("compression", "nonzeros")}, self._gate()
        if self._lazy and asked["nonzeros"] is not None:  # N is not known yet
            return min(gate.count, budget(sys.maxsize, **asked))
        q = budget(gate.count, **asked)
        if q < gate.count and (p := next((p for p in gate.weights if p.is_complex()), None)) is not None:
            raise ValueError(
                f"compression must be 1 where complex tensors compete, got {own}: {self._name(p)} is {p.dtype}. Put it "
                "into a group with prunable=False"
            )
        return q

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; it competes unless it says `prunable=False`. Where `compression` was set, Q follows N.

        Raises ValueError, and adds nothing, where a setting of it is not a finite number. A budget or smoothing that
        it says is from then on that of the whole model.
        """
        if isinstance(param_group, dict):  # else torch says so
            refuse_settings(param_group)
            for name, value in {"prunable": True, **self._own_now}.items():
                param_group.setdefault(name, value)
        before = vars(self).copy()  # the gate that there is, with the last active set
        uncompiled(torch.optim.Optimizer.add_param_group)(self, param_group)
        if self._ready:
            try:
                self._own()
                self._budget_of(self._own_now)
            except ValueError:
                self.param_groups.pop()
                vars(self).update(before)
                raise

    def __getstate__(self) -> dict[str, Any]:
        """What a copy (`copy.deepcopy`, pickle) begins with; unlike `state_dict()` it has the gate with it."""
        state = super().__getstate__()
        gate = self._gate()
        state["gate"] = {"candidates": gate.candidates, "threshold": self.threshold, "active": gate.active().cpu()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also takes the state of a plain SGD: what that does not say (budget, what competes) stays as it is."""
        state, before = {**state}, self.__dict__.get("param_groups", [])
        gate = state.pop("gate", None)
        super().__setstate__(state)
        for group, own in zip_longest(self.param_groups, before, fillvalue={}):
            stays = {name: own[name] for name in ("prunable", "names", *OWN) if name in own}
            for name, value in {"prunable": True, **OWN, **stays}.items():
                group.setdefault(name, value)
        self._own_now = {name: self.param_groups[0][name] for name in OWN}
        for group in self.param_groups:
            group.update(self._own_now)
        self._start_fresh()
        self._gate()  # now: Lightning's wrapper, whose methods are ours, would otherwise come first and make its own
        if gate is not None:
            self._gate_now.candidates = gate["candidates"]
            self._gate_now.passed(gate["threshold"], gate["active"])

    def _start_fresh(self) -> None:
        self._gate_key: list[list[Any]] | None = None
        self._lazy: list[Tensor] = []
        self._watch, self._standstill = Watch(), Standstill()
        # fused SGD asks GradScaler for the scaled gradients; the gate must see, and check, the true ones
        self._step_supports_amp_scaling = False
        self._ready = True
