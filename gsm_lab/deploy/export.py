"""A model's file: written in one go, and read back to the bit."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from gsm_lab import checks
from gsm_lab.deploy.sparse import PARTS, joined, size, split
from gsm_lab.optim.ranks.group import is_distributed
from gsm_lab.training.files import write_atomically, writing
from gsm_lab.training.tensor_files import Damaged, checked, content_of

_FORM = 1
_SUFFIX = ".safetensors"
_DTYPES = ("float32", "float16", "bfloat16")


def export(model: nn.Module, file: str | os.PathLike[str], dtype: str | None = None) -> int:
    """Write a model's tensors to a sparse safetensors file; returns its size in bytes.

    Of tensors with many zeros only the other entries are written (see `gsm_lab.deploy.sparse`), so cut before:
    `run.cut()` or `gl.cut(model, compression=60)`. The sign of such a zero is not kept, everything else is, to the bit.

    Args:
        model: any module. It is not changed.
        file: ends in `.safetensors`. What was there is replaced in one go, or not at all.
        dtype: "float32", "float16" or "bfloat16", for all floats; None leaves each as it is.

    Raises:
        TypeError: model is no module, or a tensor of it is spread over ranks.
        ValueError: another ending or dtype; a tensor holds NaN or infinity, or would in that dtype.
        OSError: the file cannot be written.
    """
    path = checks.path("file", file)
    if path.suffix != _SUFFIX:
        raise ValueError(f"file must end in {_SUFFIX}, got {checks.shown(path.name)}")
    tensors, tied = _tensors(model, dtype)
    shapes, held = {}, {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            as_what = f" as {dtype}" if torch.isfinite(model.state_dict()[name]).all() else ""
            raise ValueError(f"{name} holds NaN or infinity{as_what}: nothing was written")
        if (parts := split(tensor)) is None:
            held[name] = tensor
        else:
            shapes[name] = list(tensor.shape)
            held |= {f"{name}.{part}": value for part, value in parts.items()}
    about = {"form": _FORM, "sparse": shapes, "tied": tied}
    content = content_of(held, {"gsm_lab": json.dumps(about, separators=(",", ":"))})
    with writing(path):
        write_atomically(path, content)
    return len(content)


def load(file: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """The tensors of a file that `export` wrote, dense again, by name as in `model.state_dict()`.

    Args:
        file: as `export` wrote it.
        model: gets the tensors; it must have the names and shapes of the file's, and dtypes that hold them exactly.

    Raises:
        TypeError: model is no module, or a tensor of it is spread over ranks.
        ValueError: no such file's content, another version's, damaged, or of another model. Nothing is changed then.
        OSError: the file cannot be read.
    """
    path = checks.path("file", file)
    if model is not None:
        checks.kind("model", model, nn.Module, "an nn.Module")
    try:
        tensors = _read(*checked(path))
    except Damaged as error:
        raise ValueError(f"{path} is no whole file of `export`: {error}") from None
    if model is not None:
        _fits(path, tensors, own := model.state_dict())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
    return tensors


def _tensors(model: nn.Module, dtype: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file holds of a model, on the CPU, and of tied tensors which name stands for which."""
    checks.kind("model", model, nn.Module, "an nn.Module")
    kind = None if dtype is None else getattr(torch, checks.one_of("dtype", dtype, _DTYPES))
    found, tied, first = dict[str, Tensor](), dict[str, str](), dict[tuple[Any, ...], str]()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} of the model is no tensor but a {type(tensor).__name__}: a file cannot hold it")
        if is_distributed(tensor):
            raise TypeError(f"{name} is spread over ranks: gather the model first (run.save does)")
        if tensor.numel() and (other := first.setdefault(_key(tensor), name)) != name:
            tied[name] = other
            continue
        here = tensor.detach().cpu()
        found[name] = here.to(kind) if kind is not None and here.is_floating_point() else here
    return found, tied


def _read(held: dict[str, Tensor], about: dict[str, str]) -> dict[str, Tensor]:
    """The tensors by name. Raises Damaged."""
    try:
        said = json.loads(about["gsm_lab"])
        if said["form"] != _FORM:
            raise Damaged(f"its form is {checks.shown(said['form'])}, this gsm_lab reads {_FORM}")
        shapes, tied = dict(said["sparse"]), dict(said["tied"])
        tensors = dict(held)
        for name, shape in shapes.items():
            if len(shape) < 2 or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"its shape is {checks.shown(shape)}")
            tensors[name] = joined({part: tensors.pop(f"{name}.{part}") for part in PARTS}, shape)
        return tensors | {name: tensors[other] for name, other in tied.items()}
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"its header and tensors do not go together ({error})") from None


def _key(t: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one."""
    return t.data_ptr(), t.shape, t.stride(), t.dtype, t.device


def _fits(path: Any, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raises ValueError, or TypeError for a tensor over ranks, naming what does not."""
    first = dict[tuple[Any, ...], str]()
    if missing := own.keys() - tensors.keys():
        raise ValueError(f"{path} is of another model: it has no {min(missing)}")
    if more := tensors.keys() - own.keys():
        raise ValueError(f"{path} is of another model, which has {min(more)}")
    for name, tensor in tensors.items():
        if is_distributed(own[name]):
            raise TypeError(f"{name} is spread over ranks: load into the model before it is")
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{path} is of another model: {name} is {list(tensor.shape)} there, {list(own[name].shape)} here"
            )
        if torch.promote_types(tensor.dtype, own[name].dtype) != own[name].dtype:
            raise ValueError(f"{path} holds {name} as {tensor.dtype}, which {own[name].dtype} of the model cannot hold")
        if tensor.numel() and not torch.equal(tensor, tensors[other := first.setdefault(_key(own[name]), name)]):
            raise ValueError(f"{path} is of another model: {name} is {other} here, and another tensor there")


def sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Bytes of each tensor that a file holds, dense and in the sparse form, by name; the header comes on top."""
    found = {}
    for name, tensor in _tensors(model, None)[0].items():
        parts = split(tensor)
        found[name] = size([tensor]), size([tensor] if parts is None else parts.values())
    return found
