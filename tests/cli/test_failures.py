"""Training that breaks down, disks that are full, folders that cannot be: a sentence, and what is kept."""

import errno
import os
from pathlib import Path

import pytest
import torch

import gsm_lab as gl
from gsm_lab import cli
from gsm_lab.cli import run_folder
from gsm_lab.training import checkpoint, files, loop
from tests.cli.commands import ALL, SHORT, same_state

DIVERGES = ["--lr", "100", "--pretrain", "1", "--epochs", "5", "--threads", "1"]


def test_divergence_is_one_sentence_and_leaves_nothing(tmp_path, capsys):
    assert cli.main(["run", *DIVERGES, "--out", str(tmp_path / "d")]) == 1
    *bar, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("gsm-lab: ") and "no weight was changed" in said
    assert all("step/s" in line for line in bar if line), bar
    assert list(tmp_path.iterdir()) == []


def test_divergence_leaves_the_last_saved_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "SAVE_EVERY", 0.0)  # seconds: at every look at the clock
    monkeypatch.setattr(loop, "PORTION", 1)
    assert cli.main(["run", *DIVERGES, "--out", str(tmp_path)]) == 1
    run = gl.Run.resume(tmp_path)
    assert run.steps > 0 and all(torch.isfinite(p).all() for p in run.model.parameters())
    assert f"the state after {run.steps:,} steps is in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(FloatingPointError):
        run.step()


def failing(monkeypatch, which, number: int) -> list[int]:
    """The n-th write fails where `which(n)`; how many there were, as a list."""
    write, n = checkpoint.write_atomically, [0]

    def fails(path: Path, content: bytes) -> None:
        n[0] += 1
        if which(n[0]):
            raise OSError(number, os.strerror(number))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", fails)
    return n


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_is_said_and_tried_again(tmp_path, monkeypatch, capsys, straight, number):
    monkeypatch.setattr(run_folder, "SAVE_EVERY", 0.0)
    failing(monkeypatch, lambda n: n in (7, 8), number)  # a save is three files
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gsm-lab:")]
    assert len(said) == 2
    for line in said:
        assert f"{tmp_path} cannot be written ({os.strerror(number)})" in line
        assert line.endswith(f"the state after 20 dense steps is in {tmp_path}")
    same_state(gl.Run.resume(tmp_path), straight)
    assert {path.name for path in tmp_path.iterdir()} == set(ALL)


def test_a_disk_that_stays_full_is_one_sentence_with_what_is_kept(whole, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    failing(monkeypatch, lambda n: True, errno.ENOSPC)
    capsys.readouterr()
    assert cli.main(["resume", str(whole), "--epochs", "3"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"gsm-lab: {whole} cannot be written (No space left on device): make room there or name another place; "
        f"the state after 44 steps is in {whole}"
    )
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before, "all of the old state"


def test_a_disk_that_is_full_at_the_very_end_leaves_the_run(tmp_path, monkeypatch, capsys):
    n = failing(monkeypatch, lambda n: n > 3, errno.ENOSPC)
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 1
    assert f"the run is safe, and `gsm-lab resume {tmp_path}` makes the rest" in capsys.readouterr().err and n[0] == 4
    monkeypatch.undo()
    assert cli.main(["resume", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(ALL)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(tmp_path, monkeypatch, capsys, number):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gl.Run, "step", lambda *_: pytest.fail("a step was made"))
    monkeypatch.setattr(gl.Run, "pretrain", lambda *_: pytest.fail("a step was made"))
    monkeypatch.setattr(files.os, "fsync", refused)
    assert cli.main(["run", *SHORT, "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gsm-lab: {tmp_path / 'a'} cannot be written ({os.strerror(number)}): ")
    assert said.endswith("or name another place\n") and not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["file", "file/b", "n" * 300])
def test_a_folder_that_cannot_be(tmp_path, capsys, name):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["run", *SHORT, "--out", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gsm-lab: ") and said.count("\n") == 1 and "cannot be written" in said


@pytest.mark.parametrize("name", ALL)
def test_files_of_ones_own_are_not_replaced_unasked(tmp_path, capsys, name):
    (tmp_path / name).write_text("my own")
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "--overwrite" in said and "--out" in said
    assert (tmp_path / name).read_text() == "my own" and len(list(tmp_path.iterdir())) == 1


def test_they_are_where_that_is_asked_for(tmp_path):
    for name in ALL[1:]:
        (tmp_path / name).write_text("my own")
    assert cli.main(["run", *SHORT, "--out", str(tmp_path), "--overwrite"]) == 0
    assert not [name for name in ALL if (tmp_path / name).read_bytes() == b"my own"]
