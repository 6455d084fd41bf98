"""Global Sparse Momentum SGD (Ding et al., NeurIPS 2019): `torch.optim.SGD` whose gradient passes a gate.

    T(w) = |dL/dw * w|                       first-order Taylor estimate of the loss change if w were removed (eq. 5)
    B    = 1 for the Q greatest T of the whole model, else 0
    Z   <- momentum * Z + weight_decay * W + B o dL/dW                                                        (eq. 6)
    W   <- W - lr * Z

Active weights (B = 1) see the loss, passive ones only decay; with momentum they decay fast enough to be cut at the end
without a loss of accuracy. Everything but B is PyTorch's own SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gsm_lab.optim.accelerator import on_accelerator, refuse_capture
from gsm_lab.optim.gated import OWN, Competing
from gsm_lab.optim.ranks.gate import on_shards
from gsm_lab.optim.settings import (
    ASKED,
    SETTINGS,
    are_plain,
    checked,
    is_plain,
    lent,
    refuse_settings,
    sgd_step,
    without_hooks,
)

_NOTHING: dict[str, Any] = {}


class GSM(Competing):
    """SGD in which only the Q prunable weights of greatest |gradient * weight| receive their gradient.

    Args:
        params: what any optimizer takes; `param_groups(model)` is the usual choice. In a plain list every tensor of two
            or more dimensions competes; a group with `prunable=False` gets plain SGD.
        lr, momentum, weight_decay, and all else: as in `torch.optim.SGD`. (To `differentiable`, the gate is a
            constant.)
        compression: C = N / Q, at least 1; at 1 this is SGD, bit for bit. Can be changed at any step, here or in any
            of the groups.
        nonzeros: Q itself; give one of the two (without either, compression is 1).
        smoothing: 0, as in the paper; or s below 1, an option of this project: the gate then ranks |w| * m instead of
            T, with m <- s m + (1 - s) |gradient|. Batches then agree on who stays, so that the cut takes nothing away;
            but hardly any weight comes back any more, and a step takes longer. Can be changed at any step.

    Attributes:
        nonzeros: Q in force.
        threshold: the smallest T that was active in the last step (float32; 0.0 before the first, and at Q = N; of a
            smoothed gate the smallest |w| * m).

    Raises:
        ValueError: an argument out of range or not finite, also from `step()` where one was put into a parameter group;
            complex tensors compete and C > 1. No weight has changed.
        FloatingPointError: from `step()`, when a gradient holds NaN or inf; it names the parameter, and no weight has
            changed. (Under a `GradScaler` an overflow skips the step before it comes to that. On an accelerator, with
            `fused=True`, that step is left out and a later one raises: see `device`.)
        RuntimeError: from `step()` while a CUDA graph is being captured, which is not supported.

    Ties at the threshold go to the weight that comes first. T is formed in float32 whatever the parameters' type.
    `p.grad` is never written to. A parameter whose `grad` is None takes no part in a step but counts towards N.

    Weights, gradients and momenta may lie in memory in any way: the order is that of their indices, row by row. (With
    `fused=True` torch's own SGD moves wrong entries on a CPU where they lie differently: see `strides`. Here, not.)
    Where tensors in the groups are exchanged for others, the gate goes on as that of an optimizer made of these; those
    of a lazy module compete from its first batch on. Of a sparse gradient, entries that are not there have T = 0.

    Parameters may be DTensors (FSDP2, tensor parallelism): N, Q and the threshold are then those of the whole model,
    the active set is the one that a single process would choose, and every rank has to call `step` (see `sharded`).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        compression: float | None = None,
        nonzeros: int | None = None,
        smoothing: float = 0.0,
        **sgd: Any,
    ) -> None:
        refuse_settings({"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay})
        neither = compression is None and nonzeros is None
        given = {} if neither else {"compression": compression, "nonzeros": nonzeros}
        self._own_now = {"compression": 1.0, "nonzeros": None, "smoothing": checked(smoothing), **given}
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, **sgd)
        self._start_fresh()
        self._budget_of(self._own_now)
        own = self._own()
        for name, value in {**given, "smoothing": smoothing or own["smoothing"]}.items():
            if own[name] != value:
                raise ValueError(f"{name} is one for the whole model, got {value!r} and in a group {own[name]!r}")

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure` as in `torch.optim.SGD` (it is called once, before the gate looks at the gradients)."""
        if torch.compiler.is_compiling():
            return self._step_outside(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._look()
        if self._step_in_passes():
            self._standstill.after(self)
            return loss
        if self._step_on_device():
            return loss
        gated = self._close_gate()
        if self._sharded:
            with on_shards(self, gated):
                sgd_step(self)
            return loss
        with lent(gated):
            sgd_step(self)
        self._standstill.after(self)
        return loss

    @torch._disable_dynamo
    def _step_outside(self, closure: Callable[[], float] | None) -> float | None:
        """The step where `torch.compile` has come upon it: between compiled graphs, since the gate is no graph."""
        return without_hooks(GSM)(self, closure)

    def _look(self) -> None:
        """Find out what this step is to do, where that has changed since the last one. Raises ValueError."""
        gate, groups = self._gate(), self.param_groups
        asked = [tuple(map(g.get, ASKED)) for g in groups]
        try:
            same = asked == self._asked  # to look at them costs more than to compare them
        except (RuntimeError, ValueError):  # a tensor or an array of several values has no truth
            same = False
        if same:
            if self._rates:
                self._refuse_settings()
            return
        steps = [its[: len(SETTINGS)] for its in asked]
        rates = []
        if not all(map(are_plain, steps)):
            self._refuse_settings()
            rates = [x for its in steps for x in its if isinstance(x, Tensor) and x.is_cpu]
        # a schedule moves the learning rate at every step; what the gate is asked for stays
        if not self._asked or [its[-len(OWN) :] for its in asked] != [its[-len(OWN) :] for its in self._asked]:
            self._budget = self._budget_of(self._own())
            gate, asked = self._gate_now, [tuple(map(g.get, ASKED)) for g in groups]
        # (SGD moves a tensor that is listed twice two times)
        self._plain = (
            all(map(is_plain, groups))
            and self._budget < gate.count
            and not (self._listed_twice or self._lazy or self._sharded or self._own_now["smoothing"])
            and gate.weights[0].is_cpu
        )
        self._settings = [steps[i] for i in self._groups_in_turn]
        self._asked, self._rates = asked, rates

    def _refuse_settings(self) -> None:
        for i, group in enumerate(self.param_groups):
            refuse_settings(group, f" of group {i}")

    def _step_in_passes(self) -> bool:
        """Do all of the step in two passes, where these do what fused SGD would do with the gated gradients."""
        if not self._plain:
            return False
        settings, get = self._settings, self.state.get
        momenta = [get(p, _NOTHING).get("momentum_buffer") for p in self._in_turn]
        if new := [i for i, z in enumerate(momenta) if z is None]:
            settings = settings.copy()
            with torch.inference_mode(False):  # else no step outside of that mode could change it
                for i in new:  # momentum begins with the gradient as it is
                    momenta[i] = torch.zeros_like(self._in_turn[i])
                    settings[i] = (*settings[i][:2], 0.0, settings[i][3])
        if not self._gate_now.step(self._budget, self._others, momenta, settings):
            return False
        for i in new:
            self.state[self._in_turn[i]]["momentum_buffer"] = momenta[i]
        return True

    @torch.no_grad()
    def _step_on_device(self) -> bool:
        """Do the step on an accelerator without waiting for it, where SGD is fused (see `device`)."""
        gate = self._gate()
        if self._sharded or not on_accelerator(self._in_turn) or not all(g["fused"] for g in self.param_groups):
            return False
        if (first := self._watch.first()) is not None:
            gate.shut()
            raise FloatingPointError(
                f"the gradient of {self._name(self._in_turn[first])} was not finite in an earlier step, which was left "
                "out. Lower the learning rate, or look for a division by zero in the loss"
            )
        if (
            self._budget >= gate.count
            or self._own_now["smoothing"]
            or not all("momentum_buffer" in self.state.get(p, ()) for p in gate.weights)
        ):
            return False  # in the first step, SGD would leave a momentum behind even if it leaves the step out
        refuse_capture()
        gated = gate.close_on_device(self._budget)
        self.found_inf = self._watch.bad([p.grad for p in self._in_turn])
        try:
            with lent(gated):
                sgd_step(self)
        finally:
            del self.found_inf
        return True

    @torch.no_grad()
    def _close_gate(self) -> list[tuple[Tensor, Tensor]]:
        """The gated gradients to use in place of the tensors' own."""
        if (gate := self._gate_now) is not self._gate_of_these_sizes():
            gate = self._gate_now
            self._look()
        q, writes = self._budget, self._writes_gradients()
        if self._sharded and self._own_now["smoothing"]:
            raise ValueError(
                f"smoothing must be 0 where weights are spread over ranks, got {self._own_now['smoothing']}"
            )
        if self._sharded:  # ranks raise together, so the gate looks at the other gradients too, and hands them back
            own = {name: self._own_now[name] for name in ("compression", "nonzeros")}
            return gate.close(q, writes, " and ".join(f"{k}={v}" for k, v in own.items() if v is not None))
        for p in self._others:
            self._refuse_non_finite(p)
        if q < gate.count:
            through = self.defaults["differentiable"]  # whoever differentiates through the step takes the mask as given
            gated, finite = gate.close(q, may_be_written=writes or through, averages=self._averages())
            if through:
                with torch.enable_grad():
                    gated = gate.passing()
        else:
            self._averages()  # they go on where all pass
            gated, finite = [(p, p.grad.clone()) for p in gate.weights if writes and p.grad is not None], False
            gate.open()
        if not finite:  # where the gradients are finite, T overflowed float32: it ranks first, as it should
            for p in gate.weights:
                self._refuse_non_finite(p)
        return gated + [(p, p.grad.clone()) for p in self._others if p.grad is not None] if writes else gated

    def _has_no_momentum_yet(self) -> bool:
        """Whether this is a first step: SGD would leave half a momentum behind even where it leaves the step out."""
        return any(g["momentum"] for g in self.param_groups) and any(
            p.grad is not None and self.state.get(p, _NOTHING).get("momentum_buffer") is None for p in self._in_turn
        )

    def _averages(self) -> list[Tensor] | None:
        """The smoothed |gradients| of the competing tensors, brought up to date; None without smoothing."""
        if not (s := self._own_now["smoothing"]):
            return None
        weights = self._gate().weights
        for p in weights:  # a gradient that is refused must not be in an average
            self._refuse_non_finite(p)
        averages = []
        for p in weights:
            if "gradient_average" not in self.state[p]:
                self.state[p]["gradient_average"] = torch.zeros_like(p)
            averages.append(self.state[p]["gradient_average"].mul_(s))
            if p.grad is not None:
                averages[-1].add_(self._gate().magnitude(p), alpha=1 - s)
        return averages

    def _writes_gradients(self) -> bool:
        """Whether SGD's foreach kernels (the default on accelerators) run with Nesterov: they write into gradients."""
        return any(
            g["nesterov"]
            and not g["fused"]
            and (g["foreach"] or (g["foreach"] is None and any(p.device.type != "cpu" for p in g["params"])))
            for g in self.param_groups
        )

    def _refuse_non_finite(self, p: Tensor) -> None:
        if p.grad is not None and (said := self._complaint(p, p.grad)):
            self._gate().shut()
            raise FloatingPointError(said)
