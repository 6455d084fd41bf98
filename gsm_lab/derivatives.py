"""Gradients of single samples, for the studies and for Fisher pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

AT_ONCE = 32  # samples that are batched; bounds memory


def sample_gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], weights: dict[str, Tensor], x: Tensor, y: Tensor
) -> Iterator[Tensor]:
    """The gradients of the loss of single samples with respect to some tensors of the model.

    Args:
        model: in the mode (training or evaluation) it is wanted in.
        loss: from (outputs [1, ...], labels [1]) to a scalar.
        weights: name -> tensor, N entries in all.
        x, y: inputs [n, ...] and labels [n].

    Yields float [k, N] for some samples at a time, in their order, entries in the order of `weights`.
    """

    def one(replaced: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, replaced, (a[None],)), b[None])

    each = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")
    for a, b in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True):
        try:
            parts = each(dict(weights), a, b)
        except RuntimeError:  # models that vmap cannot take, such as those that branch on their values
            singly = [torch.func.grad(one)(dict(weights), c, d) for c, d in zip(a, b, strict=True)]
            parts = {name: torch.stack([gradients[name] for gradients in singly]) for name in weights}
        yield torch.cat([parts[name].reshape(len(a), -1) for name in weights], dim=1)
