"""GSM's step as two compiled passes over g and w, for float32 tensors on a CPU (numba, the extra `gsm-lab[fast]`).

The first pass reads g and w, forms |g * w| block by block without storing it, and keeps the few values above a bound
that a strided sample gives; the threshold is selected among those. The second pass forms |g * w| again, gates, and
does what PyTorch's fused SGD does, to the bit. As in `selection`, a bound that was too high costs a second look and
never the exactness.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim import kernels
from gsm_lab.optim.selection import sampling

_INF = 0x7F800000  # the bits of float32's infinity; those of NaN are above


class Passes:
    """The two passes over a fixed list of tensors.

    Args:
        sizes: of the tensors that compete.
        others: sizes of those that follow them and only take part in the step, with all of their gradients.

    Attributes:
        settings: float32 [4, tensors]: learning rate, weight decay, momentum, 1 - dampening; to be filled in.
    """

    def __init__(self, sizes: Sequence[int], others: Sequence[int] = ()) -> None:
        tensors, n = len(sizes) + len(others), len(sizes)
        self._sizes = np.array([*sizes, *others], dtype=np.int64)
        self._weights, self._grads, self._momenta = np.empty((3, tensors), dtype=np.uintp)
        self._competing = self._weights[:n], self._grads[:n], self._sizes[:n]
        self._thresholds = np.full(tensors, -1, dtype=np.float32)
        self.settings = np.empty((4, tensors), dtype=np.float32)
        self._count = int(self._sizes[:n].sum())
        self._found = np.empty(0, np.int32)

    def threshold(self, weights: Sequence[Tensor], grads: Sequence[Tensor], q: int) -> np.float32 | None:
        """The smallest |g * w| among the `q` greatest (fewer where fewer are positive), 0 < q < N.

        `weights` and `grads` are all tensors, float32 on the CPU, contiguous. None where the threshold would not say
        which pass: ties are left out, some are not finite, or none is positive.
        """
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            self._weights[i], self._grads[i] = w.data_ptr(), g.data_ptr()
        room = min(self._count, 4 * q + 8 * kernels.BLOCK) + 8
        if self._found.size < room:
            self._found = np.empty(room, np.int32)
        stride, above = sampling(self._count, q)
        n, bits, ties, greatest = self._find(stride, above, q)
        if n < q and (above or n < 0):  # the sample misled us, or there were too many to keep: all that are positive
            self._found = np.empty(self._count + 8, np.int32)
            n, bits, ties, greatest = self._find(stride, 0, q)
        return None if n == 0 or ties or greatest >= _INF else np.int32(bits).view(np.float32)

    def _find(self, stride: int, above: int, q: int) -> tuple[int, int, int, int]:
        return kernels.find(*self._competing, stride, above, q, self._found)

    def gate(self, threshold: np.float32, out: np.ndarray) -> None:
        """Write the gradients that pass, and zeros, to `out`, float32 [N], one tensor after the other."""
        kernels.pass_through(*self._competing, threshold, out)

    def step(self, momenta: Sequence[Tensor], threshold: np.float32, active: np.ndarray, rounding: np.ndarray) -> None:
        """Do PyTorch's fused SGD step with the gradients that pass; `active`, bool, one for each entry, says which."""
        for i, z in enumerate(momenta):
            self._momenta[i] = z.data_ptr()
        self._thresholds[: self._competing[0].size] = threshold
        kernels.update(
            *(self._weights, self._grads, self._sizes, self._momenta),
            *(self._thresholds, self.settings, rounding, active),
        )


@cache
def rounding() -> np.ndarray | None:
    """How PyTorch's fused SGD rounds on this processor: codes for `kernels.update`, found by trying; None if none fits.

    Whether a product and a sum are rounded once or twice depends on the instructions that PyTorch was built for and
    found; the last few entries of a tensor, which fill no vector, may be treated differently from the others.
    """
    sizes = [1 << 14, *[15] * 200]  # many vectors, and many rests
    parts = torch.randn(3, sum(sizes), generator=torch.Generator().manual_seed(0)).unbind()
    w, g, z = (part.clone().split(sizes) for part in parts)
    torch._fused_sgd_(
        w, g, z,
        lr=0.03, weight_decay=0.3, momentum=0.9, dampening=0.3, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip

    def fits(tensors: int, *codes: int) -> bool:
        trial, (w2, g2, z2) = Passes(sizes[:tensors]), (part.clone().split(sizes)[:tensors] for part in parts)
        trial.threshold(w2, g2, 1)
        trial.settings[:] = [[0.03], [0.3], [0.9], [1 - 0.3]]
        trial.step(z2, np.float32(0), np.empty(sum(sizes[:tensors]), bool), np.array(codes))
        return all(map(torch.equal, (*w2, *z2), (*w[:tensors], *z[:tensors])))

    body = next((code for code in kernels.ROUNDINGS if fits(1, code, code, 1)), None)
    tails = [(body, tail, width) for width in (16, 8, 4) for tail in kernels.ROUNDINGS if body is not None]
    return next((np.array(codes) for codes in tails if fits(len(sizes), *codes)), None)
