"""The step on an accelerator: nothing in it waits for the device.

The exact threshold is found there (`selection.top_q_on_device`). It is a tensor, and comes to the host when somebody
asks for it. A gradient that is not finite cannot raise at once, then: the step is left out on the device, as after an
overflow under a `GradScaler`, and the error is raised at one of the next steps, as soon as its flag has arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsm_lab.optim.gate import Gate
from gsm_lab.optim.sgd import sgd_step


def on_accelerator(tensors: list[Tensor]) -> bool:
    """Whether all tensors are on one device that is no CPU."""
    return len({p.device for p in tensors}) == 1 and tensors[0].device.type != "cpu"


class Watch:
    """Flags, a tensor on a device for each parameter, that say whose gradient was not finite: looked at when there."""

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    @torch.no_grad()
    def try_step(self, optimizer: torch.optim.SGD, gate: Gate, q: int, closed: bool) -> bool:
        """Do a step of fused SGD with the gradients that pass; False where it has to wait for the device after all.

        Args:
            optimizer: whose step it is.
            gate: its gate; `closed`: whether one that is neither open to all nor smoothed.
            q: how many gradients pass.

        Raises:
            FloatingPointError: a gradient of an earlier step, which was left out, was not finite.
            RuntimeError: a CUDA graph is being captured.
        """
        tensors = [*gate.weights, *gate.others]
        if not on_accelerator(tensors):
            return False
        if (first := self.first()) is not None:
            gate.passed(0.0, False)
            raise FloatingPointError(
                f"the gradient of {gate.name(tensors[first])} was not finite in an earlier step, which was left "
                "out. Lower the learning rate, or look for a division by zero in the loss"
            )
        if not closed or not all("momentum_buffer" in optimizer.state.get(p, ()) for p in gate.weights):
            return False  # in the first step, SGD would leave a momentum behind even if it leaves the step out
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "GSM.step cannot be captured in a CUDA graph: compression and learning rate would be frozen in it. "
                "Capture forward and backward, and call step outside"
            )
        gate.choose_on_device(q)
        optimizer.found_inf = self.bad([p.grad for p in tensors])
        try:
            with gate.lent(optimizer, gate.passing()):
                sgd_step(optimizer)
        finally:
            del optimizer.found_inf
        return True

    def bad(self, grads: list[Tensor | None]) -> Tensor:
        """Look at gradients, without waiting: float32 [], 1 where one of them is not finite. Remembers whose."""
        device = next(g.device for g in grads if g is not None)
        fine = torch.ones((), dtype=torch.bool, device=device)
        flags = torch.stack([fine if g is None else torch.isfinite(g).all() for g in grads]).logical_not_()
        if device.type == "cuda":
            self._flags = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True).copy_(flags, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._flags = flags
        return flags.any().float()

    def first(self) -> int | None:
        """Which gradient of the last look was not finite, the first of them, if that is known by now."""
        if self._flags is None or not (self._event is None or self._event.query()):
            return None
        flags, self._flags, self._event = self._flags, None, None
        return int(flags.to(torch.uint8).argmax()) if bool(flags.any()) else None
