"""A GSM step in two passes over weights and gradients: what its three forms have in common.

`compiled` does it with numba; without it, `blocks` does it with PyTorch and numpy where there are millions of weights,
and `whole` where there are fewer. A strided sample tells about where the threshold is; the few values near it are
picked out, and it is selected among those.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 21  # weights from which on memory, not the number of calls, decides what a step costs
_SAMPLE = 1024  # values, at least
_ROOM = 65_536, 5_000_000  # candidates there is room for, at least and at most; between them one weight in 16
_FLOAT, _DENSE, _PLAIN = torch.float32, torch.strided, (Tensor, torch.nn.Parameter)


class Edge(NamedTuple):
    """Where the top q ends: what is above the `threshold` passes, what equals it only before flat position `upto`."""

    threshold: np.float32
    upto: int


Settings = tuple[float, float, float, float]  # learning rate, weight decay, momentum, dampening
# (grad, x, limit): grad where |x| > limit or NaN, else 0
_pass_beyond = torch.ops.aten.hardshrink_backward.grad_input


class Passes(ABC):
    """The two passes over a fixed list of float32 tensors on a CPU.

    Args:
        weights: the tensors that compete.
        others: those that follow them and only take part in the step, with all of their gradients.
    """

    def __init__(self, weights: Sequence[Tensor], others: Sequence[Tensor] = ()) -> None:
        self.tensors, self.competing = (*weights, *others), len(weights)
        self.sizes = [p.numel() for p in self.tensors]
        self.count = sum(self.sizes[: self.competing])
        self._seen: dict[str, tuple[list[Tensor], list[int]]] = {}
        self.room = min(self.count, max(_ROOM[0], min(self.count // 16, _ROOM[1])))

    @abstractmethod
    def take(self, grads: list[Tensor | None]) -> bool:
        """Look up where the weights are now, and these gradients of theirs; False where one of them is not simple."""

    @abstractmethod
    def edge(self, q: int) -> Edge | None:
        """Where the `q` greatest |g * w| end (fewer where fewer are positive), 0 < q < N; after `take`.

        None where some are not finite, or none is positive.
        """

    @abstractmethod
    def gate(self, edge: Edge, out: np.ndarray) -> None:
        """Write the gradients that pass, and zeros, to `out`, float32 [N], one tensor after the other."""

    @abstractmethod
    def step(self, q: int, momenta: list[Tensor], settings: list[Settings]) -> float | None:
        """Do PyTorch's fused SGD step with the gradients that pass, to the bit; after `take`.

        Args:
            q: how many pass, 0 < q < N.
            momenta: the momentum buffers of all tensors.
            settings: of all tensors; a momentum of 0 stands for the first step, which finds its buffer full of zeros.

        Returns:
            The threshold. None, and nothing is changed, where there is none, or it cannot be done here.
        """

    @abstractmethod
    def active(self) -> np.ndarray:
        """Who passed at the last `step`: bool [N], a copy. Means nothing after a step or an edge that was None."""

    def places(self, tensors: Sequence[Tensor | None], kind: str) -> list[int] | None:
        """Where a list as long as that of all tensors lies; None where one cannot be read as flat float32 there.

        `kind` names the list, which stays the same for many steps: where all lies where it lay, the answer is the very
        list that was given before.
        """
        before, places = self._seen.get(kind, ((), []))
        if len(before) == len(tensors) and all(map(operator.is_, tensors, before)) and _still(tensors, places):
            return places
        self._seen.pop(kind, None)
        if not all(map(simple, tensors, self.sizes)) or any(x.is_inference() for x in tensors):
            return None  # (of what was made in inference mode, torch says who may change it)
        places = [x.data_ptr() for x in tensors]
        ends = sorted((place, place + 4 * n) for place, n in zip(places, self.sizes, strict=True) if n)
        if any(end > start for (_, end), (start, _) in pairwise(ends)):
            return None  # two share memory: fused SGD moves that twice, one after the other
        self._seen[kind] = [*tensors], places
        return places


def _still(tensors: Sequence[Tensor], places: list[int]) -> bool:
    """Whether all lie at these places, as they did when they were looked at."""
    for x, place in zip(tensors, places, strict=True):  # noqa: SIM110 - a loop takes half the time of a generator
        if x.data_ptr() != place or not x.is_contiguous():
            return False
    return True


def simple(x: Tensor | None, size: int) -> bool:
    """Whether it can be read as `size` flat float32 on the CPU."""
    return (
        type(x) in _PLAIN
        and x.dtype is _FLOAT
        and x.is_cpu
        and x.layout is _DENSE
        and x.is_contiguous()
        and x.numel() == size
    )


def pass_through(g: Tensor, metric: Tensor, edge: Edge, start: int, out: Tensor) -> None:
    """Write the gradients that pass, and zeros, to `out`, which may be the `metric`; flat, from position `start` on."""
    cut = edge.upto - start
    below = float(np.nextafter(edge.threshold, np.float32(0.0)))  # to reach the threshold is to be beyond this
    if cut >= g.numel():
        _pass_beyond(g, metric, below, grad_input=out)
        return
    cut = max(cut, 0)
    _pass_beyond(g[:cut], metric[:cut], below, grad_input=out[:cut])
    _pass_beyond(g[cut:], metric[cut:], float(edge.threshold), grad_input=out[cut:])


def sgd_each(
    weights: Sequence[Tensor], grads: Sequence[Tensor], momenta: Sequence[Tensor], settings: Sequence[Settings]
) -> None:
    """PyTorch's fused SGD on flat tensors, one call for all that have equal settings."""
    for its in dict.fromkeys(settings):
        same = [i for i, other in enumerate(settings) if other == its]
        lr, decay, momentum, dampening = its
        torch._fused_sgd_(
            *([tensors[i] for i in same] for tensors in (weights, grads, momenta)),
            lr=lr, weight_decay=decay, momentum=momentum or 1.0, dampening=dampening, nesterov=False, maximize=False,
            is_first_step=not momentum,
        )  # fmt: skip


@lru_cache(maxsize=64)
def sampling(size: int, q: int) -> tuple[int, np.ndarray]:
    """The stride of the sample (0: none), and pairs (most, least): at most and at least so many of it reach a bracket.

    Of m sampled values the number among the top q is about binomial; three standard deviations to either side hold
    the threshold in all but one step of 400. Neighbours resemble each other, hence a second, wider pair.
    """
    share = q / size
    # the more are sampled, the fewer lie in the bracket: so many that both cost about as much
    wanted = max(_SAMPLE, int((size / 4 * math.sqrt(share * (1 - share))) ** (2 / 3)))
    stride = size // wanted
    if stride < 2:
        return 0, np.zeros((1, 2), np.int64)
    stride += 1 - stride % 2  # odd, so that power-of-two layer widths do not confine the sample to a few columns
    while stride % 3 == 0 or stride % 5 == 0 or stride % 7 == 0:  # nor widths such as 300 or 784 with their factors
        stride += 2
    mean = -(-size // stride) * share
    deviation = math.sqrt(mean * (1 - share))
    pairs = [(max(0, math.floor(mean - s * deviation - 1)), math.ceil(mean + s * deviation + 2)) for s in (3, 9)]
    return stride, np.array(pairs, np.int64)
