"""Which weights compete, how they are grouped for the optimizer, and the cut that makes the losers exact zeros."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.optim.gated import Gated
from gsm_lab.optim.layers import Computed, computed_kernels, kernels
from gsm_lab.optim.picks import Names, Picks
from gsm_lab.optim.ranks import shards
from gsm_lab.optim.ranks.group import is_distributed, local
from gsm_lab.optim.selection import budget, chosen, top_q


def prunable(model: nn.Module, include: Picks = None, exclude: Picks = None) -> dict[str, nn.Parameter]:
    """The prunable tensors of a model by name, in the order of `named_parameters()`; a tied tensor counts once.

    Prunable are the kernels of fully-connected, convolution, recurrent and attention layers (the paper, section 3.1:
    "the kernels of convolution and fully-connected layers"), by the module that owns them; what counts as one in
    layers that PyTorch does not know is said at `layers.kernels`. Not prunable are embeddings, also where an output
    layer is tied to them, norms, class tokens, positions, LayerScale and other bare parameters, nor frozen tensors
    (`requires_grad=False`).

    Args:
        model: any module. It is not changed.
        include: prunable beside these: names, globs (`"*.attn.*"`; `*` stands for dots, too), modules, parameters, or a
            list of them. Of a module, all tensors of two dimensions or more; embeddings and frozen tensors, too.
        exclude: not prunable after all; the same kinds. It has the last word.

    Raises:
        TypeError: model is no module, or a pick is of another kind.
        ValueError: a pick names nothing in the model; a parameter is lazy, without a shape so far; or a layer computes
            its kernel from other tensors (`weight_norm`, `spectral_norm`, any parametrisation, a mask of
            `torch.nn.utils.prune`), so that to cut those would not cut it: name it in `exclude`, or end that first.
    """
    found, computed = kernels(_module(model)), _computed(model)
    names = Names(model, {name: c.sources for name, c in computed.items()})
    more, less = names.of(include, "include", least=2), names.of(exclude, "exclude")
    _refuse_computed(computed, {id(p) for p in model.parameters() if p.requires_grad} - less)
    own = {id(p) for p in found.values() if p.requires_grad} | more
    return {name: p for name, p in model.named_parameters() if id(p) in own - less}


def _computed(model: nn.Module) -> dict[str, Computed]:
    """The kernels that layers compute from other tensors, by the names that they have all the same."""
    found = ((path, c) for path, module in model.named_modules() for c in computed_kernels(module))
    return {f"{path}.{c.name}".removeprefix("."): c for path, c in found}


def _refuse_computed(computed: dict[str, Computed], competing: set[int]) -> None:
    refused = [name for name, c in computed.items() if any(id(p) in competing for p in c.sources)]
    if refused:
        name, more = refused[0], f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(
            f"kernel {name!r}{more} is no parameter but computed from others at each pass, and cannot be pruned so: "
            f"{computed[name].way_out}, or leave it out, exclude={name!r}"
        )


def _module(model: object) -> nn.Module:
    """The model. Raises TypeError where it is none, a `Run` for example."""
    if isinstance(model, nn.Module):
        return model
    inner = " (its attribute model is one)" if isinstance(getattr(model, "model", None), nn.Module) else ""
    raise TypeError(f"model must be an nn.Module, got a {type(model).__name__}{inner}")


def _prunable(model: nn.Module, include: Picks, exclude: Picks) -> dict[str, nn.Parameter]:
    """The same, and at least one. Raises ValueError where there is none."""
    if weights := prunable(model, include, exclude):
        return weights
    frozen = [name for name, p in kernels(model).items() if not p.requires_grad]
    bare = [name for name, p in model.named_parameters() if p.ndim >= 2 and name not in frozen]
    why = "none of its parameters is the kernel of a layer"
    if exclude is not None:
        why = "exclude leaves none"
    elif frozen:
        why = f"its kernels are frozen ({', '.join(map(repr, frozen[:3]))}{', ...' if len(frozen) > 3 else ''})"
    elif bare:
        why += f"; include= takes in others, such as {bare[0]!r}"
    raise ValueError(f"model {type(model).__name__} has no prunable weights: {why}")


def exactly(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """`include` and `exclude` that make just these tensors prunable; names of others than the model's are left out."""
    names, own = set(names), dict(model.named_parameters())
    return {"include": [name for name in own if name in names], "exclude": [name for name in own if name not in names]}


def param_groups(model: nn.Module, include: Picks = None, exclude: Picks = None) -> list[dict[str, Any]]:
    """Two parameter groups for `GSM`: the prunable tensors, and the rest (biases, norms, embeddings) without decay.

    The second group gets plain SGD (`prunable=False`, `weight_decay=0`). Each group carries `names`, so that errors can
    name a parameter.

    Frozen tensors (`requires_grad=False`) are in the second group: without a gradient SGD leaves them alone, and one
    that is unfrozen later is trained, but does not compete: for that, make the optimizer anew.

    Args:
        model, include, exclude: as for `prunable`. A frozen tensor that is named in `include` counts towards N and Q.

    Raises:
        TypeError, ValueError: as `prunable`, and where the model has no prunable tensor.
    """
    weights = _prunable(model, include, exclude)
    competing = {id(p) for p in weights.values()}
    others = {name: p for name, p in model.named_parameters() if id(p) not in competing}
    groups: list[dict[str, Any]] = [{"params": list(weights.values()), "names": list(weights), "prunable": True}]
    if others:
        groups.append({"params": list(others.values()), "names": list(others), "prunable": False, "weight_decay": 0.0})
    return groups


def keep_masks(
    model: nn.Module,
    compression: float | None = None,
    nonzeros: int | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    include: Picks = None,
    exclude: Picks = None,
) -> dict[str, Tensor]:
    """What `cut` would keep: for each prunable tensor a bool mask of its shape, True at the Q largest |w| of the model.

    Args:
        model: any module; it is not changed.
        compression: C = N / Q; give this or `nonzeros`, or neither where there is an optimizer.
        nonzeros: Q, how many weights stay.
        optimizer: a `GSM` that trains the model: the tensors are those that compete in it, in its order, and Q is its
            own unless a budget is given. Also one that is wrapped, with the `GSM` as its attribute `optimizer`.
        include, exclude: as for `prunable`, where there is no optimizer.

    Returns:
        name -> mask. Exactly Q entries are True unless fewer than Q weights differ from zero; of equal magnitudes at
        the border the one that comes first in the model stays. (Magnitudes are compared in float32; of complex weights
        it is |w|.)

    Raises:
        TypeError: model is no module, or optimizer no `GSM`.
        ValueError: as `prunable`; no prunable weights, some without values (on the meta device), a budget out of
            range; or an optimizer that trains weights of another model.
        FloatingPointError: a weight is NaN or infinite.

    Where weights are DTensors (FSDP2, tensor parallelism) every rank has to call it; Q is that of the whole model, and
    the masks are placed as the weights are.
    """
    weights, gsm = _competing(model, optimizer, include, exclude)
    return _keep(weights, compression, nonzeros, gsm)[0]


def flat_mask(masks: Iterable[Tensor]) -> Tensor:
    """Masks of tensors, those of `keep_masks` for example, joined in their order: bool [N], on the CPU."""
    return torch.cat([mask.reshape(-1).cpu() for mask in masks])


def cut(
    model: nn.Module,
    compression: float | None = None,
    nonzeros: int | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    include: Picks = None,
    exclude: Picks = None,
) -> int:
    """Set every prunable weight outside the Q largest |w| of the whole model to exact zero (the paper, section 3.2).

    Arguments, ties and errors are those of `keep_masks`; the model is changed in place. A layer that is left empty
    brings a warning with its name.

    To train on what is left, give the `optimizer`: the momentum of what is cut is cleared, too. The T = |g w| of a
    zero is zero, so that none comes back while the gate is closed (compression above 1). Without the optimizer, the
    momentum in it brings the weights back in its next step: then go on with a new one, or end here.

    Returns:
        How many weights stay.
    """
    weights, gsm = _competing(model, optimizer, include, exclude)
    masks, counts = _keep(weights, compression, nonzeros, gsm)
    clear(weights.values(), masks.values(), gsm)
    warn_of_empty("the cut", dict(zip(weights, counts, strict=True)))
    return sum(counts)


def _competing(
    model: nn.Module, optimizer: object, include: Picks, exclude: Picks
) -> tuple[dict[str, Tensor], Gated | None]:
    """The tensors to cut by name: those that compete in the optimizer, in its order, else those of the model."""
    if optimizer is None:
        return _prunable(model, include, exclude), None
    gsm = optimizer
    while not isinstance(gsm, Gated):  # one that is wrapped, as attribute `optimizer`
        if not isinstance(gsm := getattr(gsm, "optimizer", None), torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a GSM, or wrap one as its attribute optimizer, got {optimizer!r}")
    if include is not None or exclude is not None:
        raise ValueError("include and exclude must not be given with an optimizer: its groups say what competes")
    names = {id(p): name for name, p in _module(model).named_parameters()}
    weights = gsm._gate().weights
    for p in weights:
        if id(p) not in names:
            raise ValueError(
                f"optimizer must train model {type(model).__name__} and nothing beside it, but it has a competing "
                f"tensor of shape {tuple(p.shape)} that is none of the model's: give the module that has all of them"
            )
    if not weights:
        raise ValueError("optimizer has no prunable weights: no group with prunable=True has tensors of two dimensions")
    _refuse_computed(_computed(model), {id(p) for p in weights})
    return {names[id(p)]: p for p in weights}, gsm


@torch.no_grad()
def _keep(
    weights: dict[str, Tensor],
    compression: float | None,
    nonzeros: int | None,
    gsm: Gated | None,
) -> tuple[dict[str, Tensor], list[int]]:
    """The masks, and how many weights stay in each tensor."""
    count = sum(p.numel() for p in weights.values())
    if gsm is not None and compression is None and nonzeros is None:
        nonzeros = gsm.nonzeros
    q = budget(count, compression, nonzeros)
    for name, p in weights.items():
        if p.is_meta:
            raise ValueError(f"weight {name!r} is on the meta device, where it has no values; nothing was cut")
    if any(map(is_distributed, weights.values())):
        setting = f"nonzeros={nonzeros}" if compression is None else f"compression={compression}"
        return shards.keep_masks(weights, q, setting)
    magnitude = torch.cat([p.detach().abs().float().reshape(-1).cpu() for p in weights.values()]).numpy()
    top = top_q(magnitude, q)
    if not top.finite:  # what is not finite ranks first, so that there is nothing to look for where all of these are
        for name, p in weights.items():
            if not torch.isfinite(p).all():
                raise FloatingPointError(f"weight {name!r} holds NaN or infinite values; nothing was cut")
    flat = torch.from_numpy(chosen(magnitude, top))
    parts = flat.split([p.numel() for p in weights.values()])
    masks = {name: part.view(p.shape).to(p.device) for (name, p), part in zip(weights.items(), parts, strict=True)}
    return masks, [np.count_nonzero(part.numpy()) for part in parts]  # torch's sum takes ten times as long


def warn_of_empty(what: str, left: dict[str, int]) -> None:
    """Warn of layers of which `what` left no weight.

    Args:
        what: took weights out.
        left: layer -> how many stay.
    """
    if empty := [name for name, n in left.items() if not n]:
        listed = ", ".join(map(repr, empty[:4])) + (f" and {len(empty) - 4} more" if len(empty) > 4 else "")
        warnings.warn(f"{what} left no weight in layer {listed}", stacklevel=3)


@torch.no_grad()
def clear(weights: Iterable[Tensor], masks: Iterable[Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """Set what lies outside the masks, bool and of the weights' shapes, to zero, and what momentum it had with it."""
    for p, mask in zip(weights, masks, strict=True):
        momentum = None if optimizer is None else optimizer.state.get(p, {}).get("momentum_buffer")
        for values in (p,) if momentum is None else (p, momentum):
            local(values).masked_fill_(~local(mask), 0.0)
