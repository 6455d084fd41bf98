"""`Problem`: a model, a fixed batch and a loss, as a function of the prunable weights; and its exact derivatives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.models import prunable
from gsm_lab.optim import param_groups
from gsm_lab.optim.layers import kernels
from gsm_lab.optim.picks import Picks
from gsm_lab.studies.inputs import Raised, check_kinds, copies_in, first_loss, refuse_hidden_weights
from gsm_lab.training.derivatives import (
    Loss,
    differentiable_twice,
    gradients,
    holding,
    joined,
    leaves,
    not_compiled,
    products_with,
)
from gsm_lab.training.outputs import Output, answer, answer_with
from gsm_lab.training.run import Run
from gsm_lab.training.sample_gradients import AT_ONCE, OfSamples, of_samples, sample_gradients


class Problem:
    """The loss of a copy of `model` on one batch, in evaluation mode (no dropout, batch statistics as trained).

    Args:
        model: any `nn.Module`, or a `Run`, whose model is taken, and whose loss and adapter unless given.
        x, y: the batch, inputs [n, ...] and labels [n].
        loss: from (outputs, labels) to a scalar; cross entropy unless given. One that is a module is copied with the
            model, in `dtype` as that.
        dtype: of all computation, also where the model or the loss casts to a lower one by itself. Differences of
            losses cancel, so float64 unless given.
        output: from (model, x) to what the loss takes, where that is not `model(x)`; see `gsm_lab.training.outputs`.
        include, exclude: which tensors are prunable, as for `gsm_lab.optim.prunable`; those of a `Run` unless given.

    Attributes:
        weights: the prunable tensors by layer name. count: N. value: the loss. draws: whether random numbers
        enter even in evaluation mode; they are then the same ones each time.

    Raises:
        TypeError: an argument of another kind.
        ValueError: no prunable weights, a batch of no samples, a loss that is not finite, no single number, or refers
            to the model's weights itself, or a model that cannot be copied or computed in `dtype`.
    """

    def __init__(
        self,
        model: nn.Module | Run,
        x: Tensor,
        y: Tensor,
        loss: Loss | None = None,
        dtype: torch.dtype = torch.float64,
        output: Output | None = None,
        include: Picks = None,
        exclude: Picks = None,
    ) -> None:
        self.seed, layers = 0, None
        if isinstance(model, Run):
            run, model = model, model.model
            layers, self.seed = list(run.history.layers), run.settings.seed
            loss, output = run.loss if loss is None else loss, run.output if output is None else output
        loss = F.cross_entropy if loss is None else loss
        check_kinds(model, x, y, loss, dtype, output)
        if include is not None or exclude is not None:
            layers = param_groups(model, include, exclude)[0]["names"]
        elif layers is None:  # a network that is frozen as a whole can be studied, too
            layers = list(prunable(model) or kernels(model) or param_groups(model)[0]["names"])
        self.model, self.loss = copies_in(dtype, model, loss)
        self.output, self.dtype, device = output, dtype, next(self.model.parameters()).device
        self.x, self.y = (t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in (x, y))
        self.weights = {name: self.model.get_parameter(name) for name in layers}
        before = [w.clone() for w in self.weights.values()]
        self.model.eval()
        if any(not torch.equal(a, b) for a, b in zip(before, self.weights.values(), strict=True)):
            name = type(model).__name__
            raise ValueError(f"model {name} must have the same weights in evaluation mode as in training")
        self.sizes = [w.numel() for w in self.weights.values()]
        self.count = sum(self.sizes)
        self._raised: Raised | None = Raised(dtype)
        self.draws = False
        self._at_once: dict[str, bool] = {}  # layers whose tensor vmap can replace by many
        with torch.random.fork_rng(devices=[]):
            self._begin(x, model, loss)

    def _begin(self, x: Tensor, model: nn.Module, loss: Loss) -> None:
        """Find out what the model and the loss need, and their value."""
        version = self.x._version
        with torch.no_grad(), self.computing():
            found, value = first_loss(model, loss, self.x, self.y, self.dtype, self.answer, self.loss)
        if not self._raised.used:
            self._raised = None
        if not isinstance(loss, nn.Module):  # else it was copied together with the model
            with torch.enable_grad(), self.computing():
                refuse_hidden_weights(model, loss, self.loss(found, self.y))
        written = self.x._version != version
        if written:  # a model that writes into its input gets a fresh one each time
            self.x, adapter = x.to(self.x), self.output
            self.output = lambda model, x: answer(model, x.clone(), adapter)
        self.value = float(value if self._raised is None and not written else self())
        self.draws = self.value != float(self())
        if self.draws:
            self.value = float(self())
        if not math.isfinite(self.value):
            raise ValueError(f"the loss of this batch is {self.value}: no change of it can be measured")

    @contextlib.contextmanager
    def computing(self, as_written: bool = False) -> Iterator[None]:
        """What a forward pass needs here: differentiable kernels, one precision, the same random numbers each time.

        `as_written`: with the kernels and checkpoints that the model has by itself.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(not_compiled() if as_written else differentiable_twice(self.model))
            if self._raised is not None:
                stack.enter_context(self._raised)
            if self.draws:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.default_generator.manual_seed(self.seed)
            yield

    @property
    def floor(self) -> float:
        """The smallest change of the loss that is more than rounding: a thousand units in its last place."""
        return 1e3 * torch.finfo(self.dtype).eps * max(abs(self.value), 1e-3)

    @torch.no_grad()
    def __call__(self, **replaced: Tensor) -> Tensor:
        """The loss with some tensors replaced by name, a scalar."""
        return self.of(replaced)

    def of(self, replaced: dict[str, Tensor]) -> Tensor:
        """The loss as a differentiable function of the tensors that replace the model's."""
        with self.computing():
            found = answer_with(self.model, replaced, self.x, self.output) if replaced else self.answer()
            return self.loss(found, self.y).reshape(())

    def answer(self) -> Any:
        """What the model answers on the batch: what the loss takes."""
        return answer(self.model, self.x, self.output)

    # -- flat vectors over all prunable weights, in the order of the layers ------------------------------------------

    def flat(self) -> Tensor:
        """All prunable weights [N]."""
        return joined(self.weights.values()).detach()

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector [N] (or a stack of them, [k, N]) cut into the shapes of the layers."""
        layers = zip(self.weights.items(), flat.split(self.sizes, dim=-1), strict=True)
        return {name: part.reshape(*flat.shape[:-1], *w.shape) for (name, w), part in layers}

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

    @contextlib.contextmanager
    def graph(self, names: Sequence[str] | None = None, twice: bool = False) -> Iterator[tuple[list, tuple]]:
        """Parameters of the model as leaves, the prunable ones unless named, and the gradient of the loss there."""
        with leaves(self.model, self.weights if names is None else names) as tensors:
            yield tensors, gradients(self.of({}), tensors, create_graph=twice)

    def gradient(self) -> Tensor:
        """dL/dw [N]."""
        with self.graph() as (_, gradient):
            return joined(gradient)

    def plain_gradient(self, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """dL/dw [N] by `backward()` through the model as it is written, with other values of some parameters or none.

        To check `gradient` by.
        """
        with holding(self.model, values or {}), leaves(self.model, self.weights) as tensors:
            nn.Module.zero_grad(self.model)
            with self.computing(as_written=True):
                value = self.loss(self.answer(), self.y).reshape(())
                if value.requires_grad:
                    value.backward()
            found = joined(torch.zeros_like(p) if p.grad is None else p.grad for p in tensors).detach()
            nn.Module.zero_grad(self.model)
        return found

    def hessian_vector(self, vectors: Tensor) -> Tensor:
        """H v for one vector [N], or for each of a stack [k, N], with H the second derivatives over all N weights."""
        with self.graph(twice=True) as (tensors, gradient):
            along = [list(self.parts(v).values()) for v in torch.atleast_2d(vectors)]
            products = [joined(products_with(gradient, tensors, v)) for v in along]
        return torch.stack(products).reshape(vectors.shape)

    def hessian_diagonal(self, indices: Sequence[int]) -> Tensor:
        """d2L/dw2 of single weights at flat positions `indices` [k], exact: one product with H each."""
        entries = []
        with self.graph(twice=True) as (tensors, gradient):
            for i in indices:
                name, at = self.place(int(i))
                of = list(self.weights).index(name)
                slope = gradient[of].reshape(-1)[at]
                entries.append(products_with([slope], tensors[of : of + 1])[0].reshape(-1)[at])
        return torch.stack(entries) if entries else self.flat()[:0]

    @cached_property
    def _of_samples(self) -> OfSamples:
        with self.computing():
            return of_samples(self.model, self.loss, self.weights, self.x, self.y, self.output)

    @property
    def squared_gradients(self) -> Tensor:
        """Mean over the samples of the square of each sample's gradient [N]: the empirical Fisher diagonal.

        For a loss that is a weighted sum over samples, the sum of weight times squared gradient. Raises ValueError
        where there are no gradients of single samples, see `gsm_lab.training.sample_gradients`.
        """
        return self._of_samples.squared

    def sample_gradients(self) -> Iterator[Tensor]:
        """The gradients of single samples, [k, N] at a time; their mean over all samples is `gradient()`.

        Raises ValueError where they have no such mean.
        """
        found, start = self._of_samples, 0
        scale = len(self.y) * found.shares
        with self.computing():
            rows = sample_gradients(self.model, self.loss, self.weights, self.x, self.y, self.output, found.singly)
            for part in rows:
                k = scale[start : start + len(part), None].to(part)
                yield torch.where(k != 0, k * part, 0)
                start += len(part)

    # -- the truth ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def loss_at(self, values: Mapping[str, Tensor]) -> float:
        """The loss with other values of some parameters, put into the model and taken out again."""
        with holding(self.model, values):
            return float(self.of({}))

    def change(self, delta: Tensor) -> float:
        """L(w + delta) - L(w) for a change [N] of all weights."""
        return self.loss_at(self.parts(self.flat() + delta)) - self.value

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
                weight = self.weights[name]
                stack = weight.expand(len(at), *weight.shape).clone(memory_format=torch.contiguous_format)
                stack.view(len(at), -1)[range(len(at)), at] = 0.0
                result[list(ks)] = self._losses(name, stack).cpu() - self.value
        return result

    def _losses(self, name: str, stack: Tensor) -> Tensor:
        """The losses with one layer's tensor replaced by each of a stack."""
        if len(stack) > 1 and self._at_once.get(name, True):  # for one, vmap has torch import sympy: 40 MB
            try:
                found = torch.func.vmap(lambda w: self.of({name: w}), randomness="same")(stack)
                if name not in self._at_once:  # where a tensor is used behind the model's back, replacing it shows less
                    alone = self.loss_at({name: stack[0]})
                    self._at_once[name] = float(found[0]) == alone or abs(float(found[0]) - alone) <= self.floor
                if self._at_once[name]:
                    return found
            except Exception:  # branches on values, hooks, functions without a rule for vmap, recurrent layers
                self._at_once[name] = False
        return torch.tensor([self.loss_at({name: w}) for w in stack], dtype=stack.dtype, device=stack.device)
