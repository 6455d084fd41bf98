"""GSM's step as two compiled passes over g and w, for float32 tensors on a CPU (numba, the extra `gsm-lab[fast]`).

The first pass reads g and w and forms |g * w| without storing it: it counts the values above a bracket that a strided
sample gives, and keeps the few inside, among which the threshold is selected. The second pass forms |g * w| again,
gates, and does what PyTorch's fused SGD does, to the bit. Where the sample misled us, the step is left to the gate and
to PyTorch, so a bad bracket costs time and never the exactness. Above 65,536 weights, every thread of PyTorch's takes a
part of them.
"""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.optim.fused import kernels
from gsm_lab.optim.fused.llvm import ROUNDINGS
from gsm_lab.optim.gate import Gate

SHARED = 1 << 16  # weights from which on threads share the work: below, to wait for each other costs more
_LARGE = 1 << 21  # weights from which on memory decides what a step costs
_SAMPLE = 1024  # values, at least
_ROOM = 65_536, 5_000_000  # candidates there is room for, at least and at most; between them one weight in 16
_UNEVEN = 1 << 18  # candidates that a thread has room for, at least: they may lie close together
_PLAIN = Tensor, torch.nn.Parameter
_NO_STATE: dict[str, Any] = {}
_ZERO = torch.zeros(())  # what `torch.where(out=)` takes, which wants a tensor


class FusedStep:
    """The step over the tensors of a gate, in their order: first those that compete, then the others.

    Args:
        gate: that of the optimizer. It is not kept, since it keeps, by its mask, what is kept here.
        group_of: the parameter group that each tensor is in.

    `groups`: the same for the tensors in their order. `settings`, to be set before a step: learning rate, weight decay,
    momentum and dampening of each.
    """

    settings: list[tuple[float, float, float, float]]

    def __init__(self, gate: Gate, group_of: dict[Tensor, int]) -> None:
        self._tensors, competing = [*gate.weights, *gate.others], len(gate.weights)
        self.groups = [group_of[p] for p in self._tensors]
        self._sizes, self.count = [p.numel() for p in self._tensors], gate.count
        self.room = min(self.count, max(_ROOM[0], min(self.count // 16, _ROOM[1])))
        self._seen: dict[int, tuple[list[Tensor], list[int]]] = {}
        self._masked: list[Tensor] = []  # gradients of the candidates: the passes read at their addresses
        table = np.zeros((len(self._tensors), 4), np.uint64)
        table[:, 3] = self._sizes
        self._table, self._competing = table, table[:competing]
        self._entries = memoryview(table.reshape(-1))  # writing through it costs half
        self._large = sum(self._sizes) >= SHARED
        self._settings, self._given = np.empty((len(table), 4), np.float32), None
        self._active = np.empty(kernels.groups(table), np.uint64)  # a bit for each entry; tensors begin with a word
        self._histogram = np.empty(1 << (11 if self.count < _LARGE else 13), np.int32)
        self._planned = 0, 0
        self._plan = plan = np.zeros(kernels.ACTIVE + 1, np.int64)
        plan[kernels.TENSORS], plan[kernels.COMPETING], plan[kernels.BINS] = len(table), competing, self._histogram.size
        plan[kernels.TABLE], plan[kernels.HISTOGRAM] = map(_address, (table, self._histogram))
        plan[kernels.SETTINGS], plan[kernels.ACTIVE] = map(_address, (self._settings, self._active))

    def try_step(self, optimizer: torch.optim.SGD, gate: Gate, q: int) -> bool:
        """Do a whole step: what fused SGD would do with the gradients that pass, to the bit.

        Args:
            optimizer: whose step it is; here its state counts.
            gate: that of the same tensors; it is told who passed.
            q: how many gradients pass, 0 < q < count.

        Returns:
            False where that is left to PyTorch (other types and devices, NaN, nothing is positive, a sample that misled
            us, ...); nothing has changed then.
        """
        grads = [p.grad for p in self._tensors] if gate.candidates is None else self._of_candidates(gate)
        placed, codes = self._placed(self._tensors, 0), rounding()
        if not placed or codes is None or not all(map(_simple, grads, self._sizes)):
            return False
        settings, state = self.settings, optimizer.state
        momenta = [state.get(p, _NO_STATE).get("momentum_buffer") for p in self._tensors]
        if new := [i for i, z in enumerate(momenta) if z is None]:  # there momentum begins with the gradient as it is
            with torch.inference_mode(False):  # else no step outside of that mode could change it
                for i in new:
                    momenta[i] = torch.zeros_like(self._tensors[i])
            settings = [(*its[:2], 0.0, 0.0) if i in new else its for i, its in enumerate(settings)]
        if not self._placed(momenta, 2):
            return False
        for i, g in enumerate(grads):
            self._entries[4 * i + 1] = g.data_ptr()
        if settings != self._given:
            self._settings[:] = [(lr, decay, momentum, 1 - d) for lr, decay, momentum, d in settings]
            self._given, self._plan[kernels.ROUNDING] = settings, _address(codes)
        self._decide(q)
        threshold, done = kernels.step(self._plan)
        if not done:
            return False
        for i in new:
            state[self._tensors[i]]["momentum_buffer"] = momenta[i]
        gate.passed(threshold, partial(_unpacked, self._competing, self._active, self.count))
        torch.autograd.graph.increment_version([*self._tensors, *momenta])
        return True

    def _of_candidates(self, gate: Gate) -> list[Tensor | None]:
        """The gradients of all tensors, of those that compete without what is no candidate: so that it cannot pass."""
        if not self._masked:
            self._masked = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in gate.weights]
        masked = [
            torch.where(part.view(p.shape), p.grad, _ZERO, out=room) if _simple(p.grad, room.numel()) else None
            for p, part, room in zip(gate.weights, gate.candidates.split(gate.sizes), self._masked, strict=True)
        ]
        return masked + [p.grad for p in gate.others]

    def _placed(self, tensors: Sequence[Tensor | None], column: int) -> bool:
        """Have the table's column say where a list as long as that of all tensors lies.

        False where one cannot be read as flat float32 there. The list stays the same for many steps: where every tensor
        lies where it lay, that is written already.
        """
        before, places = self._seen.get(column, ((), []))
        if len(before) == len(tensors) and all(map(operator.is_, tensors, before)) and _still(tensors, places):
            return True
        self._seen.pop(column, None)
        if not all(map(_simple, tensors, self._sizes)) or any(x.is_inference() for x in tensors):
            return False  # (of what was made in inference mode, torch says who may change it)
        places = [x.data_ptr() for x in tensors]
        ends = sorted((place, place + 4 * n) for place, n in zip(places, self._sizes, strict=True) if n)
        if any(end > start for (_, end), (start, _) in pairwise(ends)):
            return False  # two share memory: fused SGD moves that twice, one after the other
        for i, place in enumerate(places):
            self._entries[4 * i + column] = place
        self._seen[column] = [*tensors], places
        return True

    def _decide(self, q: int) -> None:
        """How to look for the top q, and with how many threads."""
        asked = q, torch.get_num_threads() if self._large else 1
        if asked == self._planned:
            return
        self._planned = 0, 0  # until all of it is done
        self._team, (stride, self._brackets) = team(asked[1]), sampling(self.count, q)
        parts = int(self._team[kernels.THREADS])
        all_of_one = 64 * -(-kernels.groups(self._competing) // parts)
        some = max(self.room // parts, _UNEVEN if parts > 1 else 0) + 64 * kernels.BLOCK
        self._found = np.empty(parts * (min(all_of_one, some) + kernels.SPARE), np.int32)
        plan = self._plan
        plan[kernels.Q], plan[kernels.STRIDE], plan[kernels.TRIES] = q, stride, len(self._brackets)
        plan[kernels.TEAM], plan[kernels.BRACKETS] = map(_address, (self._team, self._brackets))
        plan[kernels.FOUND], plan[kernels.ROOM] = _address(self._found), self._found.size
        self._planned = asked


def _still(tensors: Sequence[Tensor], places: list[int]) -> bool:
    """Whether all lie at these places, as they did when they were looked at."""
    for x, place in zip(tensors, places, strict=True):  # noqa: SIM110 - a loop takes half the time of a generator
        if x.data_ptr() != place or not x.is_contiguous():
            return False
    return True


def _simple(x: Tensor | None, size: int) -> bool:
    """Whether it can be read as `size` flat float32 on the CPU."""
    return (
        type(x) in _PLAIN
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and x.numel() == size
    )


def _unpacked(table: np.ndarray, active: np.ndarray, count: int) -> Tensor:
    """Who passed at the last step, from its bits: bool [count]."""
    flags = np.empty(count, bool)
    kernels.unpack(table, active, flags)
    return torch.from_numpy(flags)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@lru_cache(maxsize=64)
def sampling(size: int, q: int) -> tuple[int, np.ndarray]:
    """The stride of the sample (0: none), and pairs (most, least): at most and at least so many of it reach a bracket.

    A `most` of -1 stands for a bracket without an upper end.

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
    pairs = [(max(-1, math.floor(mean - s * deviation - 1)), math.ceil(mean + s * deviation + 2)) for s in (3, 9)]
    return stride, np.array(pairs, np.int64)


@cache
def team(threads: int) -> np.ndarray:
    """What `kernels` takes for so many threads; for one, where the OpenMP of PyTorch cannot be found or used."""
    alone = np.array([1, 0, 0, 0, 0], np.int64)
    if threads == 1:
        return alone
    library = ctypes.CDLL(torch._C.__file__)  # and what that depends on
    try:
        functions = [getattr(library, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except AttributeError:
        return alone
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    several = np.array([threads, kernels.work.address, *addresses], np.int64)
    return several if kernels.understood(several) else alone


@cache
def rounding() -> np.ndarray | None:
    """How PyTorch's fused SGD rounds on this processor: codes for `kernels.update`, found by trying; None if none fits.

    Whether a product and a sum are rounded once or twice depends on the instructions that PyTorch was built for and
    found; the last few entries of a tensor, which fill no vector, may be treated differently from the others.
    """
    sizes = np.array([1 << 14, *[15] * 200])  # many vectors, and many rests
    random = torch.Generator().manual_seed(0)
    parts = torch.randn(3, sizes.sum(), generator=random, dtype=torch.float32, device="cpu")
    done = parts.clone()
    torch._fused_sgd_(
        *(part.split(sizes.tolist()) for part in done),
        lr=0.03, weight_decay=0.3, momentum=0.9, dampening=0.3, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
    starts = 4 * np.cumsum([0, *sizes[:-1]])
    settings = np.array([[0.03, 0.3, 0.9, 1 - 0.3]] * len(sizes), np.float32)

    def fits(tensors: int, *codes: int) -> bool:
        trial, n = parts.clone(), sizes[:tensors].sum()
        w, g, z = (part.data_ptr() + starts for part in trial)
        table = np.stack([w, g, z, sizes], 1).astype(np.uint64)[:tensors]
        groups = kernels.groups(table)
        kernels.update(table, 0, groups, 0, 1 << 62, settings, np.array(codes), np.empty(groups, np.uint64))
        return torch.equal(trial[:, :n], done[:, :n])

    body = next((code for code in ROUNDINGS if fits(1, code, code, 1)), None)
    tails = [(body, tail, width) for width in (16, 8, 4) for tail in ROUNDINGS if body is not None]
    return next((np.array(codes) for codes in tails if fits(len(sizes), *codes)), None)
