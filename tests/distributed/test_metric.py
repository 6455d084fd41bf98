"""Runs on numbers over ranks, with a metric of one's own: its value against one process, and what fails on one rank."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gsm_lab import Metric, Run, distributed
from gsm_lab.distributed import world
from tests.distributed.over_ranks import KINDS, PRELOAD, TIMEOUT
from tests.processes import in_ranks
from tests.training.test_metric import TEN, diabetes, mlp

multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
SMALL = TEN | {"pretrain": 1, "epochs": 2, "evaluate_every": 4}
RANKS = 3  # of which neither a batch's rows nor the test set's divide evenly


def every_number(outputs: Tensor, targets: Tensor) -> float:
    """One that tells any two orders and any two sets of rows apart."""
    places = torch.arange(1, len(outputs) + 1, dtype=torch.float64)[:, None]
    return float(((outputs.double() + 2 * targets.double()) * places).sum() / len(outputs))


def trained(folder: Path) -> dict[str, tuple[list[float], list[float], list[str]]]:
    """In a rank, for each placement: scores after some steps, those of one process alone, and what is refused."""
    with world.joined(TIMEOUT):
        return {kind: measured_by(kind, folder / kind) for kind in KINDS}


def measured_by(kind: str, folder: Path) -> tuple[list[float], list[float], list[str]]:
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
    run.step(5)
    over = [run.evaluate(), run.evaluate(cut=True)]
    run.save(folder)
    again = Run.resume(folder, mlp(), diabetes(), metric=metric, placement=distributed.kind(kind)())
    assert [again.evaluate(), again.evaluate(cut=True)] == over
    if rank:
        return over, [], said
    alone = Run.resume(folder, mlp(), diabetes(), metric=metric)
    assert alone.history.frame().equals(run.history.frame())
    return over, [alone.evaluate(), alone.evaluate(cut=True)], said


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict[str, tuple[list[float], list[float], list[str]]]]:
    """What `trained` returned in each of the ranks."""
    return [ended.result for ended in in_ranks(RANKS, trained, tmp_path_factory.mktemp("runs"))]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_gathered_in_their_order(kind: str, by_rank) -> None:
    over, alone, _ = by_rank[0][kind]
    assert over == pytest.approx(alone, rel=1e-6) and over[0] != over[1]
    assert all(other[kind][0] == over for other in by_rank)  # to the bit


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_or_differs_on_one_rank_is_said_on_all(kind: str, by_rank) -> None:
    for rank, result in enumerate(by_rank):
        failed, differs = result[kind][2]
        assert "metric 'fails_on_one' must return a finite number, got nan" in failed
        assert failed.startswith("rank 1: ") == (rank != 1)
        assert "metric must be the same on every rank, got 'other (higher is better)' on rank 0" in differs
