"""Save and resume a run to the bit.

A run's folder holds

    checkpoint.safetensors   the run: weights, momentum, generator, history; as JSON in its header knobs and counters
    knobs.json               the settings, to read
    history.csv              a row a step, to read

One file is the truth, written beside its place, flushed, and moved there in one go, so a folder always holds a whole
run: the old one or the new one. It carries a SHA-256 of its content. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab.knobs import KNOBS
from gsm_lab.optim.layers import kernels
from gsm_lab.optim.prunable import exactly
from gsm_lab.optim.ranks import is_distributed

if TYPE_CHECKING:
    from gsm_lab.data import Dataset
    from gsm_lab.run import Run

FILE = "checkpoint.safetensors"
VERSION = 1


class CheckpointError(ValueError):
    """A folder that holds no whole run, or one of another model or data set; the message says which and what to do."""


def save(run: Run, folder: Path) -> Path:
    """Write `run` to `folder` (made if need be), replacing what an earlier save left there; returns the folder.

    Of a run over ranks, each of them has to call it; rank 0 writes, the whole of the run in the same format.
    """
    tensors, plain = _state(run)
    if run.rank > 0:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(plain)
    content = {"gsm_lab": header, "sha256": _digest(tensors, header)}
    write_atomically(folder / FILE, safetensors_bytes(tensors, content))
    write_atomically(folder / "knobs.json", (json.dumps(run.knobs, indent=2) + "\n").encode())
    write_atomically(folder / "history.csv", run.history.frame().to_csv(index=False).encode())
    return folder


def resume(
    kind: type[Run],
    folder: Path,
    model: nn.Module | None,
    data: Dataset | None,
    loss: Callable[..., Tensor],
    output: Callable[..., Any] | None = None,
) -> Run:
    """The run in `folder`, as one of that kind; see `Run.resume`."""
    tensors, plain = _read(folder / FILE)
    method = plain.get("method", "gsm")  # absent where nothing else could be saved
    if method != kind.method:
        raise CheckpointError(f"the run in {folder} is one of {method!r}: gsm_lab.methods.kind({method!r}).resume(...)")
    own_loss = None if loss is cross_entropy else loss
    for what, given in (("model", model), ("data", data), ("loss", own_loss), ("output", output)):
        name = plain.get(f"own_{what}")  # own_output is absent where there could be none
        if name and given is None:
            raise CheckpointError(
                f"the {what} of the run in {folder} is not in it ({name}, not one of gsm_lab's); "
                f"give it again: resume(..., {what}=...)"
            )
    # what came later than the file is not set to what works best now, but to what leaves things as they were
    own = {option.name: option.default for option in kind.options} | plain.get("options", {})
    knobs = {name: k.default for name, k in KNOBS.items()} | plain["knobs"]
    knobs = {name: v for name, v in knobs.items() if name not in ("model", "data", *kind.means_nothing)}
    names = plain["knobs"]["model"], plain["knobs"]["data"]
    sources = model if model is not None else names[0], data if data is not None else names[1]
    picks = {} if model is None else _picks(model, plain["history"]["layers"])
    run = kind(*sources, loss=loss, output=output, **picks, **knobs, **own)
    if run.data.digest != plain["data_digest"]:
        raise CheckpointError(
            f"the run in {folder} was trained on other data: digest {plain['data_digest']}, "
            f"this {run.data.name!r} has {run.data.digest}"
        )
    _restore(run, tensors, plain, folder)
    return run


def _picks(model: nn.Module, layers: dict[str, int]) -> dict[str, list[str]]:
    """What to give as `include` and `exclude` for just these layers to compete; nothing where they do of themselves."""
    if list(layers) == list(kernels(model)) or not layers.keys() <= dict(model.named_parameters()).keys():
        return {}
    return exactly(model, layers)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment `path` holds either all of the old content or all of the new."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def _state(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    opt = run.opt.state_dict()
    arrays, history = run.history.state()
    tensors = {f"model/{name}": t for name, t in run.model.state_dict().items()}
    for room, name in _STATE.items():
        tensors |= {f"{room}/{i}": state[name] for i, state in opt["state"].items() if state.get(name) is not None}
    tensors |= {f"method/{name}": t for name, t in run.method_state().items()}
    if run.frozen:
        tensors["gate/candidates"] = run.opt.candidates
    tensors |= {f"history/{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    tensors["random/run"] = run.random_state
    if run._initial is not None:
        tensors |= {f"initial/{name}": t for name, t in run._initial.items()}
    own_model = None if isinstance(run.source_model, str) else run.knobs["model"]
    own_data = None if isinstance(run.source_data, str) else run.data.name
    own_loss = None if run.loss is cross_entropy else getattr(run.loss, "__name__", type(run.loss).__name__)
    plain = {
        "version": VERSION,
        "knobs": run.knobs,
        "method": run.method,
        "options": run.own,
        "own_model": own_model,
        "own_data": own_data,
        "own_loss": own_loss,
        "own_output": None if run.output is None else getattr(run.output, "__name__", type(run.output).__name__),
        "given": run._given,
        "data_digest": run.data.digest,
        "history": history,
        "torch": torch.__version__,
        "shorn": run.shorn,
        **{name: getattr(run, name) for name in _COUNTERS},
    }
    kept = {name: copied for name, t in tensors.items() if (copied := _whole(t, run.rank == 0)) is not None}
    return kept, plain


def _whole(t: Tensor, wanted: bool) -> Tensor | None:
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


_COUNTERS = ("steps", "dense_steps", "base", "magnitude")
_STATE = {"momentum": "momentum_buffer", "average": "gradient_average"}  # what the optimizer keeps for each parameter


def _restore(run: Run, tensors: dict[str, Tensor], plain: dict[str, Any], folder: Path) -> None:
    part: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        room, rest = name.split("/", 1)
        part.setdefault(room, {})[rest] = tensor
    if plain["history"]["layers"] != run.history.layers:
        raise CheckpointError(
            f"the run in {folder} has another model: its prunable layers are {plain['history']['layers']}, "
            f"the given one has {run.history.layers}"
        )
    try:
        fill(run.model, part["model"])
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit the model: {error}") from None
    for name in _COUNTERS:
        setattr(run, name, plain[name])
    run.random_state = part["random"]["run"].clone()
    run._given = {name: value for name, value in plain["given"].items() if name not in run.means_nothing}
    if run._initial is not None:
        run._initial = part.get("initial", run._initial)  # absent where a model was given in place of a named one
    if "gate" in part:
        if any(map(is_distributed, run.opt.param_groups[0]["params"])):
            raise CheckpointError(
                f"the active set of the run in {folder} is frozen, or was cut on its way, and goes on only where no "
                "weights are spread over ranks: in one process, or with DDP"
            )
        run.opt.candidates, run.frozen = part["gate"]["candidates"].clone(), True
        run.shorn = plain.get("shorn", False)  # absent where no run could be cut on its way
        run._kept = int(run.opt.candidates.sum())
    run.apply_knobs()
    params = [p for group in run.opt.param_groups for p in group["params"]]
    for room, name in _STATE.items():
        for i, buffer in part.get(room, {}).items():
            p = params[int(i)]
            run.opt.state[p][name] = torch.empty_like(p).copy_(part_of(buffer, p))
    run.restore_method(part.get("method", {}))
    arrays = {name: t.numpy() for name, t in part["history"].items()}
    run.history.restore(arrays, plain["history"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"there is no run in {path.parent}: {path.name} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged (cut short?) and cannot be resumed: {error}") from None
    header = metadata.get("gsm_lab", "")
    if metadata.get("sha256") != _digest(tensors, header):
        raise CheckpointError(f"{path} is damaged or not a run of gsm_lab: its content does not match its checksum")
    plain = json.loads(header)
    if plain.get("version") != VERSION:
        raise CheckpointError(f"{path} has format {plain.get('version')!r}; this gsm_lab reads format {VERSION}")
    return tensors, plain


def _digest(tensors: dict[str, Tensor], header: str) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return sha.hexdigest()
