"""The true loss change of every single weight of a layer, at a fraction of a forward pass each.

Setting w[i, j] of a fully-connected layer to zero changes one pre-activation: z[i] by -w[i, j] a[j], with a the layer's
input. What follows until the next fully-connected layer acts on each unit alone (an activation, dropout, a norm), so
one pass of it serves all units at once; the next layer's pre-activations then change by one column of its matrix. Only
from there on the network is run, and only for the samples whose unit did change (a rectifier that stays shut leaves the
others as they were). Nothing is approximated.

The structure is not assumed but probed, on the model and the loss: that the tensor is used nowhere else, that units and
samples do not see each other on the way, and that the loss is a sum over samples (weighted, if need be). Layers without
it, such as convolutions, are evaluated one weight at a time, in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from gsm_lab.checks import flag, kind, one_of
from gsm_lab.studies.problem import Problem
from gsm_lab.studies.structure import NoSuchStructure, close, fully_connected, hooked, passed, used_once
from gsm_lab.training.outputs import answer
from gsm_lab.training.sample_gradients import shares, single_losses
from gsm_lab.training.threads import one_thread

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
    kind("problem", problem, Problem, "a Problem, as taylor.of_run makes one")
    one_of("layer", layer, problem.weights)
    hidden = not flag("progress", progress)
    weight = problem.weights[layer]
    with (
        torch.no_grad(),
        one_thread(),  # the tensors are small: several threads would mostly wait for each other
        problem.computing(),
        tqdm(total=weight.numel(), unit="weight", desc=layer, disable=hidden) as bar,
    ):
        chain = _chain(problem, layer)
        if chain is None:
            return _one_by_one(problem, layer, bar)
        return _by_units(problem, chain, bar)


def _one_by_one(problem: Problem, layer: str, bar: tqdm) -> Tensor:
    first = sum(problem.sizes[: list(problem.weights).index(layer)])
    weight = problem.weights[layer]
    changes = torch.empty(weight.numel(), dtype=weight.dtype)
    for part in torch.arange(weight.numel()).split(64):
        changes[part] = problem.changes_without((first + part).tolist())
        bar.update(len(part))
    return changes.view(weight.shape)


@dataclass
class _Chain:
    """A fully-connected layer, what acts on its units, the next one, and the rest of the network.

    inputs [n, fan-in] and outputs z [n, units] of the layer; `between` from [m, units] to [m, units]; `matrix` and
    `after`, the next layer's weights (None where the layer is the last) and outputs [n, units of it]; `rest` from the
    outputs of the next layer (or of this one) [m, ...] to those of the network. shares [n]: what the loss makes of the
    losses of single samples.
    """

    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    between: Callable[[Tensor], Tensor]
    matrix: Tensor | None
    after: Tensor
    rest: Callable[[Tensor], Tensor]
    shares: Tensor


class _Reached(NoSuchStructure):
    """A pass has come to where it was to end."""


def _with_output(problem: Problem, module: nn.Module, z: Tensor) -> Tensor:
    """What the network makes of `z` in place of the module's output; it is run on one sample up to there."""
    with hooked(module.register_forward_hook(lambda *_: z)):
        return _of_one(problem)


def _between(problem: Problem, module: nn.Module, following: nn.Module, z: Tensor) -> Tensor:
    """What arrives at `following` when `module` gives out `z`."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    with hooked(module.register_forward_hook(lambda *_: z), following.register_forward_pre_hook(stop)):
        try:
            _of_one(problem)
        except _Reached as reached:
            return reached.args[0]
    raise NoSuchStructure


def _of_one(problem: Problem) -> Tensor:
    """The answer to the first sample alone, which layers whose output is replaced do not see."""
    return answer(problem.model, problem.x[:1].clone(), problem.output)


def _chain(problem: Problem, layer: str) -> _Chain | None:
    """The chain that begins at `layer`, if the model, probed, behaves as one there."""
    linear = fully_connected(problem)
    module = linear.get(layer)
    if module is None or problem.draws:
        return None
    try:
        expected = problem.answer()
        inputs, outputs = used_once(problem, layer, module)
        parts = shares(problem.loss, expected, problem.y)
        if parts is None or not _losses_hold(problem, expected, parts):
            return None
        following = _following(problem, module, list(linear.values()))
        if following is None:
            end, after, matrix, between = module, outputs, None, lambda z: z
        else:
            end, after, matrix = following, passed(problem, following)[1], following.weight
            between = partial(_between, problem, module, following)
        rest = partial(_with_output, problem, end)
        chain = _Chain(module.weight, inputs, outputs, between, matrix, after, rest, parts)
        return chain if _holds(chain, expected) else None
    except (NoSuchStructure, TypeError, AttributeError, RuntimeError, ValueError, LookupError):
        return None  # the network does not take what a chain would


def _losses_hold(problem: Problem, answers: Tensor, parts: Tensor) -> bool:
    """Whether the losses of single samples can be had for many at once, and add up to the loss."""
    single = _sample_losses(problem, answers, torch.arange(len(answers)))
    total = float(torch.where(parts != 0, parts * single, 0).sum())
    return single.shape == parts.shape and abs(total - problem.value) <= problem.floor


def _following(problem: Problem, module: nn.Module, linear: list[nn.Module]) -> nn.Module | None:
    """The fully-connected layer that is reached next after `module`."""
    order: list[nn.Module] = []
    with hooked(*(m.register_forward_hook(lambda m, *_: order.append(m)) for m in linear)):
        _of_one(problem)
    place = order.index(module)
    return order[place + 1] if place + 1 < len(order) else None


def _holds(chain: _Chain, expected: Tensor) -> bool:
    """Whether the chain gives the network's own outputs, for the batch as it is and where single units are moved.

    Also for samples in another order and number, each of them as it would be by itself.
    """
    random = torch.Generator().manual_seed(0)
    n = len(expected)
    some = torch.randint(n, (n + n // 2 + 1,), generator=random).to(expected.device)
    if not close(chain.rest(chain.after.clone()), expected) or not _by_rows(chain.rest, chain.after, some, random):
        return False
    if chain.matrix is None:
        return True
    noise = torch.randn(chain.outputs.shape, generator=random).to(chain.outputs)
    units = (torch.rand(chain.outputs.shape[1], generator=random) < 0.5).to(chain.outputs.device)
    plain, moved = chain.between(chain.outputs.clone()), chain.between(chain.outputs + noise)
    partly = chain.between(chain.outputs + noise * units)
    alone = torch.equal(partly, torch.where(units, moved, plain))  # each unit depends on itself alone
    bias = chain.after - plain @ chain.matrix.T
    return alone and close(bias, bias[:1].expand_as(bias)) and _by_rows(chain.between, chain.outputs, some, random)


def _by_rows(function: Callable[[Tensor], Tensor], rows: Tensor, some: Tensor, random: torch.Generator) -> bool:
    """Whether what a function makes of each row depends on that row alone."""
    moved = rows + torch.randn(rows.shape, generator=random).to(rows) * rows.std(correction=0)
    every, chosen = function(moved.clone()), function(moved[some])
    return close(chosen, every[some]) and close(function(moved[:1].clone()), every[:1])


def _by_units(problem: Problem, chain: _Chain, bar: tqdm) -> Tensor:
    n, even = len(problem.x), bool((chain.shares == 1 / len(problem.x)).all())
    units, fan_in = chain.weight.shape
    base = _sample_losses(problem, chain.rest(chain.after.clone()), torch.arange(n))
    plain = chain.between(chain.outputs.clone())
    total = torch.zeros_like(chain.weight)
    for columns in torch.arange(fan_in).split(max(1, _NUMBERS // (n * units))):
        # all units at once, each without its weight from input j: [columns, n, units]
        without = chain.inputs[:, columns].T[:, :, None] * chain.weight[:, columns].T[:, None, :]
        moved = chain.between((chain.outputs - without).reshape(-1, units)).view(without.shape) - plain
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
            if not even:
                part = chain.shares[sample]
                change = torch.where(part != 0, part * change, 0)  # the loss of an ignored sample alone may be nan
            total[unit].index_add_(0, columns[column], change)
        bar.update(len(columns) * units)
    return total / n if even else total


def _sample_losses(problem: Problem, outputs: Tensor, sample: Tensor) -> Tensor:
    """The loss of each row of `outputs` with the label of its sample."""
    return single_losses(problem.loss, outputs, problem.y[sample])
