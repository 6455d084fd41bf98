"""The true loss change of every single weight of a layer, at a fraction of a forward pass each.

Setting w[i, j] of a fully-connected layer to zero changes one pre-activation: z[i] by -w[i, j] a[j], with a the layer's
input. What follows until the next fully-connected layer acts on each unit alone (an activation, dropout, a norm), so
one pass of it serves all units at once; the next layer's pre-activations then change by one column of its matrix. Only
from there on the network is run, and only for the samples whose unit did change (a rectifier that stays shut hides the
rest). Nothing is approximated.

The structure is not assumed but probed on the model itself; layers without it, such as convolutions, are evaluated one
weight at a time, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from gsm_lab.studies.curvature import fully_connected, hooked
from gsm_lab.studies.problem import Problem

_NUMBERS = 2_000_000  # moved units held at once: 16 MB in float64


def loss_changes(problem: Problem, layer: str, progress: bool = True) -> Tensor:
    """L(w[i, j] = 0) - L(w) of every weight of one layer, in the layer's shape.

    Args:
        problem: model and batch.
        layer: name of a prunable tensor, as in `problem.weights`.
        progress: show a progress bar.

    Raises:
        ValueError: there is no such layer.
    """
    if layer not in problem.weights:
        raise ValueError(f"layer must be one of {', '.join(problem.weights)}, got {layer!r}")
    weight = problem.weights[layer]
    with (
        torch.no_grad(),
        _one_thread(),
        tqdm(total=weight.numel(), unit="weight", desc=layer, disable=not progress) as bar,
    ):
        chain = _chain(problem, layer)
        if chain is None:
            return _one_by_one(problem, layer, bar)
        return _by_units(problem, chain, bar)


def _one_by_one(problem: Problem, layer: str, bar: tqdm) -> Tensor:
    names = list(problem.weights)
    first = sum(problem.sizes[: names.index(layer)])
    weight = problem.weights[layer]
    changes = torch.empty(weight.numel(), dtype=weight.dtype)
    for part in torch.arange(weight.numel()).split(64):
        changes[part] = problem.changes_without((first + part).tolist())
        bar.update(len(part))
    return changes.view(weight.shape)


# -- the structure -----------------------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """A fully-connected layer, what acts on its units, the next one, and the rest of the network.

    inputs [n, fan-in] and outputs z [n, units] of the layer; `between` from [m, units] to [m, units]; `matrix` and
    `after`, the next layer's weights and outputs [n, units of it], None where the layer is the last; `rest` from the
    outputs of the next layer (or of this one) [m, ...] to those of the network.
    """

    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    between: Callable[[Tensor], Tensor] | None
    matrix: Tensor | None
    after: Tensor
    rest: Callable[[Tensor], Tensor]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The pieces are small: several threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Reached(Exception):
    pass


def _seen(problem: Problem, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Input and output of a module on the batch."""
    seen: list[tuple[Tensor, Tensor]] = []
    with hooked(module.register_forward_hook(lambda _, a, z: seen.append((a[0], z)))):
        problem.model(problem.x)
    if len(seen) != 1:
        raise _Reached  # a module that is used more than once has no single place in the network
    return seen[0]


def _with_output(problem: Problem, module: nn.Module, z: Tensor) -> Tensor:
    """What the network makes of `z` in place of the module's output; it is run on one sample up to there."""
    with hooked(module.register_forward_hook(lambda *_: z)):
        return problem.model(problem.x[:1])


def _between(problem: Problem, module: nn.Module, following: nn.Module, z: Tensor) -> Tensor:
    """What arrives at `following` when `module` gives out `z`."""
    arrived: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        arrived.append(inputs[0])
        raise _Reached

    with hooked(module.register_forward_hook(lambda *_: z), following.register_forward_pre_hook(stop)):
        try:
            problem.model(problem.x[:1])
        except _Reached:
            return arrived[0]
    raise _Reached


def _chain(problem: Problem, layer: str) -> _Chain | None:
    """The chain that begins at `layer`, if the model, probed, behaves as one there."""
    linear = fully_connected(problem)
    module = linear.get(layer)
    if module is None:
        return None
    expected = problem.model(problem.x)
    try:
        inputs, outputs = _seen(problem, module)
        if inputs.ndim != 2:
            return None
        following = _following(problem, module, list(linear.values()))
        if following is None:
            chain = _Chain(
                module.weight, inputs, outputs, None, None, outputs, lambda z: _with_output(problem, module, z)
            )
        else:
            chain = _Chain(
                module.weight,
                inputs,
                outputs,
                lambda z: _between(problem, module, following, z),
                following.weight,
                _seen(problem, following)[1],
                lambda z: _with_output(problem, following, z),
            )
        return chain if _holds(chain, expected) else None
    except (_Reached, RuntimeError, ValueError, IndexError):  # the network does not take what a chain would
        return None


def _following(problem: Problem, module: nn.Module, linear: list[nn.Module]) -> nn.Module | None:
    """The fully-connected layer that is reached next after `module`."""
    order: list[nn.Module] = []
    with hooked(*(m.register_forward_hook(lambda m, *_: order.append(m)) for m in linear)):
        problem.model(problem.x[:1])
    place = order.index(module)
    return order[place + 1] if place + 1 < len(order) else None


def _holds(chain: _Chain, expected: Tensor) -> bool:
    """Whether the chain gives the network's own outputs, for the batch as it is and where single units are moved."""

    def close(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))

    if chain.rest(chain.after).shape[0] != len(expected) or not close(chain.rest(chain.after), expected):
        return False
    if chain.between is None or chain.matrix is None:
        return True
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(chain.outputs.shape, generator=random).to(chain.outputs)
    some = (torch.rand(chain.outputs.shape[1], generator=random) < 0.5).to(chain.outputs.device)
    plain, moved = chain.between(chain.outputs), chain.between(chain.outputs + noise)
    partly = chain.between(chain.outputs + noise * some)
    alone = torch.equal(partly, torch.where(some, moved, plain))  # each unit depends on itself alone, sample by sample
    bias = chain.after - plain @ chain.matrix.T
    return alone and close(bias, bias[:1].expand_as(bias))


# -- the evaluation ----------------------------------------------------------------------------------------------------


def _by_units(problem: Problem, chain: _Chain, bar: tqdm) -> Tensor:
    n = len(problem.x)
    units, fan_in = chain.weight.shape
    base = _sample_losses(problem, chain.rest(chain.after), torch.arange(n))
    plain = chain.between(chain.outputs) if chain.between else chain.outputs
    total = torch.zeros_like(chain.weight)
    for columns in torch.arange(fan_in).split(max(1, _NUMBERS // (n * units))):
        # all units at once, each without its weight from input j: [columns, n, units]
        without = chain.inputs[:, columns].T[:, :, None] * chain.weight[:, columns].T[:, None, :]
        z = (chain.outputs - without).reshape(-1, units)
        moved = (chain.between(z) if chain.between else z).view(without.shape) - plain
        for unit, by in enumerate(moved.permute(2, 0, 1).contiguous()):
            column, sample = by.nonzero(as_tuple=True)
            if not len(sample):
                continue
            new = chain.after.index_select(0, sample)
            if chain.matrix is None:
                new[:, unit] += by[column, sample]
            else:
                new.addcmul_(by[column, sample][:, None], chain.matrix[:, unit])
            change = _sample_losses(problem, chain.rest(new), sample) - base[sample]
            total[unit].index_add_(0, columns[column], change)
        bar.update(len(columns) * units)
    return total / n


def _sample_losses(problem: Problem, outputs: Tensor, sample: Tensor) -> Tensor:
    """The loss of each row of `outputs` with the label of its sample."""
    labels = problem.y[sample]
    if problem.loss is F.cross_entropy:
        return F.cross_entropy(outputs, labels, reduction="none")
    return torch.func.vmap(lambda a, b: problem.loss(a[None], b[None]))(outputs, labels)
