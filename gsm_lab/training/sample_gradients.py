"""The losses and gradients of single samples, for the studies and for Fisher pruning.

Many at once (`torch.func`) is quicker and fits fewer models: where it fails, or its answers do not add up to those of
plain autograd, samples are taken one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.training.derivatives import Loss, differentiable_twice, gradients, joined, leaves, named
from gsm_lab.training.outputs import Output, answer, answer_with

AT_ONCE = 32  # samples that are batched; bounds memory


def single_losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample by itself [n], of the rows of `outputs` [n, ...] and `y` [n, ...]."""
    if loss is F.cross_entropy and outputs.ndim == 2:
        return F.cross_entropy(outputs, y, reduction="none")
    return torch.func.vmap(lambda a, b: loss(a[None], b[None]))(outputs, y)


def shares(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor | None:
    """What the loss makes of the losses of single samples: c [n] with loss(outputs, y) = sum of c_s loss(sample s).

    1/n each for a mean, 1 for a sum, w_s / sum of w with class weights, 0 for an ignored label. None where the loss is
    no such sum: found out on the outputs as they are, and moved at random.
    """
    n = len(y)
    even = torch.full((n,), 1 / n, dtype=outputs.dtype, device=outputs.device)
    if loss is F.cross_entropy and outputs.ndim == 2 and (y.is_floating_point() or not (y == -100).any()):
        return even
    close = torch.finfo(outputs.dtype).eps ** 0.5

    def singly(rows: Tensor) -> Tensor:
        return torch.stack([loss(rows[i : i + 1], y[i : i + 1]).reshape(()) for i in range(n)])

    try:
        with torch.enable_grad():
            at = outputs.detach().clone().requires_grad_()
            value, single = loss(at, y), singly(at)
            slope, own = (gradients(v, [at])[0].reshape(n, -1) for v in (value, single.sum()))
            counts = own.isfinite().all(1) & single.detach().isfinite() & (own != 0).any(1)
            own = torch.where(counts[:, None], own, 0)
            c = (slope * own).sum(1) / torch.where(counts, own.square().sum(1), 1)
            if not _close(c[:, None] * own, slope, close):
                return None
            random = torch.Generator().manual_seed(0)
            for moved in (torch.ones(n, dtype=torch.bool), torch.rand(n, generator=random) < 0.5):
                noise = torch.randn(outputs.shape, generator=random).to(outputs) * moved.to(outputs).view(
                    -1, *[1] * (outputs.ndim - 1)
                )
                there = outputs.detach() + noise * outputs.detach().std(correction=0).clamp_min(close)
                parts = torch.where(counts, c * (singly(there) - single), 0)
                if not _close(parts.sum(), loss(there, y) - value, close, float(parts.detach().abs().sum())):
                    return None
    except Exception:  # one sample alone is nothing that this loss takes
        return None
    c = c.detach()
    return even if _close(c, even, close) else c


def _close(a: Tensor, b: Tensor, relative: float, size: float = 0.0) -> bool:
    a, b = a.detach(), b.detach()
    return bool(torch.isfinite(a).all()) and float((a - b).abs().max()) <= relative * max(float(b.abs().max()), size)


def sample_gradients(
    model: nn.Module,
    loss: Loss,
    weights: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    output: Output | None = None,
    singly: bool = False,
) -> Iterator[Tensor]:
    """The gradients of the loss of single samples with respect to some parameters of the model.

    Args:
        model: in the mode (training or evaluation) it is wanted in.
        loss: from (answer to one sample [1, ...], labels [1]) to a scalar.
        weights: parameters of the model by name, N entries in all.
        x, y: inputs [n, ...] and labels [n].
        output: the adapter of `gsm_lab.training.outputs`, if there is one.
        singly: one sample at a time by plain autograd; otherwise only where `torch.func` cannot take the model.

    Yields [k, N] for some samples at a time, in their order, entries in the order of `weights`.
    """

    def one(replaced: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return loss(answer_with(model, replaced, a[None], output), b[None]).reshape(())

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")
    for a, b in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True):
        if not singly:
            try:
                parts = each({name: w.detach() for name, w in weights.items()}, a, b)
                yield torch.cat([parts[name].reshape(len(a), -1) for name in weights], dim=1)
                continue
            except Exception:  # branches on values, hooks, functions without a rule for vmap, recurrent layers
                singly = True
        with leaves(model, weights) as tensors:
            values = (loss(answer(model, c[None], output), d[None]) for c, d in zip(a, b, strict=True))
            found = torch.stack([joined(gradients(value, tensors)) for value in values])
        yield found


class OfSamples(NamedTuple):
    """What the gradients g_s of single samples come to, with c_s what the loss makes of sample s, see `shares`.

    squared: the sum of c_s g_s^2 [N], the empirical Fisher diagonal; for a loss that is a mean, the mean of g_s^2.
    shares: c [n]. singly: whether they had to be taken one at a time.
    """

    squared: Tensor
    shares: Tensor
    singly: bool


def of_samples(
    model: nn.Module, loss: Loss, weights: dict[str, Tensor], x: Tensor, y: Tensor, output: Output | None = None
) -> OfSamples:
    """Take the gradients of single samples together. Arguments are those of `sample_gradients`.

    Raises:
        ValueError: the gradients of single samples do not add up to that of the loss, so that they mean nothing: the
            loss is no sum over samples, or samples see each other in the model.
    """
    with differentiable_twice(model):
        with leaves(model, weights) as tensors:
            outputs = answer(model, x, output)
            whole = joined(gradients(loss(outputs, y), tensors))
        even = whole.new_full((len(y),), 1 / len(y))
        parts = shares(loss, outputs.detach(), y) if isinstance(outputs, Tensor) and len(outputs) == len(y) else even
        cause: Exception | None = None
        for singly in (False, True) if parts is not None else ():
            try:
                squares, total = _summed(parts, sample_gradients(model, loss, weights, x, y, output, singly))
            except Exception as error:  # one sample alone is nothing that this model takes
                cause = error
                continue
            if _close(total, whole, torch.finfo(whole.dtype).eps ** 0.5, float(squares.max()) ** 0.5):
                return OfSamples(squares, parts, singly)
    raise ValueError(
        f"loss {named(loss)} on model {type(model).__name__} has no gradients of single samples that add up to it: "
        "it is no sum over samples, or samples see each other in the model (batch statistics, attention over a batch)"
    ) from cause


def _summed(parts: Tensor, rows: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The sums of c_s g_s^2 and of c_s g_s, both [N]."""
    n, start, squares, total = len(parts), 0, 0, 0
    even = bool((parts == 1 / n).all()) or bool((parts == parts[0]).all())
    for g in rows:
        g = g.detach()  # of weights that are in training, they remember where they come from
        if even:
            squares, total = squares + g.square().sum(0), total + g.sum(0)
        else:
            c = parts[start : start + len(g), None].to(g.dtype)
            g = torch.where(c != 0, g, 0)  # the loss of an ignored sample alone may be nan
            squares, total = squares + (c * g.square()).sum(0), total + (c * g).sum(0)
        start += len(g)
    if not even:
        return squares, total
    return (squares / n, total / n) if float(parts[0]) == 1 / n else (squares * parts[0], total * parts[0])
