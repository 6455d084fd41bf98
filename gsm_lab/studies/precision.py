"""One precision throughout a study, also where a model or its loss chooses another by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gsm_lab.models import copied
from gsm_lab.training.derivatives import Loss

_CASTS = ("float", "half", "bfloat16")


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
            if torch.finfo(getattr(torch, name)).bits < self.bits:
                self.used = True
                return args[0].to(self.dtype, **kwargs)
            return func(*args, **kwargs)
        in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name.startswith("__i")
        written, args = (args[:1], args[1:]) if in_place else ((), args)
        out = {"out": kwargs.pop("out")} if "out" in kwargs else {}
        args, kwargs = tree_map(self._raised, (args, kwargs))
        found = func(*written, *args, **kwargs, **out)
        return found if in_place or out else tree_map(self._raised, found)

    def _raised(self, value: Any) -> Any:
        """A tensor in at least this precision; a dtype likewise; anything else as it is."""
        if isinstance(value, torch.dtype):
            if not value.is_floating_point or torch.finfo(value).bits >= self.bits:
                return value
            self.used = True
            return self.dtype
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if torch.finfo(value.dtype).bits >= self.bits:
            return value
        self.used = True
        return value.to(self.dtype)
