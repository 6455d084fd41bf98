"""Real processes: what they return; a lost or silent one is an error in a sentence, and none is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsm_lab.distributed import launch as processes
from gsm_lab.distributed.launch import on_ranks
from tests.distributed import process_workers

ROOT = Path(__file__).parents[2]


def run(worker, n=2, **arguments):
    return on_ranks(worker, n, arguments, timeout=600, progress=False)


@pytest.fixture(params=[True, False], ids=["parted", "fresh"])
def forks(request, monkeypatch):
    """Whether all ranks come from one process, where the system is one that lets them."""
    monkeypatch.setattr(processes, "FORKS", request.param and processes.FORKS)


def test_ranks_work_together_and_return_in_order(forks):
    assert run(process_workers.total, 3, add=10) == [(rank, 33.0, 1) for rank in range(3)]


def test_one_rank_is_a_group_too():
    assert run(process_workers.total, 1, add=1) == [(0, 1.0, 1)]


def test_the_bar_counts_the_steps_of_one_rank(capsys):
    on_ranks(process_workers.total, 2, {"add": 0}, total=3)
    assert "3/3" in capsys.readouterr().err


def test_a_rank_that_fails_is_named_with_its_reason():
    expected = "^rank 1 of 2 failed after 5 steps: ValueError: the data of this rank is bad; the others were stopped$"
    with pytest.raises(RuntimeError, match=expected):
        run(process_workers.fails_on_one)


def test_a_lost_rank_is_named_although_the_other_one_notices_too(forks):
    with pytest.raises(RuntimeError, match=r"^rank 1 of 2 was lost after 7 steps: its process was killed by SIGKILL"):
        run(process_workers.killed)


def test_what_a_lost_rank_said_last_is_passed_on():
    expected = r"^rank 2 of 3 was lost after 1 steps: its process ended with exit code 3 \(no room\); the others were"
    with pytest.raises(RuntimeError, match=expected):
        run(process_workers.leaves, 3)


def test_a_silent_rank_is_an_error_and_no_hang():
    with pytest.raises(TimeoutError, match=r"^no rank has reported for 1 s, before the first step; all 2 were stopped"):
        on_ranks(process_workers.silent, 2, timeout=1, progress=False)


def test_no_process_is_left_behind(tmp_path):
    with pytest.raises(TimeoutError, match="after 2 steps"):
        on_ranks(process_workers.pids_then_silent, 2, {"folder": str(tmp_path)}, timeout=1, progress=False)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_stops_all():
    with pytest.raises(KeyboardInterrupt):
        run(process_workers.interrupts, pid=os.getpid())


def test_it_works_from_a_script_without_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from gsm_lab.distributed.launch import on_ranks\nfrom tests.distributed.process_workers import total\n"
        "print(on_ranks(total, 2, {'add': 1}, progress=False))\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.stdout, done.returncode) == ("[(0, 3.0, 1), (1, 3.0, 1)]\n", 0), done.stderr


def test_what_is_wrong_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr(processes, "_started", None)
    with pytest.raises(ValueError, match=r"ranks is 65; valid: an integer in 1 .. 64"):
        run(process_workers.total, 65)
    with pytest.raises(ValueError, match="timeout must be a number of seconds > 0, got 0"):
        on_ranks(process_workers.total, 2, timeout=0)
    local = lambda report: None  # noqa: E731
    local.__module__ = "__main__"
    with pytest.raises(ValueError, match="worker must be a function of a module that can be imported"):
        run(local)
    with pytest.raises(ValueError, match=r"arguments must be such as can be pickled .* settings .*: "):
        run(process_workers.total, settings={"loss": lambda a, b: a.sum()})
