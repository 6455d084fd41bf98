"""Which weights compete, how they are grouped for the optimizer, and the cut that makes the losers exact zeros."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gsm_lab.optim import spread
from gsm_lab.optim.ranks import is_distributed, local
from gsm_lab.optim.selection import budget, chosen, top_q

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_NEVER_PRUNED = (nn.Embedding, nn.EmbeddingBag, *_NORMS)


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable tensors of a model by name, in the order of `named_parameters()`; a tied tensor counts once.

    Prunable is a parameter of two or more dimensions that belongs to no embedding and no normalisation layer: the
    kernels of fully-connected and convolution layers (the paper, section 3.1).
    """
    excluded = {id(p) for m in model.modules() if isinstance(m, _NEVER_PRUNED) for p in m.parameters(recurse=False)}
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in excluded}


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups for `GSM`: the prunable tensors, and the rest (biases, norms, embeddings) without decay.

    The second group gets plain SGD (`prunable=False`, `weight_decay=0`). Each group carries `names`, so that errors can
    name a parameter.

    Raises:
        ValueError: the model has no prunable tensor.
    """
    weights = prunable(model)
    if not weights:
        raise ValueError(
            f"model {type(model).__name__} has no prunable weights: none of its parameters has two or more dimensions "
            "outside embeddings and norms"
        )
    competing = {id(p) for p in weights.values()}
    others = {name: p for name, p in model.named_parameters() if id(p) not in competing}
    groups: list[dict[str, Any]] = [{"params": list(weights.values()), "names": list(weights), "prunable": True}]
    if others:
        groups.append({"params": list(others.values()), "names": list(others), "prunable": False, "weight_decay": 0.0})
    return groups


@torch.no_grad()
def keep_masks(model: nn.Module, compression: float | None = None, nonzeros: int | None = None) -> dict[str, Tensor]:
    """What `cut` would keep: for each prunable tensor a bool mask of its shape, True at the Q largest |w| of the model.

    Args:
        model: any module; it is not changed.
        compression: C = N / Q; give this or `nonzeros`.
        nonzeros: Q, how many weights stay.

    Returns:
        name -> mask. Exactly Q entries are True unless fewer than Q weights differ from zero; of equal magnitudes at
        the border the one that comes first in the model stays. (Magnitudes are compared in float32.)

    Raises:
        ValueError: no prunable weights, or a budget out of range.
        FloatingPointError: a weight is NaN or infinite.

    Where weights are DTensors (FSDP2, tensor parallelism) every rank has to call it; Q is that of the whole model, and
    the masks are placed as the weights are.
    """
    return _keep(model, compression, nonzeros)[0]


def _keep(model: nn.Module, compression: float | None, nonzeros: int | None) -> tuple[dict[str, Tensor], int]:
    """The masks, and how many weights stay."""
    weights = prunable(model)
    count = sum(p.numel() for p in weights.values())
    if not count:
        raise ValueError(f"model {type(model).__name__} has no prunable weights")
    q = budget(count, compression, nonzeros)
    if any(map(is_distributed, weights.values())):
        setting = f"nonzeros={nonzeros}" if compression is None else f"compression={compression}"
        return spread.keep_masks(weights, q, setting)
    for name, p in weights.items():
        if not torch.isfinite(p).all():
            raise FloatingPointError(f"weight {name!r} holds NaN or infinite values; nothing was cut")
    magnitude = torch.cat([p.detach().float().abs().reshape(-1).cpu() for p in weights.values()])
    flat = torch.from_numpy(chosen(magnitude.numpy(), top_q(magnitude.numpy(), q)))
    masks, start = {}, 0
    for name, p in weights.items():
        masks[name] = flat[start : start + p.numel()].view(p.shape).to(p.device)
        start += p.numel()
    return masks, int(flat.sum())


@torch.no_grad()
def cut(model: nn.Module, compression: float | None = None, nonzeros: int | None = None) -> int:
    """Set every prunable weight outside the Q largest |w| of the whole model to exact zero (the paper, section 3.2).

    Arguments, ties and errors are those of `keep_masks`; the model is changed in place.

    Returns:
        How many weights stay.
    """
    masks, kept = _keep(model, compression, nonzeros)
    for name, p in prunable(model).items():
        local(p).masked_fill_(~local(masks[name]), 0.0)
    return kept


@torch.no_grad()
def clear(weights: Iterable[Tensor], masks: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Set what lies outside the masks, bool and of the weights' shapes, to zero, and what momentum it had with it."""
    for p, mask in zip(weights, masks, strict=True):
        momentum = optimizer.state.get(p, {}).get("momentum_buffer")
        for values in (p,) if momentum is None else (p, momentum):
            values.masked_fill_(~mask, 0.0)
