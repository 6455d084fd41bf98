"""What a `Problem` does not take, said before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsm_lab.checks import shown
from gsm_lab.training.derivatives import Loss, named


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


def refuse_hidden_weights(model: nn.Module, loss: Loss, value: Tensor) -> None:
    """Raises ValueError where `value`, the loss of an answer without a graph, has weights of the model in its graph.

    They would be constants there, whatever becomes of the copy that is looked at.
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
