"""How an answer comes from a model: as it returns it, or through an adapter of the user's; and the logits in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Output = Callable[[nn.Module, Tensor], Any]  # (model, x [n, ...]) -> what the loss takes, logits [n, classes]


class _Adapted(nn.Module):
    """The model behind the adapter, as a module, so that its parameters can be replaced for a call."""

    def __init__(self, model: nn.Module, output: Output) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.model, x)


def answer(model: nn.Module, x: Tensor, output: Output | None = None) -> Any:
    """What the loss takes: `model(x)`, or what `output(model, x)` makes of it.

    An adapter serves models of several inputs, or whose answer is not logits alone:
    `output=lambda model, x: model(pixel_values=x).logits`.
    """
    return model(x) if output is None else output(model, x)


def answer_with(model: nn.Module, replaced: dict[str, Tensor], x: Tensor, output: Output | None = None) -> Any:
    """The same with these tensors in place of the model's parameters or buffers of those names; it is not changed."""
    if output is None:
        return functional_call(model, replaced, (x,))
    return functional_call(_Adapted(model, output), {f"model.{name}": t for name, t in replaced.items()}, (x,))


def logits(answer: Any) -> Any:
    """The logits in an answer: itself where it is a tensor, else its field or key `logits` where it has one."""
    if isinstance(answer, Mapping):
        return answer.get("logits", answer)
    return getattr(answer, "logits", answer)


def predicted(answer: Any, above: float | None = None) -> Tensor:
    """The class of each row of an answer, int64 [n]: the greatest of its logits [n, classes] (or [n, classes, 1]).

    With `above`, the answer has one output a row, which stands for class 1 where it is above that number, else for 0.
    """
    found = logits(answer)
    if above is not None:
        return (found.reshape(len(found)) > above).long()
    return (found if found.ndim == 2 else found.reshape(len(found), -1)).argmax(1)
