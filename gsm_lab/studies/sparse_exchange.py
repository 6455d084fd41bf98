"""How ranks exchange gradients: DDP's dense average, or only what each rank holds to be its top kQ.

A communication hook of PyTorch's `DistributedDataParallel`. (No `from __future__ import annotations` here: DDP reads
the annotations of its hook.)
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gsm_lab.optim.selection import chosen, top_q


class Exchange:
    """The state of `exchange_hook`, one a rank.

    Args:
        weights: the prunable tensors, float32; their flat order is that of everything here.
        ranks: R.

    Attributes:
        sent: how many weights a rank sends, kQ; None: all gradients are averaged (the dense exchange).
        local: where asked for with `listen`, the rank's own gradient of the last step before the exchange, [N].
        gathered, reduced: bytes this rank handed to all-gathers and to all-reduces, so far.
    """

    def __init__(self, weights: list[Tensor], ranks: int) -> None:
        self.weights, self.ranks = weights, ranks
        self.sent: int | None = None
        self.listen, self.local = False, torch.empty(0)
        self.gathered = self.reduced = 0

    def average(self, tensor: Tensor) -> None:
        """The mean over the ranks, in place."""
        self.reduced += tensor.numel() * tensor.element_size()
        dist.all_reduce(tensor.div_(self.ranks))

    def sparse_mean(self, gradient: Tensor) -> Tensor:
        """The mean of what the ranks send of their gradients [N]; who does not send a weight adds 0 to its sum."""
        weights = torch.cat([p.detach().reshape(-1) for p in self.weights])
        indices = local_top(weights, gradient, self.sent)
        # all-gather wants the same from each: where fewer have a T > 0, zeros go to weight 0, and change nothing
        own_indices = torch.zeros(self.sent, dtype=torch.int32)
        own_values = torch.zeros(self.sent)
        own_indices[: len(indices)] = indices.int()
        own_values[: len(indices)] = gradient[indices] / self.ranks
        self.gathered += own_indices.numel() * (own_indices.element_size() + own_values.element_size())
        all_indices = [torch.empty_like(own_indices) for _ in range(self.ranks)]
        all_values = [torch.empty_like(own_values) for _ in range(self.ranks)]
        dist.all_gather(all_indices, own_indices)
        dist.all_gather(all_values, own_values)
        mean = torch.zeros_like(gradient)
        for where, values in zip(all_indices, all_values, strict=True):  # in the same order, so to the same bits
            mean.index_add_(0, where.long(), values)
        return mean


def top(values: np.ndarray, q: int) -> np.ndarray:
    """The q greatest |values|, ties to the lower position: bool [N]."""
    metric = np.abs(values)
    return np.ones(metric.size, bool) if q >= metric.size else chosen(metric, top_q(metric, q))


def local_top(weights: Tensor, gradient: Tensor, q: int) -> Tensor:
    """Which weights a rank holds to be the top q of |gradient * weight|, ties to the lower: int64, at most [q]."""
    return torch.from_numpy(np.flatnonzero(top((weights * gradient).numpy(), q)))


def exchange_hook(state: Exchange, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """For `register_comm_hook`. DDP must keep all gradients in one bucket (see `bucket_cap_mb`): the competition is
    over all of them.
    """
    gradients = dict(zip(map(id, bucket.parameters()), bucket.gradients(), strict=True))
    competing = [gradients.pop(id(p), None) for p in state.weights]
    if bucket.index() or not bucket.is_last() or any(g is None for g in competing):
        raise ValueError("exchange_hook needs all gradients in one bucket: give DDP a bucket_cap_mb that holds them")
    if state.listen or state.sent is not None:
        flat = torch.cat([g.reshape(-1) for g in competing])
        state.local = flat if state.listen else state.local
    if state.sent is None:
        state.average(bucket.buffer())
    else:
        mean, start = state.sparse_mean(flat), 0
        for g in competing:
            g.copy_(mean[start : start + g.numel()].view_as(g))
            start += g.numel()
        if gradients:  # biases and norms do not compete, and are few
            others = torch.cat([g.reshape(-1) for g in gradients.values()])
            state.average(others)
            for g, part in zip(gradients.values(), others.split([g.numel() for g in gradients.values()]), strict=True):
                g.copy_(part.view_as(g))
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
