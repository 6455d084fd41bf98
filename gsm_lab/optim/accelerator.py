"""The gate on an accelerator: nothing in a step waits for the device.

The exact threshold is found there digit by digit, like every decision: how many values have which leading digit, which
digit the Q-th greatest has, and again among those that share it. It is a tensor, and comes to the host when somebody
asks for it. A gradient that is not finite cannot raise at once, then: the step is left out on the device, as after an
overflow under a `GradScaler`, and the error is raised at one of the next steps, as soon as its flag has arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIGITS = ((20, 11), (10, 10), (0, 10))  # (shift, width) of the bits of a float32 >= 0, leading one first
_INFINITY = 0x7F800000


def top_q(metric: Tensor, q: int) -> tuple[Tensor, Tensor]:
    """The exact top `q` of a flat metric, without a look at its values from the host.

    Args:
        metric: float32 [N], each entry >= 0, inf, or NaN (which ranks first).
        q: how many to choose, 0 < q <= N.

    Returns:
        The threshold, float32 [] (the smallest chosen value; 0 where none is positive), and who is chosen, bool [N]:
        exactly q unless fewer are positive; of equal values at the threshold those of lower position.
    """
    bits = metric.view(torch.int32)
    left = (bits > 0).sum().clamp(max=q)
    none, prefix, before = left == 0, bits.new_zeros(()), 31
    one = torch.ones((), dtype=torch.int64, device=bits.device)
    for shift, width in _DIGITS:
        digit = (bits >> shift) & ((1 << width) - 1)
        bins = torch.where((bits >> before) == prefix, digit, 1 << width)  # what has another prefix goes to the end
        counts = torch.zeros((1 << width) + 1, dtype=torch.int64, device=bits.device)
        counts.scatter_add_(0, bins.long(), one.expand(bins.numel()))
        at_least = counts[:-1].flip(0).cumsum(0).flip(0)  # how many have this digit or a greater one
        found = (at_least >= left).sum() - 1
        greater = torch.cat((at_least[1:], counts.new_zeros(1))).gather(0, found.view(1)).squeeze(0)
        left, prefix, before = left - greater, (prefix << width) | found.int(), shift
    equal = (bits == prefix) & ~none
    chosen = ((bits > prefix) & ~none) | (equal & (equal.cumsum(0) <= left))
    return torch.where(none, 0, prefix).int().view(torch.float32), chosen


def on_accelerator(tensors: list[Tensor]) -> bool:
    """Whether all tensors are on one device that is no CPU."""
    devices = {p.device for p in tensors}
    return len(devices) == 1 and next(iter(devices)).type != "cpu"


def refuse_capture() -> None:
    """Raise RuntimeError while a CUDA graph is being captured: Q and the knobs would stay what they are now in it."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "GSM.step cannot be captured in a CUDA graph: compression and learning rate would be frozen in it. Capture "
            "forward and backward, and call step outside"
        )


class Watch:
    """Flags, a tensor on a device for each parameter, that say whose gradient was not finite: looked at when there."""

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._event: torch.cuda.Event | None = None

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
