"""The models, batches and losses that a `Problem` refuses, before it computes anything of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gsm_lab.checks import shown
from gsm_lab.training.derivatives import Loss, named

_ABOUT_PRECISION = ("dtype", "scalar type", "Double", "Float", "BFloat16")  # in what PyTorch says of two of them


def check_kinds(model: Any, x: Any, y: Any, loss: Any, dtype: Any, output: Any) -> None:
    """Raises TypeError or ValueError for an argument of `Problem` that is of another kind."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module or a Run, got {type(model).__name__}")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor of one row a sample, got {type(value).__name__}")
    if x.ndim == 0 or y.ndim == 0 or len(x) == 0 or len(x) != len(y):
        sizes = [len(t) if t.ndim else "none" for t in (x, y)]
        raise ValueError(f"x and y must hold as many inputs as labels, and some, got {sizes[0]} and {sizes[1]}")
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"loss must be a function from (outputs, labels) to a scalar, got {shown(loss)}")
    if output is not None and not callable(output):
        raise TypeError(f"output must be a function from (model, x) to what the loss takes, got {shown(output)}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype such as torch.float64, got {shown(dtype)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"model must be as written in Python, not compiled to TorchScript, got {type(model).__name__}")
    if any(p.is_complex() for p in model.parameters()):
        raise ValueError(f"model {type(model).__name__} must have real parameters, got complex ones")


def first_loss(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, dtype: torch.dtype, answer: Callable[[], Any], in_dtype: Loss
) -> tuple[Any, Tensor]:
    """What the model answers to the batch, and the loss of that by `in_dtype`, which is `loss` in that dtype.

    Raises ValueError where model and loss do not take what they get, do not give one number, or compute in a dtype of
    less precision.
    """
    does = f"model {type(model).__name__} must take the batch x of shape {tuple(x.shape)} (or output, both of them)"
    try:
        found = answer()
        does = f"loss {named(loss)} must take what model and output give, and y of shape {tuple(y.shape)}"
        value = in_dtype(found, y)
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        if isinstance(error, RuntimeError) and any(word in said for word in _ABOUT_PRECISION):
            raise ValueError(_other_dtype(model, loss, dtype, said)) from error
        raise ValueError(f"{does}, and does not: {said}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        seen = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must give one number, a tensor of one entry; {named(loss)} gives {seen}")
    of_floats = [t.dtype for t in (*tree_leaves(found), value) if isinstance(t, Tensor) and t.is_floating_point()]
    lowest = min(of_floats, key=lambda d: torch.finfo(d).bits, default=dtype)
    if torch.finfo(lowest).bits < torch.finfo(dtype).bits:
        raise ValueError(_other_dtype(model, loss, dtype, f"they return {lowest}"))
    return found, value


def _other_dtype(model: nn.Module, loss: Loss, dtype: torch.dtype, why: str) -> str:
    return (
        f"dtype must be one that model {type(model).__name__} and loss {named(loss)} can be computed in, got "
        f"{dtype} ({why}); dtype=torch.float32 may be one"
    )


def refuse_hidden_weights(model: nn.Module, loss: Loss, value: Tensor) -> None:
    """Raises ValueError where `value`, the loss of an answer without a graph, has weights of the model in its graph.

    They would be constants there, whatever becomes of the copy that is studied.
    """
    of = {id(p): name for name, p in model.named_parameters()}
    nodes, seen = [value.grad_fn] if value.grad_fn is not None else [], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if (name := of.get(id(getattr(node, "variable", None)))) is not None:
            raise ValueError(
                f"loss {named(loss)} must depend on weights through the model's answer only, and takes {name!r} by "
                "itself: leave such a penalty out (weight_decay is one), or make the loss a module that has the model"
            )
        nodes += [n for n, _ in node.next_functions if n is not None]
