"""A run that goes back to a state it was in, as it stands, where `Run.from_state` makes another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gsm_lab import data as datasets
from gsm_lab import knobs as settings
from gsm_lab.training import schema
from gsm_lab.training.assembly import checked, put_together
from gsm_lab.training.checkpoint import as_expected
from gsm_lab.training.interrupts import uninterrupted
from gsm_lab.training.state import arguments_of, restore, state_of
from gsm_lab.training.step import Training

_WHERE = "the state"  # in errors


def go_back(
    run: Training,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    model: nn.Module | None = None,
    data: datasets.Dataset | None = None,
) -> None:
    """Put a run back to a `state()` of its own; from there it goes on to the bit as it went on, or would have, then.

    Like `Run.reset`, but for where the run then stands: optimizer and history are new ones, the list of recorders is
    empty, and a model or data set by name may be another one than now.

    Args:
        run: between two steps.
        tensors, plain: the state; nothing is kept of them but copies.
        model, data: where they are the user's own, they are given again, the model as the module that it was: it is
            filled with the weights of the state.

    Raises CheckpointError (a ValueError) where the state is none of such a run, which then stays where it is; TypeError
    over ranks, where `Run.resume` is the way; RuntimeError in the middle of a step.
    """
    run.placement.must_be_copyable()
    as_expected(_WHERE, schema.must_describe_a_run, plain)
    with run.between_steps(), uninterrupted():
        now, recorders, options = state_of(run), run.recorders, run.given_options
        own = [None if isinstance(source, str) else source for source in (run.source_model, run.source_data)]
        try:
            _go_to(run, tensors, plain, model, data)
        except Exception:
            _go_to(run, *now, *own)
            run.recorders, run.given_options = recorders, options
            raise


def _go_to(run: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], model: Any, data: Any) -> None:
    """Begin again, and go on from there."""
    tensors, plain = {name: t.clone() for name, t in tensors.items()}, copy.deepcopy(dict(plain))
    loss = None if run.loss is cross_entropy else run.loss
    own = {"model": model, "data": data, "loss": loss, "output": run.output}
    sources, knobs = arguments_of(plain, own, run.method, _WHERE)
    knobs, options = checked(run.method, {name: value for name, value in knobs.items() if name not in run.picks})
    put_together(run, *sources, settings.checked(knobs), options)
    run.given_options = options
    restore(run, tensors, plain, _WHERE)
