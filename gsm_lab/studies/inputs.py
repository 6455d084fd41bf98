"""What a `Problem` takes: the models, batches and losses that it refuses, and one precision for those it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from gsm_lab.checks import kind, shown
from gsm_lab.models import copied
from gsm_lab.training.derivatives import Loss, named

_CASTS = ("float", "half", "bfloat16")
_ABOUT_PRECISION = ("dtype", "scalar type", "Double", "Float", "BFloat16")  # in what PyTorch says of two of them


def check_kinds(model: Any, x: Any, y: Any, loss: Any, dtype: Any, output: Any) -> None:
    """Raises TypeError or ValueError for an argument of `Problem` that is of another kind."""
    kind("model", model, nn.Module, "an nn.Module or a Run")
    for name, value in (("x", x), ("y", y)):
        kind(name, value, Tensor, "a tensor of one row a sample")
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


def copies_in(dtype: torch.dtype, model: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """Copies in `dtype`, no parameter of which asks for a gradient: of the model, and of the loss if it is a module."""
    model, of_module = copied(model, loss if isinstance(loss, nn.Module) else None)
    device = next(model.parameters()).device
    model.to(dtype).requires_grad_(False)
    return model, loss if of_module is None else of_module.to(device, dtype).requires_grad_(False)


class Raised(TorchFunctionMode):
    """Inside, floating-point numbers of less precision than `dtype` become `dtype`, as the model itself has.

    Such numbers come from a model that casts by itself (`.float()`, `softmax(dtype=torch.float32)`, bfloat16 inside) or
    makes constants, and from what a loss holds (class weights). They would lose the digits that the study is about.

    Attributes:
        used: whether any number was changed so far; if none was, the model computes the same without this mode.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.bits, self.used = dtype, torch.finfo(dtype).bits, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ("__get__", "__set__", "__delete__"):  # an attribute such as `.dtype` or `.grad`
            return func(*args, **kwargs)
        if name in _CASTS and len(args) == 1 and isinstance(args[0], Tensor):
            if torch.finfo(getattr(torch, name)).bits >= self.bits:
                return func(*args, **kwargs)
            self.used = True
            return args[0].to(self.dtype, **kwargs)
        in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name.startswith("__i")
        written, args = (args[:1], args[1:]) if in_place else ((), args)
        out = {"out": kwargs.pop("out")} if "out" in kwargs else {}
        args, kwargs = tree_map(self._raised, (args, kwargs))
        found = func(*written, *args, **kwargs, **out)
        return found if in_place or out else tree_map(self._raised, found)

    def _raised(self, value: Any) -> Any:
        """A tensor in at least this precision; a dtype likewise; anything else as it is."""
        dtype = value.dtype if isinstance(value, Tensor) else value
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or torch.finfo(dtype).bits >= self.bits:
            return value
        self.used = True
        return self.dtype if value is dtype else value.to(self.dtype)
