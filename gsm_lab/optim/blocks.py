"""GSM's two passes with PyTorch and numpy, for millions of weights: block by block, so that each stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.passes import Edge, Passes, Settings, sampling
from gsm_lab.optim.selection import top_q

BLOCK = 1 << 16  # entries: some arrays of a quarter of a megabyte are in use at a time
_GREATEST, _INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# (grad, x, limit): grad where |x| > limit or NaN, else 0
_pass_beyond = torch.ops.aten.hardshrink_backward.grad_input


class Blocks(Passes):
    """See `Passes`. It needs no compiler, and a multiple of the time."""

    def take(self, grads: list[Tensor | None]) -> bool:
        if self.places(self.tensors, "weights") is None or self.places(grads) is None:
            return False
        self._flat = [(p.detach().view(-1), g.detach().view(-1)) for p, g in zip(self.tensors, grads, strict=True)]
        return True

    def edge(self, q: int) -> Edge | None:
        stride, pairs = sampling(self.count, q)
        sample = np.sort(self._sample(stride).view(np.int32)) if stride else np.empty(0, np.int32)
        for most, least in pairs.tolist():
            low = max(1, sample[-least]) if 0 < least <= sample.size else np.int32(1)
            high = sample[-most] if 0 < most <= sample.size else _GREATEST
            found, above = self._between(np.int32(low), np.int32(max(high, low)))
            left = q - above
            if found is None or not 0 < left <= found.size:
                continue
            top = top_q(found.view(np.float32), left)
            edge = np.float32(top.threshold)
            return Edge(edge, self._after_equal(edge, top.ties_left_out) if top.ties_left_out else self.count)
        return None

    def _after_equal(self, threshold: np.float32, left_out: int) -> int:
        """The flat position after the last of those values equal to the threshold that are not left out."""
        places = [
            start + torch.nonzero((w * g).abs_() == float(threshold)).view(-1) for _, w, g, _, start in self._blocks()
        ]
        return int(torch.cat(places)[-left_out - 1]) + 1

    def gate(self, edge: Edge, out: np.ndarray) -> None:
        passed = torch.from_numpy(out)
        for _, w, g, _, start in self._blocks():
            self._pass(w, g, edge, start, passed[start : start + w.numel()])

    def step(self, q: int, momenta: list[Tensor], settings: list[Settings], active: np.ndarray) -> np.float32 | None:
        others = [g for _, g in self._flat[self.competing :]]
        if self.places(momenta, "momenta") is None or not all(bool(torch.isfinite(g).all()) for g in others):
            return None
        edge = self.edge(q)
        if edge is None:
            return None
        gated, flags = torch.empty(BLOCK), torch.from_numpy(active)
        for i, w, g, at, start in self._blocks():
            n = w.numel()
            self._pass(w, g, edge, start, gated[:n])
            torch.ne(gated[:n], 0, out=flags[start : start + n])  # an |g * w| that passed is positive
            _sgd(w, gated[:n], momenta[i].view(-1)[at : at + n], settings[i])
        for i in range(self.competing, len(self.tensors)):
            _sgd(*self._flat[i], momenta[i].view(-1), settings[i])
        flags[self.count :] = True
        return edge.threshold

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor, int, int]]:
        """Which tensor; weights and gradients of a block; where it begins in the tensor, and in all of them."""
        before = 0
        for i, (w, g) in enumerate(self._flat[: self.competing]):
            for at in range(0, w.numel(), BLOCK):
                yield i, w[at : at + BLOCK], g[at : at + BLOCK], at, before + at
            before += w.numel()

    def _sample(self, stride: int) -> np.ndarray:
        parts, at = [], 0
        for w, g in self._flat[: self.competing]:
            parts.append((w[at::stride] * g[at::stride]).abs_().numpy())
            at = (at - w.numel()) % stride
        return np.concatenate(parts)

    def _between(self, low: np.int32, high: np.int32) -> tuple[np.ndarray | None, int]:
        """The bits of all |g * w| from low to below high, and how many reach high.

        None for the former where there is no room for them, or something is not finite.
        """
        found, room, above = [], self.room, 0
        product, shifted, flags = torch.empty(BLOCK), np.empty(BLOCK, np.int32), np.empty(BLOCK, bool)
        for _, w, g, _, _ in self._blocks():
            n = w.numel()
            bits = torch.mul(w, g, out=product[:n]).numpy().view(np.int32)
            np.bitwise_and(bits, _GREATEST, out=bits)
            if bits.max() >= _INFINITY:
                return None, 0
            over = np.subtract(bits, low, out=shifted[:n])
            above += np.count_nonzero(np.greater_equal(over, high - low, out=flags[:n]))
            inside = np.less(over.view(np.uint32), np.uint32(high - low), out=flags[:n])
            some = bits.compress(inside)
            found.append(some)
            room -= some.size
            if room < 0:
                return None, above
        return np.concatenate(found), above

    @staticmethod
    def _pass(w: Tensor, g: Tensor, edge: Edge, start: int, out: Tensor) -> None:
        """Write the gradients that pass, and zeros, of a block that begins at flat position `start`."""
        torch.mul(w, g, out=out)
        cut = min(max(edge.upto - start, 0), out.numel())
        below = float(np.nextafter(edge.threshold, np.float32(0.0)))  # to reach the threshold is to be beyond this
        for part, limit in ((slice(0, cut), below), (slice(cut, None), float(edge.threshold))):
            _pass_beyond(g[part], out[part], limit, grad_input=out[part])


def _sgd(w: Tensor, g: Tensor, z: Tensor, settings: Settings) -> None:
    lr, decay, momentum, dampening = settings
    torch._fused_sgd_(
        [w], [g], [z], lr=lr, weight_decay=decay, momentum=momentum or 1.0, dampening=dampening, nesterov=False,
        maximize=False, is_first_step=not momentum,
    )  # fmt: skip
