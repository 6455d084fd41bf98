"""What is left of the network? Views of its first layer: which inputs still have a weight, which units, what came back.

    view = look(run)                # now; `gsm_lab.figures.network.network(view)` draws it
    film = Film(run)                # before the first step; then train as ever
    run.train()
    film.views                      # the dense network when the gate closes, ..., the network now

What a view holds is said at `gsm_lab.studies.view.View`, and which layer it is at `first_layer`.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from gsm_lab.checks import kind, whole
from gsm_lab.optim import keep_masks
from gsm_lab.optim.ranks.group import is_distributed
from gsm_lab.studies.first_layer import Form, form_of
from gsm_lab.studies.recording import Attached
from gsm_lab.studies.view import KINDS, View
from gsm_lab.training.history import History
from gsm_lab.training.run import Run
from gsm_lab.wording import layer_name

__all__ = ["KINDS", "Film", "View", "look"]

UNITS = 40
_MOST = 120_000  # places of all units that are shown

_forms: WeakKeyDictionary[History, Form] = WeakKeyDictionary()  # a reset, which may change the model, has another one


def look(run: Run, units: int = UNITS, like: View | None = None) -> View:
    """The first prunable layer of a run as it is now; nothing of the run changes.

    It is the first that is called with the data, fully connected or convolutional: units are then images of the pixels,
    or kernels. In any other model (or where that layer does not compete) units are strips of what the first layer that
    competes is given.

    Args:
        run: of any model, data and method.
        units: how many are shown at most, those with most weights kept, of equal ones the heaviest (by their norm).
            Fewer where they are large.
        like: an earlier view of the same layer. Units that are in both keep their place, so that a picture holds still.

    Raises:
        TypeError: `run` is not a Run, or `like` not a View.
        ValueError: `units` is not a whole number >= 1, or the weights are spread over ranks.
        FloatingPointError: a weight is NaN or infinite.
    """
    kind("run", run, Run, "a gsm_lab.Run")
    units = whole("units", units)
    kind("like", like, View | None, "a View or None")
    with run.lock:
        if any(map(is_distributed, run.tensors)):
            raise ValueError(
                "run has its weights spread over ranks, none of which has a whole layer to look at: save it, and "
                "resume it in one process"
            )
        form = _forms.get(run.history)
        if form is None:
            form = _forms[run.history] = form_of(run)
        mask = list(keep_masks(run.model, nonzeros=run.nonzeros, optimizer=run.opt).values())[form.tensor]
        return _view(run, form, mask.cpu().numpy(), units, like)


def _view(run: Run, form: Form, kept: np.ndarray, most: int, like: View | None) -> View:
    names, fan = list(run.history.layers), form.channels * form.count
    layer, begin = names[form.tensor], sum(list(run.history.layers.values())[: form.tensor])
    p = run.tensors[form.tensor].detach()
    w = (p.abs() if p.is_complex() else p).float().cpu().numpy().reshape(-1, fan)
    kept = kept.reshape(-1, fan)
    now, before = (None if m is None else m[begin : begin + w.size].reshape(-1, fan) for m in run.history.last_active())
    active = np.zeros_like(kept) if now is None else now
    back = np.zeros_like(kept) if before is None else active & ~before
    of_input, of_unit = (np.count_nonzero(kept, axis=axis) for axis in (0, 1))
    there = form.index >= 0
    inputs = np.where(there, of_input[form.index], 0).sum(axis=2, dtype=np.int32)
    inputs[~there.any(axis=2)] = -1
    most = max(1, min(most, len(w), _MOST // there[..., 0].size))
    same = like is not None and (like.layer, like.of_units) == (layer_name(layer), len(w))
    shown = _chosen(of_unit, np.einsum("ij,ij->i", w, w), most, like.shown if same else None)
    values, *masks = (_laid_out(x[shown], form.index) for x in (w, kept, active, back))
    return View(
        step=run.steps, dense=run.base is None, compression=float(run.settings.compression),
        layer=layer_name(layer), kind=form.kind, inputs=inputs,
        reached=int(np.count_nonzero(of_input.reshape(form.channels, -1).any(axis=0))), count=form.count,
        units=values, kept=masks[0], active=masks[1], reactivated=masks[2],
        shown=shown, unit_kept=of_unit[shown], of_units=len(w), alive=int(np.count_nonzero(of_unit)),
        weights=w.size, layer_kept=int(of_unit.sum()), returned=None if before is None else int(np.count_nonzero(back)),
    )  # fmt: skip


def _chosen(kept: np.ndarray, size: np.ndarray, most: int, places: np.ndarray | None) -> np.ndarray:
    """The units with most weights kept, of equal ones the heaviest; those that have one of the `places` stay there."""
    best = np.lexsort((-size, -kept))[:most]
    if places is None or len(places) != most:
        return best
    stays = np.isin(places, best)
    chosen = places.copy()
    chosen[~stays] = best[~np.isin(best, places)]
    return chosen


def _laid_out(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows [k, fan] at their places [k, h, w]: of several at one place the one of largest magnitude, of flags any."""
    if index.shape[2] == 1 and index.min() == 0:
        return x[:, index[..., 0]]
    x = np.where(index >= 0, x[:, index], x.dtype.type(0))
    if x.dtype == bool:
        return x.any(axis=3)
    return np.take_along_axis(x, np.abs(x).argmax(axis=3)[..., None], axis=3)[..., 0]


# -- over a run --------------------------------------------------------------------------------------------------------


class Film(Attached):
    """Views spread evenly over a run of whatever length: the first moment, those between, and the last.

    The first moment is when the gate closes, or when the film is attached if that is later. Views are taken at every
    step at first; whenever there are as many as may be, every second one goes, and from then on only every second step
    is taken. A view of LeNet-300-100 takes 0.2 MB.

    Args:
        run: to attach to, before its first gated step if the film shall begin where the gate closes.
        frames: views at most, first and last included.
        units: that a view shows, as in `look`.

    Attributes:
        every: steps from one view to the next.

    Raises:
        TypeError: `run` is not a Run.
        ValueError: `frames` is not a whole number >= 2, `units` none >= 1, or the weights are spread over ranks.
    """

    def __init__(self, run: Run, frames: int = 24, units: int = UNITS) -> None:
        self.frames, self.units = whole("frames", frames, 2), whole("units", units)
        self.every, self._views = 1, list[View]()
        kind("run", run, Run, "a gsm_lab.Run")
        with run.lock:
            first = None if run.base is None else look(run, self.units)  # may refuse, before it is attached
            super().__init__(run)
            if first is not None:
                self._views.append(first)

    def gate_closes(self) -> None:
        """The dense epochs are over; called by the run."""
        self._views.append(look(self.run, self.units))

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        """A step is done; called by the run."""
        since = step - self._views[0].step
        if since % self.every:
            return
        while len(self._views) >= self.frames - 1:  # one place is for the last
            self._views, self.every = self._views[::2], 2 * self.every
            if since % self.every:
                return
        self._views.append(self._next())

    def _next(self) -> View:
        return look(self.run, self.units, self._views[-1])

    @property
    def views(self) -> list[View]:
        """The views so far, the last one of this moment.

        Raises ValueError before the gate has closed, and after a reset of the run.
        """
        with self.run.lock:
            if self.run.history is not self._history:
                raise ValueError("run was reset after Film was attached; attach a new one")
            if not self._views:
                raise ValueError("run has not closed its gate since Film was attached; call run.step(n) first")
            last = [] if self._views[-1].step == self.run.steps else [self._next()]
            return self._views + last
