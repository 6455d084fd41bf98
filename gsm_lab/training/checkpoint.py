"""Save and resume a run to the bit.

A run's folder holds

    checkpoint.safetensors   the run: weights, momentum, generator, history; as JSON in its header knobs and counters
    knobs.json               the settings, to read
    history.csv              a row a step, to read

One file is the truth, written beside its place, flushed, and moved there in one go, so a folder always holds a whole
run: the old one or the new one. It carries a SHA-256 of its content, and those of the two files beside it, which can be
made again from it. Nothing in it is code.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab import checks
from gsm_lab.knobs import KNOBS
from gsm_lab.optim.layers import kernels
from gsm_lab.optim.prunable import exactly
from gsm_lab.optim.ranks import is_distributed
from gsm_lab.training import schema, tensor_files
from gsm_lab.training.files import held, remove_leftovers, sha256, write_atomically, writing
from gsm_lab.training.interrupts import uninterrupted
from gsm_lab.training.model_state import fill, part_of, whole, whole_state
from gsm_lab.training.tensor_files import digest as _digest

if TYPE_CHECKING:
    from gsm_lab.data import Dataset
    from gsm_lab.training.run import Run

FILE = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
BESIDE = ("knobs.json", "history.csv")  # to read
DERIVED = (WEIGHTS, "report.html")  # of a run that has come to its end
KEPT = (FILE, *BESIDE, *DERIVED)  # all that a run's folder has
VERSION = 1
_one_at_a_time = threading.RLock()  # of the saves of this process: two into one folder would mix their files


class CheckpointError(ValueError):
    """A folder that holds no whole run, or one of another model or data set; the message says which and what to do."""


def save(run: Run, folder: Path, note: dict[str, Any] | None = None) -> Path:
    """Write `run` to `folder` (made if need be), replacing what an earlier save left there; returns the folder.

    Of a run over ranks, each of them has to call it; rank 0 writes, the whole of the run in the same format. An
    interrupt during a save is raised when that is done. `note`: plain values to keep with it, for `note_of`.

    Raises:
        FolderInUse: another process trains into that folder.
        FileExistsError: there is no run in it, but a file of a name that a run writes: somebody's own.
        OSError: it cannot be written. What an earlier save left is whole. (The two above are OSErrors as well.)
        ValueError: the model keeps something that cannot be kept here, see `gsm_lab.training.model_state.whole_state`.
    """
    with uninterrupted():
        tensors, plain = _state(run)
        if run.rank > 0:
            return folder
        with _one_at_a_time, held(folder) as unasked:
            if unasked and not (folder / FILE).exists() and (own := [n for n in BESIDE if (folder / n).exists()]):
                raise FileExistsError(
                    f"{folder} holds {' and '.join(own)}, but no run whose they would be, and a save would replace "
                    f"{'it' if len(own) == 1 else 'them'}: save to another folder, or move {', '.join(own)} away"
                )
            with writing(folder):
                contents = readable(run)
                plain["beside"] = {name: sha256(content) for name, content in contents.items()}
                header = json.dumps(plain | ({} if note is None else {"note": note}))
                remove_leftovers(folder, KEPT)
                checksum = {"gsm_lab": header, "sha256": _digest(tensors, header)}
                write_atomically(folder / FILE, tensor_files.packed(tensors, checksum))
                for name, content in contents.items():
                    write_atomically(folder / name, content)
    return folder


def readable(run: Run) -> dict[str, bytes]:
    """The contents of the files that are there to be read, by name."""
    knobs = json.dumps(run.knobs, indent=2) + "\n"
    return dict(zip(BESIDE, (knobs.encode(), run.history.frame().to_csv(index=False).encode()), strict=True))


def note_of(folder: Path) -> dict[str, Any]:
    """What was given to `save` as a note. Raises CheckpointError."""
    note = read(folder).get("note")
    return note if isinstance(note, dict) else {}


def read(folder: Path) -> dict[str, Any]:
    """The plain values of the run in a folder: knobs, counters and the like. Raises CheckpointError."""
    return _read(folder / FILE)[1]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a `weights.safetensors` that a finished run left, by name, for `model.load_state_dict`.

    Args:
        path: the file, or the folder of the run.

    Raises CheckpointError for a file that is damaged, or has no checksum, and OSError where there is none.
    """
    path = checks.path("path", path)
    path = path / WEIGHTS if path.is_dir() else path
    try:
        return tensor_files.checked(path)[0]
    except tensor_files.Damaged as error:
        raise CheckpointError(
            f"{path} is damaged, or was not written by gsm_lab ({error}): `gsm-lab report {path.parent}` makes it again"
        ) from None


def resume(
    kind: type[Run],
    folder: Path,
    model: nn.Module | None,
    data: Dataset | None,
    loss: Callable[..., Tensor],
    output: Callable[..., Any] | None = None,
) -> Run:
    """The run in `folder`, as one of that kind; see `Run.resume`."""
    if model is not None:
        checks.kind("model", model, nn.Module, "an nn.Module")
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
    for what, given in (("model", model), ("data", data)):
        name = plain["knobs"][what]
        if given is None and name not in KNOBS[what].choices:
            raise CheckpointError(f"the run in {folder} has the {what} {name!r}, which this gsm_lab does not know")
    # what came later than the file is not set to what works best now, but to what leaves things as they were
    own = {option.name: option.default for option in kind.options} | plain.get("options", {})
    for option in kind.options:
        _as_expected(folder, option.check, own[option.name])
    if unknown := own.keys() - {option.name for option in kind.options}:
        raise CheckpointError(f"the run in {folder} has options that {method!r} does not know: {', '.join(unknown)}")
    knobs = {name: k.default for name, k in KNOBS.items()} | plain["knobs"]
    knobs = {name: v for name, v in knobs.items() if name not in ("model", "data", *kind.means_nothing)}
    names = plain["knobs"]["model"], plain["knobs"]["data"]
    sources = model if model is not None else names[0], data if data is not None else names[1]
    picks = plain.get("picks", {}) if model is None else _picks(model, plain["history"]["layers"])
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


def _state(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    opt = run.opt.state_dict()
    arrays, history = run.history.state()
    model, extra = whole_state(run.model)
    tensors = {f"model/{name}": t for name, t in model.items()}
    for room, name in _STATE.items():
        tensors |= {f"{room}/{i}": state[name] for i, state in opt["state"].items() if state.get(name) is not None}
    tensors |= {f"method/{name}": t for name, t in run.method_state().items()}
    if run.frozen:
        tensors["gate/candidates"] = run.opt.candidates
    tensors |= {f"history/{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    tensors["random/run"] = run.random_state
    if run._initial is not None:
        tensors |= {f"initial/{name}": t for name, t in run._initial.items() if isinstance(t, Tensor)}
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
        "picks": exactly(run.model, run.history.layers) if any(run._picks.values()) else {},
        "data_digest": run.data.digest,
        "history": history,
        "torch": torch.__version__,
        "threads": run.threads,
        "waiting": run.waiting,
        "shorn": run.shorn,
        "finished": run.base is not None and run.steps >= run.planned,
        **({"extra": extra} if extra else {}),
        **{name: getattr(run, name) for name in _COUNTERS},
    }
    kept = {name: copied for name, t in tensors.items() if (copied := whole(t, run.rank == 0)) is not None}
    return kept, plain


_COUNTERS = ("steps", "dense_steps", "base", "magnitude")
_STATE = {"momentum": "momentum_buffer", "average": "gradient_average"}  # what the optimizer keeps for each parameter


def _restore(run: Run, tensors: dict[str, Tensor], plain: dict[str, Any], folder: Path) -> None:
    if plain["history"]["layers"] != run.history.layers:
        raise CheckpointError(
            f"the run in {folder} has another model: its prunable layers are {plain['history']['layers']}, "
            f"the given one has {run.history.layers}"
        )
    _as_expected(folder, schema.must_fit, run, tensors, plain)
    part: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        room, rest = name.split("/", 1)
        part.setdefault(room, {})[rest] = tensor
    if "gate" in part and any(map(is_distributed, run.opt.param_groups[0]["params"])):
        raise CheckpointError(
            f"the active set of the run in {folder} is frozen, or was cut on its way, and goes on only where no "
            "weights are spread over ranks: in one process, or with DDP"
        )
    try:
        fill(run.model, part["model"] | plain.get("extra", {}))
    except (RuntimeError, KeyError, TypeError) as error:  # also what set_extra_state says
        raise CheckpointError(f"the weights in {folder} do not fit the model: {error}") from None
    for name in _COUNTERS:
        setattr(run, name, plain[name])
    run.random_state = part["random"]["run"]
    run._given = {name: value for name, value in plain["given"].items() if name not in run.means_nothing}
    if run._initial is not None:
        # Of a named model that was given as a module there is none: then that module's own.
        run._initial = run._initial | part.get("initial", {})
    if "gate" in part:
        run.opt.candidates, run.frozen = part["gate"]["candidates"], True
        run.shorn = plain.get("shorn", False)  # absent where no run could be cut on its way
        run._kept = int(run.opt.candidates.sum())
    run.apply_knobs()
    params = [p for group in run.opt.param_groups for p in group["params"]]
    for room, name in _STATE.items():
        for i, buffer in sorted(part.get(room, {}).items(), key=lambda item: int(item[0])):
            p = params[int(i)]
            run.opt.state[p][name] = torch.empty_like(p).copy_(part_of(buffer, p))
    try:
        run.restore_method(part.get("method", {}))
    except (KeyError, IndexError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"what {run.method!r} keeps of the run in {folder} is not as expected ({what})") from None
    arrays = {name: t.numpy() for name, t in part["history"].items()}
    run.history.restore(arrays, plain["history"])


def _as_expected(folder: Path, look: Callable[..., Any], *values: Any) -> Any:
    """What is not becomes a CheckpointError that names the folder."""
    try:
        return look(*values)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the run in {folder} is not as this gsm_lab writes them, and cannot be resumed: {error}"
        ) from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not os.path.isfile(path):  # where Path.is_file raises, as for a name that is too long, it says no
        raise CheckpointError(f"there is no run in {path.parent}: {path.name} is missing")
    try:
        tensors, metadata = tensor_files.read(path)
    except tensor_files.Damaged as error:
        raise CheckpointError(
            f"{path} is damaged (cut short?) and cannot be resumed: {error}; take a copy of it, or begin anew"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    header = metadata.get("gsm_lab", "")
    if metadata.get("sha256") != _digest(tensors, header):
        raise CheckpointError(
            f"{path} is damaged or not a run of gsm_lab: its content does not match its checksum; take a copy of it, "
            "or begin anew"
        )
    plain = _as_expected(path.parent, schema.plain_values, header)
    if plain.get("version") != VERSION:
        raise CheckpointError(f"{path} has format {plain.get('version')!r}; this gsm_lab reads format {VERSION}")
    _as_expected(path.parent, schema.must_describe_a_run, plain)
    return tensors, plain
