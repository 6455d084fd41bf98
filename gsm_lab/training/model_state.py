"""The state of a model: its tensors, whole where ranks hold parts of them, and what its modules keep beside them."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from gsm_lab.optim.ranks.group import is_distributed


def whole_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of `model.state_dict()`, and what else is in it (`get_extra_state` of a module), each by name.

    Raises ValueError for what is neither a tensor nor the same after it was written as JSON and read again.
    """
    state = model.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise ValueError(
                f"model keeps {name!r}, a {type(value).__name__} that a checkpoint cannot hold; valid from "
                "get_extra_state: a tensor, or lists, dicts with text as keys, text, finite numbers, true, false, None"
            )
    return {name: t for name, t in state.items() if name not in extra}, extra


def whole(t: Tensor, wanted: bool) -> Tensor | None:
    """A copy on the CPU, gathered where ranks hold parts of it (a DTensor); None where it is not wanted."""
    if is_distributed(t):
        t = t.full_tensor()
    # safetensors refuses tensors that share memory (tied weights) and strides; a copy has neither
    return t.detach().cpu().clone(memory_format=torch.contiguous_format) if wanted else None


def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """`model.load_state_dict` from whole tensors, each rank taking its part where the model is sharded."""
    own = model.state_dict()
    model.load_state_dict({name: part_of(t, own.get(name)) for name, t in state.items()})


def part_of(whole: Tensor, like: Tensor | None) -> Tensor:
    """What this rank holds of a tensor that is laid out like `like`: the tensor itself unless that is a DTensor."""
    if not is_distributed(like) or is_distributed(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(like.device_mesh.device_type)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # every rank has it: no talk
