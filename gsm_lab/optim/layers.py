"""Which tensors of a model are kernels, told by the modules that own them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)
_NEVER = (nn.Embedding, nn.EmbeddingBag, *_NORMS)

# What the parameter of a layer that PyTorch does not know is called where it is a kernel, and where it is none.
_KERNEL = {"weight", "weights", "kernel", "kernels", "proj", "projection", "lora", "w"}
_NO_KERNEL = ("position", "token", "embed", "scale", "gain", "gamma", "beta", "bias", "norm", "table", "magnitude")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[a-z]+")


def kernels(model: nn.Module) -> dict[str, nn.Parameter]:
    """The kernels of a model by name, in the order of `named_parameters()`; a tied tensor counts once.

    A kernel is

    - `weight` of Linear, Bilinear, all convolutions and transposed convolutions, and of classes derived from them;
    - the `weight_...` of recurrent layers and cells (input to hidden, hidden to hidden, projections);
    - the input projections of `MultiheadAttention` (its output projection is a Linear);
    - of any other module, a parameter with two dimensions or more that are greater than one, and with `weight`,
      `kernel`, `proj`, `projection`, `lora` or `w` as a word of its name (`weight`, `base_weight`, `W1`,
      `gate_up_proj`), such as GPT-2's `Conv1D` has, unless its name says position, token, embedding, scale, gain,
      bias, norm or table. (Of a `ParameterList` or `ParameterDict`, the name of the list counts.)

    None is a tensor that some embedding or normalisation layer owns, by its class or by `Norm` or `Embed` in the name
    of the class: also where an output layer is tied to it. Nor is what a parametrisation computes a kernel from.

    Raises:
        ValueError: a parameter is lazy: it has no shape yet.
    """
    found, never, modules = set[int](), set[int](), dict(model.named_modules())
    for path, module in modules.items():
        computed, kind = bool(computed_kernels(module)), type(module)
        owner, listed = module, ""
        if isinstance(module, nn.ParameterList | nn.ParameterDict):  # is to its owner what a tensor would be
            above, _, listed = path.rpartition(".")
            owner, listed = modules[above], f"{listed}_"
        for name, p in module.named_parameters(recurse=False):
            if is_lazy(p):
                raise ValueError(
                    f"model has a lazy parameter, {'.'.join(filter(None, (path, name)))!r} of a {kind.__name__}, whose "
                    "shape is known once the model has seen a batch: call model(x) first"
                )
            if _embeds_or_normalises(owner):
                never.add(id(p))
            elif not computed and (_is_kernel(module, name) or _is_called_kernel(listed + name, p)):
                found.add(id(p))
        if parametrize.is_parametrized(module):
            never.update(id(p) for p in module.parametrizations.parameters())
    return {name: p for name, p in model.named_parameters() if id(p) in found - never}


class Computed(NamedTuple):
    """A kernel that is no parameter but computed at each pass: from which parameters, and how to end that."""

    name: str
    sources: list[nn.Parameter]
    way_out: str


def computed_kernels(module: nn.Module) -> list[Computed]:
    """Kernels that this very module computes: by a parametrisation, a norm of weights, or a mask of `utils.prune`."""
    if _embeds_or_normalises(module):
        return []
    found, own = [], dict(module.named_parameters(recurse=False))
    parametrised = module.parametrizations if parametrize.is_parametrized(module) else {}
    for name, chain in parametrised.items():
        way = f"call torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) first"
        found.append(Computed(name, list(chain.parameters()), way))
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    sources = {name.rpartition("_")[0] for name in own if name.endswith(("_orig", "_v"))}
    for name in sorted(sources.union(_expected(module)) - {*parametrised, *own}):
        if not isinstance(vars(module).get(name), Tensor):
            continue
        way = "make it a parameter of the layer"
        if f"{name}_mask" in buffers:
            way = f"call torch.nn.utils.prune.remove(layer, {name!r}) first"
        elif f"{name}_g" in own:
            way = f"call torch.nn.utils.remove_weight_norm(layer, {name!r}) first"
        elif f"{name}_u" in buffers:
            way = f"call torch.nn.utils.remove_spectral_norm(layer, {name!r}) first"
        found.append(Computed(name, [p for source, p in own.items() if source.startswith(f"{name}_")], way))
    return [c for c in found if _is_kernel(module, c.name) or _KERNEL & {*_words(c.name)}]


def _is_kernel(module: nn.Module, name: str) -> bool:
    """Whether the module is one of PyTorch's layers, or derived from one, and this is what its kernel is called."""
    return (
        (isinstance(module, _LINEAR) and name == "weight")
        or (isinstance(module, _RECURRENT) and name.startswith("weight_"))
        or (isinstance(module, nn.MultiheadAttention) and name in _ATTENTION)
    )


def _expected(module: nn.Module) -> list[str]:
    """What the kernels of one of PyTorch's layers are called."""
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight_")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    return ["weight", *_ATTENTION]


def _is_called_kernel(name: str, p: Tensor) -> bool:
    """Whether a parameter of any other module is a kernel by its name and shape."""
    words = [*_words(name)]
    return (
        sum(size > 1 for size in p.shape) >= 2
        and bool(_KERNEL & {*words})
        and not any(word == "pos" or word.startswith(_NO_KERNEL) for word in words)
    )


def _words(name: str) -> Iterator[str]:
    return (word.lower() for word in _WORD.findall(name))


def _embeds_or_normalises(module: nn.Module) -> bool:
    if isinstance(module, _NEVER):
        return True
    if isinstance(module, (*_LINEAR, *_RECURRENT, nn.MultiheadAttention)):
        return False
    called = getattr(module, "original_name", type(module).__name__).lower()  # scripted modules have one class
    return ("norm" in called or "embed" in called) and not any(x in called for x in ("linear", "conv", "dense"))
