"""What each layer of a model costs: weights, bytes, operations, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gsm_lab import checks
from gsm_lab.deploy.export import sizes
from gsm_lab.optim.layers import computed_kernels, kernels
from gsm_lab.training.fitting import evaluating

REST = "rest"  # the row of all that is no kernel
_Conv, _Transposed = nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd


def cost(model: nn.Module, sample: Tensor, repeats: int = 0) -> pd.DataFrame:
    """What the weights of each layer cost, frozen or not, a row each, and all else of the model in a row `rest`.

    Columns:
        weights, nonzeros: how many there are, and how many are not zero. (Of `rest`: all entries.)
        bytes_dense, bytes_sparse: in a file, as they are and in the sparse form of `export` (the smaller one there).
        operations_dense, operations_sparse: multiply-adds for one example, with all weights and with those that are not
            zero; of a convolution a weight costs as many as it has places, those over the padding among them. (Of
            `rest`: 0, as biases, norms and activations are not counted.)
        latency_us: with `repeats`, the median time of the layer's dense call on the whole sample, in microseconds; the
            layers take turns. `table.attrs` says for which batch and how many threads.

    Args:
        model: any module whose kernels (as for `gl.models.prunable`) are of Linear layers and (transposed)
            convolutions. It is not changed.
        sample: examples [n, ...], as `model(sample)` takes them.
        repeats: how often each layer is timed, 0 .. 2^31 - 1.

    Raises:
        TypeError: the model or the sample is none, or a kernel is of another kind of layer, or computed from others: it
            is named.
        ValueError: a sample of no examples, or a layer that `model(sample)` does not call.
    """
    checks.kind("model", model, nn.Module, "an nn.Module")
    checks.kind("sample", sample, Tensor, "a tensor [n, ...]")
    repeats = checks.integer("repeats", repeats, 0, checks.MOST)
    if not sample.ndim or not len(sample):
        raise ValueError(f"sample must hold at least one example, [n, ...], got {list(sample.shape)}")
    layers = _layers(model)
    with evaluating(model), torch.no_grad():
        places, calls = _called(model, sample, layers)
        taken = _timed(calls, repeats)
    held, rows = sizes(model), {}
    for name, modules in layers.items():
        kernel = modules[0].weight
        left, (dense, small) = int(kernel.detach().count_nonzero()), held.pop(name)
        each = places[name] / len(sample)
        rows[name] = [kernel.numel(), left, dense, small, each * kernel.numel(), each * left, *taken.get(name, [])]
    state = model.state_dict()
    others = [state[name] for name in held]
    entries = [sum(t.numel() for t in others), sum(int(t.count_nonzero()) for t in others)]
    rows[REST] = [*entries, *map(sum, zip(*held.values(), strict=True)), 0, 0] if held else [0] * 6
    rows[REST] += [math.nan] if repeats else []
    columns = ["weights", "nonzeros", "bytes_dense", "bytes_sparse", "operations_dense", "operations_sparse"]
    columns += ["latency_us"] if repeats else []
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("layer")
    whole = {name: "int64" for name in columns[:6] if (table[name] % 1 == 0).all()}
    table = table.astype(whole)
    table.attrs |= {"batch": len(sample), "threads": torch.get_num_threads()}
    return table


def _layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The layers by the name of their weights; tied ones have one name. Raises TypeError where there are others."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = dict[str, list[nn.Module]]()
    for path, module in model.named_modules():
        for computed in computed_kernels(module):
            name = f"{path}.{computed.name}".removeprefix(".")
            raise TypeError(f"{name} is computed from other tensors at each pass: {computed.way_out}")
        if isinstance(module, nn.Linear | _Conv):
            found.setdefault(names[id(module.weight)], []).append(module)
    if others := kernels(model).keys() - found.keys():
        raise TypeError(f"{min(others)} is a kernel of no Linear layer or convolution: its operations are not known")
    return found


def _called(
    model: nn.Module, sample: Tensor, layers: dict[str, list[nn.Module]]
) -> tuple[dict[str, int], dict[str, Callable[[], Any]]]:
    """At how many places the sample meets each kernel, and the first call of each layer, to be made again."""
    places, calls, hooks = dict.fromkeys(layers, 0), {}, []

    def heard(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            kernel, x = layer.weight, inputs[0] if inputs else named["input"]
            if isinstance(layer, nn.Linear):
                places[name] += x.numel() // kernel.shape[1]
            elif isinstance(layer, _Transposed):
                places[name] += x.numel() // kernel.shape[0]
            else:
                places[name] += output.numel() // kernel.shape[0]
            calls.setdefault(name, lambda: layer.forward(*inputs, **named))

        return hook

    try:
        for name, modules in layers.items():
            hooks += [module.register_forward_hook(heard(name), with_kwargs=True) for module in modules]
        model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    if silent := [name for name, n in places.items() if not n]:
        raise ValueError(f"model(sample) does not call the layer of {silent[0]}, so that its operations are not known")
    return places, calls


def _timed(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The median time of each call in microseconds; they take turns, after a turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats and repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter_ns()
            call()
            if turn:
                taken[name].append((time.perf_counter_ns() - began) / 1000)
    return {name: [statistics.median(times)] for name, times in taken.items()} if repeats else {}
