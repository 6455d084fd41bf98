"""`Problem`: a model, a fixed batch and a loss, as a function of the prunable weights; and its exact derivatives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.derivatives import AT_ONCE, sample_gradients
from gsm_lab.models import prunable
from gsm_lab.optim import param_groups
from gsm_lab.optim.layers import kernels
from gsm_lab.run import Run

Loss = Callable[[Tensor, Tensor], Tensor]


class Problem:
    """The loss of a copy of `model` on one batch, in evaluation mode (no dropout, batch statistics as trained).

    Args:
        model: any `nn.Module`, or a `Run`, whose model and loss are taken.
        x, y: the batch, inputs [n, ...] and labels [n].
        loss: from (outputs, labels) to the mean over the samples; cross entropy unless given.
        dtype: of all computation. Differences of losses cancel, so float64 unless given.

    Attributes:
        weights: the prunable tensors by layer name. count: N. value: the loss.

    Raises:
        ValueError: no prunable weights, a batch of no samples, or one whose loss is not finite.
    """

    def __init__(
        self,
        model: nn.Module | Run,
        x: Tensor,
        y: Tensor,
        loss: Loss = F.cross_entropy,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        layers = None
        if isinstance(model, Run):
            layers, model, loss = list(model.history.layers), model.model, model.loss
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module or a Run, got {type(model).__name__}")
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"the batch must hold as many inputs as labels, and some, got {len(x)} and {len(y)}")
        if layers is None:  # a network that is frozen as a whole can be looked at, too
            layers = list(prunable(model) or kernels(model) or param_groups(model)[0]["names"])
        self.model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        device = next(self.model.parameters()).device
        self.x, self.y = x.to(device, dtype) if x.is_floating_point() else x.to(device), y.to(device)
        self.loss = loss
        self.weights = {name: self.model.get_parameter(name) for name in layers}
        self.sizes = [w.numel() for w in self.weights.values()]
        self.count = sum(self.sizes)
        self.value = float(self())
        if not math.isfinite(self.value):
            raise ValueError(f"the loss of this batch is {self.value}: no change of it can be measured")

    @property
    def floor(self) -> float:
        """The smallest change of the loss that is more than rounding: a thousand units in its last place."""
        return 1e3 * torch.finfo(next(iter(self.weights.values())).dtype).eps * max(abs(self.value), 1e-3)

    @torch.no_grad()
    def __call__(self, **replaced: Tensor) -> Tensor:
        """The loss with some tensors replaced by name, a scalar."""
        return self.of(replaced)

    def of(self, replaced: dict[str, Tensor]) -> Tensor:
        """The loss as a differentiable function of the tensors that replace the model's."""
        return self.loss(torch.func.functional_call(self.model, replaced, (self.x,)), self.y)

    # -- flat vectors over all prunable weights, in the order of the layers ------------------------------------------

    def flat(self) -> Tensor:
        """All prunable weights [N]."""
        return torch.cat([w.reshape(-1) for w in self.weights.values()])

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector [N] (or a stack of them, [k, N]) cut into the shapes of the layers."""
        pieces = flat.split(self.sizes, dim=-1)
        return {
            name: piece.reshape(*flat.shape[:-1], *w.shape)
            for (name, w), piece in zip(self.weights.items(), pieces, strict=True)
        }

    def place(self, index: int) -> tuple[str, int]:
        """The layer of the weight at a flat position, and its flat position there. Raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1:,}, got {index}")
        for name, size in zip(self.weights, self.sizes, strict=True):
            if index < size:
                return name, index
            index -= size
        raise AssertionError

    # -- derivatives -------------------------------------------------------------------------------------------------

    def gradient(self) -> Tensor:
        """dL/dw [N]."""
        leaves = self._leaves()
        return _joined(torch.autograd.grad(self.of(leaves), list(leaves.values())))

    def hessian_vector(self, vectors: Tensor) -> Tensor:
        """H v for one vector [N], or for each of a stack [k, N], with H the second derivatives over all N weights."""
        leaves = self._leaves()
        tensors = list(leaves.values())
        gradient = torch.autograd.grad(self.of(leaves), tensors, create_graph=True)
        products = [self._backward(gradient, tensors, v) for v in torch.atleast_2d(vectors)]
        return torch.stack(products).reshape(vectors.shape)

    def _backward(self, gradient: Sequence[Tensor], tensors: list[Tensor], vector: Tensor) -> Tensor:
        parts = list(self.parts(vector).values())
        return _joined(torch.autograd.grad(gradient, tensors, parts, retain_graph=True, materialize_grads=True))

    def hessian_diagonal(self, indices: Sequence[int]) -> Tensor:
        """d2L/dw2 of single weights at flat positions `indices` [k], exact: one product with H each."""
        leaves = self._leaves()
        tensors = list(leaves.values())
        gradient = torch.autograd.grad(self.of(leaves), tensors, create_graph=True)
        entries = []
        for i in indices:
            name, at = self.place(int(i))
            of = list(leaves).index(name)
            (row,) = torch.autograd.grad(gradient[of].reshape(-1)[at], tensors[of], retain_graph=True)
            entries.append(row.reshape(-1)[at])
        return torch.stack(entries) if entries else self.flat()[:0]

    @cached_property
    def squared_gradients(self) -> Tensor:
        """Mean over the samples of the square of each sample's gradient [N]: the empirical Fisher diagonal."""
        total = torch.zeros_like(self.flat())
        for gradients in self.sample_gradients():
            total += gradients.square().sum(0)
        return total / len(self.x)

    def sample_gradients(self) -> Iterator[Tensor]:
        """The gradients of single samples, [k, N] at a time; their mean over all samples is `gradient()`."""
        return sample_gradients(self.model, self.loss, self.weights, self.x, self.y)

    def _leaves(self) -> dict[str, Tensor]:
        return {name: w.detach().clone().requires_grad_() for name, w in self.weights.items()}

    # -- the truth ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def change(self, delta: Tensor) -> float:
        """L(w + delta) - L(w) for a change [N] of all weights."""
        return float(self.of(self.parts(self.flat() + delta))) - self.value

    @torch.no_grad()
    def changes_without(self, indices: Sequence[int]) -> Tensor:
        """L(w with one weight set to zero) - L(w), for each of the weights at flat positions `indices`: [k]."""
        result = torch.empty(len(indices), dtype=self.flat().dtype)
        by_layer: dict[str, list[tuple[int, int]]] = {}
        for k, i in enumerate(indices):
            name, at = self.place(int(i))
            by_layer.setdefault(name, []).append((k, at))
        for name, places in by_layer.items():
            for start in range(0, len(places), AT_ONCE):
                ks, at = zip(*places[start : start + AT_ONCE], strict=True)
                stack = self.weights[name].expand(len(at), *self.weights[name].shape).clone()
                stack.view(len(at), -1)[range(len(at)), at] = 0.0
                result[list(ks)] = self._losses(name, stack).cpu() - self.value
        return result

    def _losses(self, name: str, stack: Tensor) -> Tensor:
        """The losses with one layer's tensor replaced by each of a stack."""
        try:
            return torch.func.vmap(lambda w: self.of({name: w}), randomness="same")(stack)
        except RuntimeError:  # models that vmap cannot take, such as those that branch on their values
            return torch.stack([self.of({name: w}) for w in stack])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
