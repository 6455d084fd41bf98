"""The state of a run: tensors and plain values from which it goes on to the bit, and back from these to a run.

Names of tensors begin with what they belong to: `model/`, `momentum/`, `average/`, `method/`, `gate/`, `history/`,
`random/`, and `initial/` for the weights that a model came with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gsm_lab.knobs import KNOBS
from gsm_lab.metric import ACCURACY, Metric
from gsm_lab.optim.groups import exactly
from gsm_lab.optim.layers import kernels
from gsm_lab.optim.ranks.group import is_distributed
from gsm_lab.training import schema
from gsm_lab.training.checkpoint import BESIDE, VERSION, CheckpointError, as_expected
from gsm_lab.training.derivatives import named
from gsm_lab.training.measuring import chosen
from gsm_lab.training.method import Method
from gsm_lab.training.parts import Parts

_COUNTERS = ("steps", "dense_steps", "base", "magnitude")
_BUFFERS = {"momentum": "momentum_buffer", "average": "gradient_average"}  # what the optimizer keeps of each parameter


def state_of(run: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, whole, on the CPU, and plain values; over ranks, all call it, and rank 0 gets the tensors.

    Raises ValueError where the model keeps something that cannot be kept here, see `whole_state`.
    """
    opt = run.opt.state_dict()
    arrays, history = run.history.state()
    model, extra = whole_state(run.model)
    own, about = run.method.state(run)
    tensors = {f"model/{name}": t for name, t in model.items()}
    for room, name in _BUFFERS.items():
        tensors |= {f"{room}/{i}": state[name] for i, state in opt["state"].items() if state.get(name) is not None}
    tensors |= {f"{run.method.room}/{name}": t for name, t in own.items()}
    tensors |= {f"history/{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    tensors["random/run"] = run.random_state
    if run.initial is not None:
        tensors |= {f"initial/{name}": t for name, t in run.initial.items() if isinstance(t, Tensor)}
    plain = {
        "version": VERSION,
        "knobs": run.knobs,
        "method": run.method.name,
        "options": run.options,
        "own_model": None if isinstance(run.source_model, str) else run.settings.model,
        "own_data": None if isinstance(run.source_data, str) else run.data.name,
        "own_loss": None if run.loss is chosen(run.data, None, None)[0] else named(run.loss),
        "own_output": None if run.output is None else named(run.output),
        **_of_metric(run),
        "given": run.given,
        "picks": exactly(run.model, run.history.layers) if any(run.picks.values()) else {},
        "data_digest": run.data.digest,
        "history": history,
        "torch": torch.__version__,
        "threads": run.threads,
        "waiting": run.waiting,
        "shorn": False,
        "finished": run.base is not None and run.steps >= run.planned,
        **about,
        **({"extra": extra} if extra else {}),
        **{name: getattr(run, name) for name in _COUNTERS},
    }
    first = run.placement.rank == 0
    kept = {name: copied for name, t in tensors.items() if (copied := whole(t, first)) is not None}
    return kept, plain


def _of_metric(run: Parts) -> dict[str, str]:
    """What says by which metric a run is measured, and whether it has to be given again; nothing for accuracy."""
    if run.metric.is_accuracy:
        return {}
    own = {} if run.metric == chosen(run.data, None, None)[1] else {"own_metric": run.metric.name}
    return {"metric": str(run.metric), **own}


def readable(run: Parts) -> dict[str, bytes]:
    """The contents of the files that are there to be read beside a checkpoint, by name."""
    knobs = json.dumps(run.knobs, indent=2) + "\n"
    return dict(zip(BESIDE, (knobs.encode(), run.history.frame().to_csv(index=False).encode()), strict=True))


def arguments_of(
    plain: Mapping[str, Any], given: Mapping[str, Any], method: Method, where: str
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """What to make the run with: its model and data, and the other arguments of `Run`.

    Args:
        plain: the plain values of a state.
        given: `model`, `data`, `loss`, `output` and `metric`, of the user's own, or None.
        method: what decides who stays.
        where: where the state is, for errors: "the run in runs/a".

    Raises CheckpointError where something of the user's own has to be given and is not, or is of another kind.
    """
    name_of_method = plain.get("method", "gsm")  # absent where nothing else could be saved
    if name_of_method != method.name:
        raise CheckpointError(
            f"{where} is one of {name_of_method!r}, not of {method.name!r}: gsm_lab.methods.resume(...) takes any"
        )
    for what, value in given.items():
        name = plain.get(f"own_{what}")  # own_output is absent where there could be none
        if name and value is None:
            raise CheckpointError(
                f"the {what} of {where} is not in it ({name}, not one of gsm_lab's); give it again: "
                f"resume(..., {what}=...)"
            )
    names = {what: plain["knobs"][what] for what in ("model", "data")}
    for what, name in names.items():
        if given[what] is None and name not in KNOBS[what].choices:
            raise CheckpointError(f"{where} has the {what} {name!r}, which this gsm_lab does not know")
    # what came later than the state is not set to what works best now, but to what leaves things as they were
    own = {option.name: option.default for option in method.options} | plain.get("options", {})
    for option in method.options:
        as_expected(where, option.check, own[option.name])
    if unknown := own.keys() - {option.name for option in method.options}:
        raise CheckpointError(f"{where} has options that {method.name!r} does not know: {', '.join(unknown)}")
    knobs = {name: k.default for name, k in KNOBS.items()} | plain["knobs"]
    knobs = {name: v for name, v in knobs.items() if name not in ("model", "data", *method.ignores)}
    model = given["model"]
    picks = plain.get("picks", {}) if model is None else _picks(model, plain["history"]["layers"])
    sources = tuple(name if given[what] is None else given[what] for what, name in names.items())
    return sources, {**picks, **knobs, **own}


def _picks(model: nn.Module, layers: dict[str, int]) -> dict[str, list[str]]:
    """What to give as `include` and `exclude` for just these layers to compete; nothing where they do of themselves."""
    if list(layers) == list(kernels(model)) or not layers.keys() <= dict(model.named_parameters()).keys():
        return {}
    return exactly(model, layers)


def restore(run: Parts, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], where: str) -> None:
    """Have a run that was just made go on from a state. Raises CheckpointError where they do not fit together."""
    if run.data.digest != plain["data_digest"]:
        raise CheckpointError(
            f"{where} was trained on other data: digest {plain['data_digest']}, this {run.data.name!r} has "
            f"{run.data.digest}"
        )
    measured_by = as_expected(where, Metric.of, plain["metric"]) if "metric" in plain else ACCURACY
    if not measured_by.same_scale(run.metric):
        raise CheckpointError(f"{where} was measured by {measured_by}, and is to go on with metric {run.metric}")
    if plain["history"]["layers"] != run.history.layers:
        raise CheckpointError(
            f"{where} has another model: its prunable layers are {plain['history']['layers']}, "
            f"the given one has {run.history.layers}"
        )
    part = as_expected(where, schema.must_fit, run, tensors, plain)
    try:
        fill(run.model, part["model"] | plain.get("extra", {}))
    except (RuntimeError, KeyError, TypeError) as error:  # also what set_extra_state says
        raise CheckpointError(f"the weights of {where} do not fit the model: {error}") from None
    for name in _COUNTERS:
        setattr(run, name, plain[name])
    run.random_state = part["random"]["run"]
    run.given = {name: value for name, value in plain["given"].items() if name not in run.method.ignores}
    if run.initial is not None:
        # Of a named model that was given as a module there is none: then that module's own.
        run.initial = run.initial | part["initial"]
    try:
        run.method.restore(run, part.get(run.method.room, {}), plain)
    except ValueError as error:
        raise CheckpointError(f"{where} cannot be resumed here: {error}") from None
    except (KeyError, IndexError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"what {run.method.name!r} keeps of {where} is not as expected ({what})") from None
    run.apply_settings()
    params = [p for group in run.opt.param_groups for p in group["params"]]
    for room, name in _BUFFERS.items():
        for i, buffer in sorted(part[room].items(), key=lambda item: int(item[0])):
            p = params[int(i)]
            run.opt.state[p][name] = torch.empty_like(p).copy_(part_of(buffer, p))
    arrays = {name: t.numpy() for name, t in part["history"].items()}
    run.history.restore(arrays, plain["history"])


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
