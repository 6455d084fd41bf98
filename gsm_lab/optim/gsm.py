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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gsm_lab.optim.fused import loader
from gsm_lab.optim.gate import Gate
from gsm_lab.optim.gated import Gated
from gsm_lab.optim.ranks.gate import ShardedGate
from gsm_lab.optim.settings import ASKED, OWN, SETTINGS, are_plain, checked, is_plain, refuse_settings
from gsm_lab.optim.sgd import raise_versions, sgd_step, without_hooks


class GSM(Gated, torch.optim.SGD):
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
            `fused=True`, that step is left out and a later one raises: see `accelerator`.)
        RuntimeError: from `step()` while a CUDA graph is being captured, which is not supported.

    Ties at the threshold go to the weight that comes first. T is formed in float32 whatever the parameters' type.
    `p.grad` is never written to. A parameter whose `grad` is None takes no part in a step but counts towards N.

    Weights, gradients and momenta may lie in memory in any way: the order is that of their indices, row by row. (With
    `fused=True` torch's own SGD moves wrong entries on a CPU where they lie differently: see `sgd`. Here, not.)
    Where tensors in the groups are exchanged for others, the gate goes on as that of an optimizer made of these; those
    of a lazy module compete from its first batch on. Of a sparse gradient, entries that are not there have T = 0.

    Parameters may be DTensors (FSDP2, tensor parallelism): N, Q and the threshold are then those of the whole model,
    the active set is the one that a single process would choose, and every rank has to call `step` (see `ranks.gate`).
    """

    _fused: tuple[Gate, Any] | None = None  # the `fused.step.FusedStep` over the tensors of a gate, if there is one

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

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure` as in `torch.optim.SGD` (it is called once, before the gate looks at the gradients)."""
        if torch.compiler.is_compiling():
            return self._step_outside(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gate = self._prepared()
        if self._try_step is None or not self._try_step(self, gate, self._budget):
            gated = gate.close(self._budget, self._own_now, self.state, self._writes, self.defaults["differentiable"])
            with gate.lent(self, gated):
                sgd_step(self)
            if self._budget < gate.count:
                raise_versions(self)
        self._standstill.after(gate, self._budget)
        return loss

    @torch._disable_dynamo
    def _step_outside(self, closure: Callable[[], float] | None) -> float | None:
        """The step where `torch.compile` has come upon it: between compiled graphs, since the gate is no graph."""
        return without_hooks(GSM)(self, closure)

    def _prepared(self) -> Gate | ShardedGate:
        """The gate of this step. What the step is to do is decided here, when that changes. Raises ValueError."""
        gate, groups = self._gate(), self.param_groups
        place = gate.weights[0].device if gate.weights else None
        asked = [tuple(map(g.get, ASKED)) for g in groups]
        try:
            same = asked == self._asked and place == self._place  # to compare them costs less than to check them
        except (RuntimeError, ValueError):  # a tensor or an array of several values has no truth
            same = False
        if same and self._plain:
            return gate
        steps = [its[: len(SETTINGS)] for its in asked]
        self._plain = all(map(are_plain, steps))
        if not self._plain:  # what is in a tensor may be another number at each step
            for i, group in enumerate(groups):
                refuse_settings(group, f" of group {i}")
        # a schedule moves the learning rate at every step; what the gate is asked for stays
        if not self._asked or [its[-len(OWN) :] for its in asked] != [its[-len(OWN) :] for its in self._asked]:
            self._budget = self._budget_of(self._own())
            asked = [tuple(map(g.get, ASKED)) for g in groups]
        # with Nesterov, SGD's foreach kernels (the default on accelerators) write into gradients
        self._writes = any(
            g["nesterov"] and not (g["fused"] or g["differentiable"]) and g["foreach"] is not False for g in groups
        )
        self._try_step = self._whole_step(gate, steps)
        self._asked, self._place = asked, place
        return gate

    def _whole_step(self, gate: Gate | ShardedGate, steps: list[tuple[Any, ...]]) -> Callable[..., bool] | None:
        """What may do the whole step in one, where there is something for it; else the gate lends its gradients to SGD.

        Args:
            gate: that of the step.
            steps: for each group its `SETTINGS`.
        """
        groups, closed = self.param_groups, self._budget < gate.count and not self._own_now["smoothing"]
        if isinstance(gate, ShardedGate) or not gate.weights or not all(g["fused"] for g in groups):
            return None
        if not gate.weights[0].is_cpu:
            return partial(self._watch.try_step, closed=closed)
        if not closed or self._lazy or not all(map(is_plain, groups)):
            return None
        if self._fused is None or self._fused[0] is not gate:
            module = loader.compiled(loader.STEP)
            group_of = {p: i for i, g in enumerate(groups) for p in g["params"]}
            once = len(group_of) == sum(len(g["params"]) for g in groups)  # SGD moves what is listed twice two times
            self._fused = gate, module.FusedStep(gate, group_of) if module and once else None
        if (fused := self._fused[1]) is None:
            return None
        fused.settings = [steps[i] for i in fused.groups]
        return fused.try_step
