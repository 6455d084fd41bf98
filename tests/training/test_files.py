"""Files that are whole or not there, and one process a folder."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gsm_lab.training import files
from gsm_lab.training.files import FolderInUse, held, must_be_writable, remove_leftovers, write_atomically

ROOT = Path(__file__).parents[2]


def test_a_file_is_replaced_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace = tmp_path / "a", os.replace
    path.write_bytes(b"old")
    seen = []

    def looks(part: str, to: Path) -> None:
        seen.extend([path.read_bytes(), Path(part).read_bytes()])
        replace(part, to)

    monkeypatch.setattr(files.os, "replace", looks)
    write_atomically(path, b"new")
    assert seen == [b"old", b"new"] and path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_what_was_left_on_the_way_to_a_name_goes_and_nothing_else(tmp_path: Path) -> None:
    gone = [".a.b.abcd_123", ".can-it-be-written.abcdefgh"]
    stays = [".a.b.abcd", ".a.b.abcdefghi", "a.b.abcdefgh", ".axb.abcdefgh", ".c.abcdefgh", "a.b"]
    for name in gone + stays:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path, ["a.b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.ENOSPC, "make room there or name another place"),
        (errno.EROFS, "have it mounted for writing or name another place"),
        (errno.EACCES, "get the right to write there or name another place"),
        (errno.ENAMETOOLONG, "give it a shorter name or name another place"),
        (errno.EFBIG, "name another place"),
    ],
)
def test_what_cannot_be_written_names_place_cause_and_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way: str
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuses)
    with pytest.raises(OSError) as error:
        must_be_writable(tmp_path / "a")
    assert str(error.value) == f"{tmp_path / 'a'} cannot be written ({os.strerror(number)}): {way}"
    assert (
        error.value.errno == number
        and type(error.value) is type(OSError(number, ""))
        and not list((tmp_path / "a").iterdir())
    )


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    must_be_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


HOLDS = """
import sys
from pathlib import Path
from gsm_lab.training.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that holds `tmp_path`."""
    line = [sys.executable, "-c", HOLDS, tmp_path]
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_by_name_and_a_killed_one_does_not_block(
    tmp_path: Path, other: subprocess.Popen
) -> None:
    with pytest.raises(FolderInUse, match=f"is in use: process {other.pid} on .* writes to it; let it come to its"):
        held(tmp_path).__enter__()
    other.kill()
    other.wait()
    with held(tmp_path) as first:
        assert first
    assert not list(tmp_path.iterdir())


def test_one_process_may_hold_a_folder_several_times_and_in_several_threads(tmp_path: Path) -> None:
    folder, seen = tmp_path / "a", []
    inside, leave = threading.Event(), threading.Event()

    def again() -> None:
        with held(folder) as first:
            seen.append(first)
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=again)
    with held(folder) as first:
        seen.append(first)
        with held(tmp_path / "b" / ".." / "a") as nested:
            seen.append(nested)
        thread.start()
        assert inside.wait(60)
    assert (folder / files.LOCK).exists(), "the other thread still has it"
    leave.set()
    thread.join()
    assert seen == [True, False, False] and not folder.exists()


def test_a_folder_that_was_there_or_has_something_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "filled"):
        with held(tmp_path / name):
            if name == "filled":
                (tmp_path / name / "x").write_bytes(b"")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "filled", "x"]


def test_where_there_are_no_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    with pytest.warns(UserWarning, match="is on a file system without locks"), held(tmp_path) as first:
        assert first
