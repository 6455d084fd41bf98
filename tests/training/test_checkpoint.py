"""What a save writes, all of it or nothing, and what it leaves alone."""

import ast
import json
import math
import os
import pickletools
import signal
import stat
import struct
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import gsm_lab
from gsm_lab import Run
from gsm_lab.training import checkpoint
from gsm_lab.training.checkpoint import FILE, CheckpointError
from tests.runs import Net, Tied, differs, everything, mine, net, tiny
from tests.training.checkpoints import assert_same


def header(path: Path) -> dict:
    """The JSON that a safetensors file begins with, read by hand."""
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


# ------------------------------------------------------------------------------------------------ to the bit


# name: (the run, what it does before it is saved, how to resume it, what it does after that)


# ------------------------------------------------------------------------------------------------ what is written


def test_the_folder_can_be_read_without_us(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [FILE, "history.csv", "knobs.json"]
    knobs = json.loads((saved / "knobs.json").read_text())
    assert knobs == tiny(net()).knobs and list(knobs) == list(gsm_lab.knobs.KNOBS)
    frame = pd.read_csv(saved / "history.csv")
    assert frame["step"].tolist() == list(range(1, 13)) and frame["lr"].eq(0.1).all()
    tensors = load_file(saved / FILE)
    assert {name.split("/")[0] for name in tensors} == {"model", "initial", "momentum", "history", "random"}


def test_the_header_is_json(saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    plain = json.loads(header(saved / FILE)["__metadata__"]["gsm_lab"], parse_constant=refuse)
    assert plain["version"] == checkpoint.VERSION and plain["torch"] == torch.__version__
    assert (plain["steps"], plain["dense_steps"]) == (12, 10) and 0 <= plain["base"] <= 1
    assert (plain["own_model"], plain["own_data"], plain["own_loss"]) == ("Net", "corners", None)


def test_the_header_of_a_dense_run_is_json_without_a_base(tmp_path: Path) -> None:
    run = tiny()
    run.pretrain(3)
    text = header(run.save(tmp_path) / FILE)["__metadata__"]["gsm_lab"]
    assert "NaN" not in text and json.loads(text)["base"] is None
    again = Run.resume(tmp_path, net(), mine())
    assert again.base is None and again.magnitude is None and again.dense_left == 7


def test_nothing_in_it_is_a_pickle(saved: Path) -> None:
    for path in saved.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80"))
        with warnings.catch_warnings(), pytest.raises((ValueError, IndexError, KeyError, struct.error)):
            warnings.simplefilter("ignore")  # of what it makes of the bytes
            list(pickletools.genops(content))


def test_no_module_of_ours_can_read_a_pickle() -> None:
    """But for what a program sends to processes that it has started itself, through a pipe that nobody else has."""
    inside = Path(gsm_lab.__file__).parent / "distributed/launch.py"
    readers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in {*Path(gsm_lab.__file__).parent.rglob("*.py")} - {inside}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not readers & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "torch.save", "pd.read_pickle"}, path
                assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), path


@pytest.mark.skipif(os.name != "posix", reason="permissions as on Unix")
def test_files_have_the_permissions_files_have(saved: Path) -> None:
    plain = saved / "plain"
    plain.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()} == {stat.S_IMODE(plain.stat().st_mode)}


def test_saving_again_replaces(saved: Path) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    run.save(saved)
    assert Run.resume(saved, net(), mine()).steps == 15 and len(pd.read_csv(saved / "history.csv")) == 15
    assert len(list(saved.iterdir())) == 3


# ------------------------------------------------------------------------------------------------ atomic


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["open", "os.fsync", "os.replace"])
def test_a_save_that_fails_leaves_the_old_run_and_no_rubbish(
    saved: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(f"gsm_lab.training.files.{where}", full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            run.save(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert Run.resume(saved, net(), mine()).steps == 12
    run.save(saved)
    assert Run.resume(saved, net(), mine()).steps == 15


def test_an_interrupt_while_writing_leaves_the_old_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    replace, left = os.replace, iter((True, False))

    def replace_once(a: str, b: Path) -> None:
        if not next(left):
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(checkpoint.os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        run.save(saved)
    # the file that counts is written first and is whole; those to read are a save behind
    assert Run.resume(saved, net(), mine()).steps == 15 and len(list(saved.iterdir())) == 3


# ------------------------------------------------------------------------------------------------ what else is kept


class Versioned(Net):
    """Keeps something that is no tensor in its state."""

    kept: object = {"version": 3, "names": ["a", None, 0.5, True]}

    def get_extra_state(self) -> object:
        return self.kept

    def set_extra_state(self, state: object) -> None:
        self.kept = state


def test_extra_state_of_a_module_is_kept(tmp_path: Path) -> None:
    run = tiny(Versioned())
    run.step(3)
    run.model.kept = {"version": 4}
    other = Versioned()
    again = Run.resume(run.save(tmp_path), other, mine())
    assert other.kept == {"version": 4}
    assert_same(run, again)
    again.reset()
    assert other.kept == Versioned.kept, "as it came"


@pytest.mark.parametrize("kept", [{1: 2}, (1, 2), {"a": object()}, math.nan, {"s": {1}}, b"bytes"])
def test_extra_state_that_json_cannot_hold_is_refused_by_name(tmp_path: Path, kept: object) -> None:
    run = tiny(Versioned())
    run.model.kept = kept
    with pytest.raises(ValueError, match=r"model keeps '_extra_state', a .* that a checkpoint cannot hold; valid"):
        run.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_are_loaded_and_checked(tmp_path: Path) -> None:
    from gsm_lab.cli import run_folder

    run = tiny(Tied(), compression=3)
    run.train(progress=False)
    run.save(tmp_path)
    run_folder._write_weights(run, tmp_path)
    path = tmp_path / checkpoint.WEIGHTS
    for place in (path, str(tmp_path)):
        found = checkpoint.load_weights(place)
        model = Tied()
        model.load_state_dict(found)
        assert sum(int(p.count_nonzero()) for p in gsm_lab.models.prunable(model).values()) == run.nonzeros
    content, plain = path.read_bytes(), load_file(path)
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged, .*`gsm-lab report .*` makes it"):
            checkpoint.load_weights(path)
    save_file(plain, path)
    with pytest.raises(CheckpointError, match="was not written by gsm_lab"):
        checkpoint.load_weights(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load_weights(tmp_path / "nothing")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings as on Linux")
def test_a_resumed_run_does_not_read_from_the_file_any_more(saved: Path) -> None:
    run = Run.resume(saved, net(), mine())
    assert str(saved) not in Path("/proc/self/maps").read_text()
    (saved / FILE).write_bytes(b"")  # as cp and rsync --inplace do on their way
    run.reset()
    straight = tiny(net())
    for r in (run, straight):
        r.step(3)
    assert differs(everything(run), everything(straight)) == []


def test_what_a_kill_left_half_written_goes_with_the_next_save(saved: Path) -> None:
    names = [f".{name}.ab12_xyz" for name in checkpoint.KEPT]
    others = [".checkpoint.safetensors.old", ".bashrc", "checkpoint.safetensors.ab12_xyz", ".mine.ab12_xyz"]
    for name in names + others:
        (saved / name).write_text("")
    Run.resume(saved, net(), mine()).save(saved)
    left = {path.name for path in saved.iterdir()}
    assert left == {FILE, "history.csv", "knobs.json", *others}


def test_a_save_does_not_replace_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds history\.csv, but no run .*: save to another folder"):
        tiny(net()).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_an_interrupt_in_a_save_is_raised_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = tiny(net()), checkpoint.write_atomically
    run.step(2)

    def interrupted(path: Path, content: bytes) -> None:
        if path.name == FILE:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run.save(tmp_path / str(times))
        assert sorted(path.name for path in (tmp_path / str(times)).iterdir()) == [FILE, "history.csv", "knobs.json"]
        assert Run.resume(tmp_path / str(times), net(), mine()).steps == 2
    times = 3
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path / "3")
    assert not (tmp_path / "3").exists(), "who asks three times does not want to wait"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
