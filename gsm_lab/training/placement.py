"""`Placement`: where a run happens; and its plain form, one process.

A placement is handed to a run, `Run(placement=...)`, and says what is otherwise where several processes share the
work (`gsm_lab.distributed`): where the model is, which rows of a batch are this process's, what the others saw, who
writes to disk. It belongs to one run alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gsm_lab import data as datasets
from gsm_lab.knobs import Settings
from gsm_lab.metric import Metric
from gsm_lab.optim.picks import Picks
from gsm_lab.training import fitting
from gsm_lab.training.history import History
from gsm_lab.training.interrupts import interruptible
from gsm_lab.training.measuring import must_measure
from gsm_lab.training.parts import Loss, Parts


class Single:
    """One process has the model, all of each batch, and the run to itself.

    Attributes:
        rank: of this process among those that train the run together; size: how many there are.
        breakdowns: errors that end training, after which what was saved is still good.
        unsaved: errors from `Run.save` where nothing could be written.
        taken: whether a run has it, which it then belongs to alone.
        forward: what is called in place of the model at a step.
        exchanges: whether it exchanges the model's parameters itself, for those that it has gathered, and back.
    """

    rank, size = 0, 1
    taken = False
    breakdowns: tuple[type[Exception], ...] = (FloatingPointError,)
    unsaved: tuple[type[Exception], ...] = (OSError,)
    exchanges = False
    forward: Callable[..., Any] | None = None

    # -- putting a run together --------------------------------------------------------------------------------------

    def load(self, source: str | datasets.Dataset) -> datasets.Dataset:
        """The data, by name or as it is."""
        return datasets.load(source) if isinstance(source, str) else source

    def must_suit(self, run: Parts, settings: Settings, options: dict[str, Any], data: datasets.Dataset) -> None:
        """Raises ValueError for settings, or a method, that cannot be had here, before anything has changed."""

    def must_allow(self, settings: Settings) -> None:
        """Raises ValueError for settings that cannot be had here."""

    def tried(
        self, run: Parts, model: nn.Module, data: datasets.Dataset, batch_size: int, loss: Loss, metric: Metric
    ) -> float | None:
        """Pass a few rows through a model of the user's own, as `fitting.tried` does, and all through its metric."""
        above = fitting.tried(model, data, loss, run.output, batch_size, metric)
        if not metric.is_accuracy:
            must_measure(model, data, run.output, metric)
        return above

    def place(self, model: nn.Module, named: bool, picks: dict[str, Picks]) -> nn.Module:
        """The model on the device, and in the parts, in which it is trained. `named`: it is one of gsm_lab's."""
        return model

    def wrap(self, run: Parts) -> None:
        """The run is put together: settle what is called in place of the model at a step, `forward`."""
        self.forward = run.model

    def history(self, weights: dict[str, nn.Parameter]) -> History:
        """A new history of these tensors."""
        return History({layer: p.numel() for layer, p in weights.items()})

    # -- a step ------------------------------------------------------------------------------------------------------

    def rows(self, batches: datasets.Batches, step: int) -> tuple[Tensor, Tensor, float]:
        """This process's rows of a batch, and the weight of their loss: 1 where all processes have as many."""
        return *batches.batch(step), 1.0

    def random_numbers(self) -> AbstractContextManager[Any]:
        """The stream that the model draws from in a forward pass."""
        return nullcontext()

    def mean(self, run: Parts, loss: float) -> float:
        """The mean over the processes of a loss that was weighted as `rows` says."""
        return loss

    interruptible = staticmethod(interruptible)

    def steps(self) -> AbstractContextManager[Any]:
        """Around some steps: what is raised where another process is lost becomes an error that says so."""
        return nullcontext()

    # -- evaluating --------------------------------------------------------------------------------------------------

    def count(self, right: Callable[[Tensor, Tensor], int], x: Tensor, y: Tensor) -> int:
        """`right(x, y)`, how many rows are classified rightly, over all processes."""
        return right(x, y)

    def outputs(self, answered: Callable[[Tensor], Any], x: Tensor) -> Any:
        """`answered(x)`, the outputs for some rows, of which each process may work out a share."""
        return answered(x)

    def measured(self, measure: Callable[[], float]) -> float:
        """`measure()`, the same number on all processes; what it raises on one, all raise."""
        return measure()

    def replacing(self, model: nn.Module, replaced: dict[str, Tensor]) -> AbstractContextManager[dict[str, Tensor]]:
        """For an evaluation with these tensors in place of the model's: those that a forward pass has to be given."""
        return nullcontext(replaced)

    # -- what one process does for all -------------------------------------------------------------------------------

    def together(self) -> AbstractContextManager[Any]:
        """What fails in the block on one process fails on all."""
        return nullcontext()

    def by_first_rank(self) -> AbstractContextManager[bool]:
        """Whether it is this process that does what only one of them is to do; what it raises, all raise."""
        return nullcontext(True)

    def first_rank_says(self, flag: bool) -> bool:
        """`flag` as it is on rank 0: for what depends on a clock."""
        return flag

    def must_agree(self, run: Parts) -> None:
        """Raises ValueError where the processes have not resumed the same state of a run."""

    def alone(self, run: Parts, folder: Path) -> Any:
        """The run in this process alone, given the folder in which it was just saved: to look at what came out."""
        return run

    def exchanged(self, count: int) -> None:
        """Raises RuntimeError where parameters, so many, were exchanged for others that cannot be trained here."""

    def must_be_copyable(self) -> None:
        """Raises TypeError where the run cannot be copied or pickled."""
