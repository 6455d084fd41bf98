"""A run that was saved and resumed, in a fresh process too, goes on to the bit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gsm_lab import Run
from tests.runs import Breaks, Tied, differs, everything, mine, net, tiny
from tests.training.checkpoints import assert_same, lenet300, own, smoothed

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------ to the bit


def own_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def with_own_loss() -> Run:
    return Run(net(), mine(), loss=own_loss, batch_size=8, pretrain=0, compression=4, epochs=6)


# name: (the run, what it does before it is saved, how to resume it, what it does after that)
CASES: dict[str, tuple[Callable[[], Run], Callable[[Run], object], Callable[[Path], Run], Callable[[Run], object]]] = {
    "lenet300 on digits, 150 and 150": (
        lenet300,
        lambda run: run.step(150),
        Run.resume,
        lambda run: run.step(150),
    ),
    "knobs moved before, at and after": (
        own,
        lambda run: (run.step(3), run.set(momentum=0.5, lr=0.03), run.step(9), run.set(compression=20, hold=0.2)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.set(compression=10.0), run.step(7), run.set(momentum=0.99), run.step(9)),
    ),
    "in the middle of the dense epochs": (
        own,
        lambda run: (run.set(compression=7.0), run.pretrain(3)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(11),
    ),
    "before the gate closes": (
        own,
        lambda run: run.pretrain(4),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.pretrain(), run.step(2)),
    ),
    "when the gate has closed": (
        own,
        lambda run: run.pretrain(),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(12),
    ),
    "before anything": (
        own,
        lambda run: None,
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(12),
    ),
    "tied weights": (
        lambda: tiny(Tied(), compression=3),
        lambda run: run.step(10),
        lambda folder: Run.resume(folder, Tied(), mine()),
        lambda run: run.step(10),
    ),
    "a loss of its own": (
        with_own_loss,
        lambda run: run.step(10),
        lambda folder: Run.resume(folder, net(8), mine(), own_loss),
        lambda run: run.step(10),
    ),
    "momentum that was off": (
        lambda: tiny(momentum=0.0, pretrain=0),
        lambda run: run.step(6),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.set(momentum=0.9), run.step(9)),
    ),
    "the smoothed gate, during its ramp": (
        smoothed,
        lambda run: run.step(9),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(40),
    ),
    "the smoothed gate, frozen": (
        smoothed,
        lambda run: run.step(43),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(9),
    ),
    "a reset after it": (
        own,
        lambda run: (run.step(8), run.set(lr=0.5)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.reset(momentum=0.3), run.step(15)),
    ),
}


RESUME_ALL = """
import sys
import warnings
from pathlib import Path
from tests.training.test_resume import CASES
for i, (_, _, resume, go_on) in enumerate(CASES.values()):
    folder = Path(sys.argv[1]) / str(i)
    run = resume(folder / "half")
    go_on(run)
    run.save(folder / "whole")
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Run]]:
    """Of each case the run that went straight on, and the one that was resumed and went on in another process."""
    folder, straight = tmp_path_factory.mktemp("runs"), {}
    for i, (case, (make, begin, _, go_on)) in enumerate(CASES.items()):
        torch.manual_seed(0)  # for Tied
        run = make()
        begin(run)
        run.save(folder / str(i) / "half")
        go_on(run)
        straight[case] = run
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: the last bits depend on the number of threads
    subprocess.run([sys.executable, "-c", RESUME_ALL, folder], cwd=ROOT, env=environ, check=True, timeout=600)
    whole = {case: resume(folder / str(i) / "whole") for i, (case, (_, _, resume, _)) in enumerate(CASES.items())}
    return {case: (straight[case], whole[case]) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_resumed_in_a_fresh_process_it_goes_on_to_the_bit(case: str, resumed: dict[str, tuple[Run, Run]]) -> None:
    straight, other = resumed[case]
    assert_same(straight, other)


def test_300_steps_are_150_and_150(resumed: dict[str, tuple[Run, Run]]) -> None:
    straight, _ = resumed["lenet300 on digits, 150 and 150"]
    assert (straight.steps, straight.dense_steps, len(straight.history.frame())) == (300, 22, 300)


def test_a_run_is_resumed_as_it_was_left(tmp_path: Path) -> None:
    run = tiny(net())
    run.step(5)
    again = Run.resume(run.save(str(tmp_path / "a")), net(1), mine())  # a folder's name as text
    assert_same(run, again)
    assert again.evaluate(cut=True) == run.evaluate(cut=True) and again.nonzeros == run.nonzeros
    assert again.base == run.base and again.magnitude == run.magnitude


def test_saving_changes_nothing(tmp_path: Path) -> None:
    run, straight = tiny(net()), tiny(net())
    for r, at in ((run, 4), (straight, None)):
        for step in range(12):
            if step == at:
                before = everything(r)
                r.save(tmp_path)
                assert differs(before, everything(r)) == []
            r.step()
    assert_same(run, straight)


def test_a_resumed_reset_takes_what_works_for_another_model(tmp_path: Path) -> None:
    run = Run(pretrain=0, momentum=0.8)
    run.save(tmp_path)
    again = Run.resume(tmp_path)
    for r in (run, again):
        r.reset(model="lenet5")
    assert run.knobs == again.knobs and run.knobs["lr"] == 0.03 and run.knobs["momentum"] == 0.8


def test_a_run_whose_loss_broke_can_be_saved_and_resumed(tmp_path: Path) -> None:
    loss = Breaks(9)
    run = Run(net(), mine(), loss=loss, batch_size=8, pretrain=0, compression=4)
    with pytest.raises(FloatingPointError):
        run.step(20)
    again = Run.resume(run.save(tmp_path), net(), mine(), loss)
    assert again.steps == 8
    assert_same(run, again)
    again.step(3)


def test_an_interrupted_run_can_be_saved_and_resumed(tmp_path: Path) -> None:
    from tests.runs import interrupt_at, raised

    run = tiny(net())
    interrupt_at(run.model, 23, raised)
    with pytest.raises(KeyboardInterrupt):
        run.train(progress=False)
    straight = tiny(net())
    again = Run.resume(run.save(tmp_path), net(1), mine())
    for r in (again, straight):
        r.step(25 - r.steps)
    assert_same(again, straight)
