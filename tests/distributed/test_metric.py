"""Runs on numbers over ranks, with a metric of one's own: its value against one process, and what fails on one rank."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gsm_lab import Metric, Run, distributed
from gsm_lab.distributed import world
from tests.distributed.over_ranks import PRELOAD, TIMEOUT
from tests.processes import in_ranks
from tests.training.test_metric import RMSE, TEN, diabetes, mlp

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
SMALL = TEN | {"pretrain": 1, "epochs": 2, "evaluate_every": 4}
RANKS = 3  # of which neither a batch's rows nor the test set's divide evenly


def every_number(outputs: Tensor, targets: Tensor) -> float:
    """One that tells any two orders and any two sets of rows apart."""
    places = torch.arange(1, len(outputs) + 1, dtype=torch.float64)[:, None]
    return float(((outputs.double() + 2 * targets.double()) * places).sum() / len(outputs))


def trained(kind: str, folder: Path) -> tuple[list[float], list[float], list[str]]:
    """In a rank: the scores of some steps, those of the same weights in this process alone, and what is refused."""
    with world.joined(TIMEOUT):
        rank, said = torch.distributed.get_rank(), []

        def fails_on_one(outputs: Tensor, targets: Tensor) -> float:
            return float("nan") if rank == 1 else 0.5

        for metric in (fails_on_one, Metric("RMSE" if rank else "other", every_number)):
            try:
                Run(mlp(), diabetes(), metric=metric, placement=distributed.kind(kind)(), **SMALL)
            except ValueError as error:
                said.append(str(error))
        metric = Metric("every", every_number)
        run = Run(mlp(), diabetes(), metric=metric, placement=distributed.kind(kind)(), **SMALL)
        run.step(9)
        over = [run.evaluate(), run.evaluate(cut=True)]
        run.save(folder)
        frame = run.history.frame().filter(like="every").dropna().to_numpy()
        if rank == 0:
            alone = Run.resume(folder, mlp(), diabetes(), metric=metric)
            np.testing.assert_array_equal(alone.history.frame().filter(like="every").dropna(), frame)
            return over, [alone.evaluate(), alone.evaluate(cut=True)], said
        return over, [], said


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_outputs_are_gathered_in_their_order(kind: str, tmp_path: Path) -> None:
    ended = in_ranks(RANKS, trained, kind, tmp_path)
    over, alone, _ = ended[0].result
    assert over == pytest.approx(alone, rel=1e-6) and over[0] != over[1]
    for other in ended[1:]:
        assert other.result[0] == over  # to the bit
    for rank, (_, _, (failed, differs)) in enumerate(e.result for e in ended):
        assert "metric 'fails_on_one' must return a finite number, got nan" in failed
        assert failed.startswith("rank 1: ") == (rank != 1)
        assert "metric must be the same on every rank, got 'other (higher is better)' on rank 0" in differs


def test_the_metric_over_ranks_goes_on_in_one_process(tmp_path: Path) -> None:
    run = Run(mlp(), diabetes(), metric=RMSE, **SMALL)
    run.step(4)
    run.save(tmp_path)
    ended = in_ranks(2, resumed, tmp_path)
    assert ended[0].result == ended[1].result == pytest.approx(run.evaluate(), rel=1e-6)


def resumed(folder: Path) -> float:
    with world.joined(TIMEOUT):
        return Run.resume(folder, mlp(), diabetes(), metric=RMSE, placement=distributed.DDP()).evaluate()
