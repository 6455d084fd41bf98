"""The forms of the exact top Q, each as (metric, q) -> (threshold, who is chosen), for tests that hold all to one."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gsm_lab.optim import GSM
from gsm_lab.optim.fused import loader
from gsm_lab.optim.ranks import digits
from gsm_lab.optim.selection import chosen, top_q, top_q_on_device

Found = tuple[float, np.ndarray]
BUDGET = 64 * 1024  # bytes that a rank may send in a step
COMPILED = "gsm_lab.optim.fused.step"


def oracle(metric: np.ndarray, q: int) -> Found:
    """Smallest chosen value and mask, by the definition: sort by descending value (NaN first), then by position."""
    rank = metric.astype(np.float64)
    rank[np.isposinf(rank)] = 1e300  # above all float32
    rank[np.isnan(rank)] = 1e301
    first = np.argsort(-rank, kind="stable")[:q]
    first = first[rank[first] > 0]
    mask = np.zeros(metric.size, dtype=bool)
    mask[first] = True
    return (float(metric[first[-1]]) if first.size else 0.0), mask


def by_numpy(metric: np.ndarray, q: int) -> Found:
    before = metric.copy()
    top = top_q(metric, q)
    np.testing.assert_array_equal(metric, before)  # the input is only read
    return top.threshold, chosen(metric, top)


def on_device(metric: np.ndarray, q: int) -> Found:
    threshold, mask = top_q_on_device(torch.from_numpy(metric), q)
    return threshold.item(), mask.numpy()


def fused(metric: np.ndarray, q: int) -> Found:
    return fused_step(np.ones_like(metric), metric, q)[:2]


def fused_step(w: np.ndarray, g: np.ndarray, q: int, sizes: list[int] | None = None) -> tuple[float, np.ndarray, bool]:
    """The same of a metric |g * w|, whose tensors have some sizes; and whether the compiled step did it by itself."""
    ends = np.cumsum(sizes or [w.size])[:-1]
    weights, grads = (
        [torch.from_numpy(part.astype(np.float32).reshape(1, -1)) for part in np.split(x, ends)] for x in (w, g)
    )
    weights = [nn.Parameter(p) for p in weights]
    for p, grad in zip(weights, grads, strict=True):
        p.grad = grad
    gsm = GSM(weights, lr=0.0, momentum=0.5, nonzeros=q, fused=True)
    gate = gsm._prepared()
    done = gsm._try_step is not None and gsm._try_step(gsm, gate, q)
    if not done and np.isfinite(g).all():
        gsm.step()
    return gsm.threshold, gsm.active_mask().numpy(), done


def by_counts(metric: np.ndarray, q: int, ranks: int = 3) -> Found:
    """Over ranks that are threads, each of which has some of the entries."""
    bits = torch.from_numpy(np.minimum(metric.view(np.int32), digits.NAN))
    owner = np.random.default_rng(metric.size).integers(0, ranks, metric.size)
    mask, thresholds = np.zeros(metric.size, bool), set()

    def choose(rank: int, total: digits.SumOverRanks) -> None:
        mine = np.flatnonzero(owner == rank)
        values = bits[mine]
        own = digits.Own(metric.size, q, mine.size, "", None)
        top = digits.top_q(own, lambda: values[values > 0], lambda: None, total)
        if top is None:
            mask[mine] = True
            return
        positions = torch.from_numpy(mine[(values == top.bits).numpy()])
        last = digits.last_kept(positions, top.kept, top.n, total) if top.left_out else metric.size
        passes = (values > top.bits) | ((values == top.bits) & (torch.from_numpy(mine) <= last))
        mask[mine[(passes & (values > 0)).numpy()]] = True
        thresholds.add(top.bits)

    world = Threads(ranks)
    world.run(choose)
    assert max(world.sent) <= BUDGET
    if not thresholds:  # all are chosen
        return float(metric.min()), mask
    (threshold,) = thresholds
    return float(np.int32(threshold).view(np.float32)), mask


class Threads:
    """Ranks that are threads: `sum` waits for all, as a collective does."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, [0] * size
        self._meet, self._brought = threading.Barrier(size, timeout=20), [None] * size

    def run(self, function: Callable[..., Any]) -> list[Any]:
        """What `function(rank, total)` returns on each; raises what it raises on one."""
        answers: list[Any] = [None] * self.size
        errors: list[Exception] = []

        def work(rank: int) -> None:
            def total(counts: torch.Tensor) -> torch.Tensor:
                self._brought[rank] = counts
                self.sent[rank] += counts.numel() * counts.element_size()
                self._meet.wait()
                result = sum(self._brought)
                self._meet.wait()
                return result

            try:
                answers[rank] = function(rank, total)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(1, self.size)]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return answers


FORMS = {"numpy": by_numpy, "device": on_device, "ranks": by_counts}
if loader.compiled(COMPILED):
    FORMS["fused"] = fused


def check(form: str, metric: np.ndarray, q: int) -> None:
    """Hold a form of the selection against the definition, to the bit."""
    threshold, mask = oracle(metric, q)
    if q == metric.size and form in ("ranks", "fused"):  # all pass, whatever their metric
        assert (
            by_counts(metric, q)[1].all() if form == "ranks" else np.isfinite(metric).all() <= fused(metric, q)[1].all()
        )
        return
    if form == "fused" and not np.isfinite(metric).all():  # that of weights of one is a gradient, and is refused
        assert fused(metric, q)[1].sum() == 0
        return
    found = FORMS[form](metric, q)
    np.testing.assert_equal(found[0], threshold)
    np.testing.assert_array_equal(found[1], mask)
