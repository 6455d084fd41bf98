"""The command line as a user meets it: real processes, real interrupts; what goes wrong is one sentence."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import gsm_lab as gl
from gsm_lab import cli, knobs
from gsm_lab.cli import commands, doctor, parser, run_folder
from gsm_lab.data.sources import FILES
from gsm_lab.training import checkpoint, files

ROOT = Path(__file__).parents[2]
SHORT = ["--pretrain", "1", "--epochs", "2", "--threads", "1"]
ALL = ("checkpoint.safetensors", "knobs.json", "history.csv", "weights.safetensors", "report.html")  # in a folder
STEPS = 22  # an epoch of the digits at batch 64
COMMANDS = ("run", "resume", "report", "data", "lab", "knobs", "doctor")


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "gsm_lab.cli", *map(str, args)]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def gsm_lab(*args: str | Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=cwd, env=environ(**more), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def straight() -> gl.Run:
    """What `SHORT` asks for, without the command line."""
    run = gl.Run(pretrain=1, epochs=2)
    run.train(progress=False)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which `gsm-lab run` was typed once, and what it said."""
    cwd = tmp_path_factory.mktemp("cwd")
    return cwd, gsm_lab("run", *SHORT, cwd=cwd)


def folder_of(cwd: Path) -> Path:
    return cwd / "runs/digits-lenet300-60x-seed0"


def same_state(a: gl.Run, b: gl.Run) -> None:
    """Two runs are equal to the bit, history included."""
    assert (a.steps, a.dense_steps, a.knobs) == (b.steps, b.dense_steps, b.knobs)
    for (name, x), y in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(a.opt.state[p]["momentum_buffer"], b.opt.state[q]["momentum_buffer"])
    pd.testing.assert_frame_equal(a.history.frame(), b.history.frame(), check_exact=True)
    assert a.history.events == b.history.events


# ------------------------------------------------------------------------------------------------ run


def test_run_leaves_everything_under_a_settled_name(finished):
    cwd, result = finished
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder_of(cwd).iterdir()} == {
        "checkpoint.safetensors", "weights.safetensors", "report.html", "history.csv", "knobs.json",
    }  # fmt: skip
    assert json.loads((folder_of(cwd) / "knobs.json").read_text())["epochs"] == 2
    assert "gate closed, C = 60: 100%" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_prints_the_table(finished, straight):
    out = finished[1].stdout
    figures = (straight.base, straight.magnitude, straight.evaluate(), straight.evaluate(cut=True))
    assert [float(x) for x in re.findall(r"(\d+\.\d\d)%", out)] == [round(100 * x, 2) for x in figures]
    assert "60x, 4,436 of 266,200" in out


def test_run_is_what_run_train_does(finished, straight):
    same_state(gl.Run.resume(folder_of(finished[0])), straight)


def test_weights_are_the_cut_network(finished, straight):
    tensors = load_file(folder_of(finished[0]) / "weights.safetensors")
    network = gl.models.lenet300()
    network.load_state_dict(tensors)
    assert sum(int((p != 0).sum()) for p in gl.models.prunable(network).values()) == 4436
    data = gl.load("digits")
    right = (network(data.test_x).argmax(1) == data.test_y).double().mean().item()
    assert right == pytest.approx(straight.evaluate(cut=True))


def test_run_does_not_replace_a_run_unasked(finished, capsys):
    folder = folder_of(finished[0])
    before = (folder / "checkpoint.safetensors").read_bytes()
    assert cli.main(["run", *SHORT, "--seed", "1", "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"gsm-lab resume {folder}" in said and "--overwrite" in said
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_overwrite_replaces(tmp_path):
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    assert cli.main(["run", *SHORT, "--out", str(tmp_path), "--seed", "3", "--pretrain", "0", "--overwrite"]) == 0
    run = gl.Run.resume(tmp_path)
    assert (run.knobs["seed"], run.knobs["pretrain"], run.dense_steps, run.steps) == (3, 0, 0, 2 * STEPS)
    assert "seed 3" in (tmp_path / "report.html").read_text()


def test_every_knob_is_an_option_and_none_is_forced():
    values = {"model": "lenet5", "data": "mnist", "seed": "7", "epochs": "3", "batch_size": "32", "pretrain": "4"}
    values |= {name: "0.5" for name in knobs.KNOBS if name not in values} | {"compression": "9", "evaluate_every": "5"}
    line = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    args = vars(parser.parser(commands.COMMANDS).parse_args(["run", *line]))
    assert {name: args[name] for name in knobs.KNOBS} == knobs.checked(values)
    assert [args[name] for name in ("epochs", "lr", "momentum")] == [3, 0.5, 0.5]
    without = vars(parser.parser(commands.COMMANDS).parse_args(["run"]))
    assert {without[name] for name in knobs.KNOBS} == {None}, "the recipe decides"


def test_help_says_of_every_knob_what_is_valid(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for knob in knobs.KNOBS.values():
        assert f"--{knob.name.replace('_', '-')} " in text
        assert knob.help in text and (knob.choices or knob.valid in text)
        assert f"(default {knob.default:g}" in text if not knob.choices else f"(default {knob.default})" in text


def test_help_imports_nothing_but_what_it_lists():
    code = (
        "import gsm_lab, sys; before = set(sys.modules); from gsm_lab import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('gsm_lab')))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ(), capture_output=True, text=True)
    *_, packages, own = result.stdout.splitlines()
    light = ("checks", "cli", "cli.commands", "cli.parser", "knobs", "paper", "paper.entries", "wording")
    assert packages == "['gsm_lab']" and own == str([f"gsm_lab.{name}" for name in light])


# ------------------------------------------------------------------------------------------------ interrupts


@pytest.mark.parametrize(("phase", "options"), [("dense", (30, 3)), ("gate closed", (1, 30))])
def test_interrupt_then_resume_equals_an_uninterrupted_run(tmp_path, phase, options):
    pretrain, epochs = options
    line = command("run", "--pretrain", pretrain, "--epochs", epochs, "--threads", 1, "--out", tmp_path)
    with subprocess.Popen(line, env=environ(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen = b""
        while phase.encode() not in seen:
            piece = os.read(process.stderr.fileno(), 4096)
            assert piece, seen.decode()
            seen += piece
        process.send_signal(signal.SIGINT)
        out, err = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 128 + signal.SIGINT, out + err
    assert f"gsm-lab resume {tmp_path}" in out and "Traceback" not in err
    stopped = gl.Run.resume(tmp_path)
    assert stopped.steps < epochs * STEPS
    assert f"{stopped.dense_steps:,} dense and {stopped.steps:,} of {epochs * STEPS:,} gated steps" in out
    assert f"{100 * stopped.evaluate():.2f}%" in out
    assert not (tmp_path / "report.html").exists(), "that of a run that is over"

    assert cli.main(["resume", str(tmp_path), "--threads", "1"]) == 0
    straight = gl.Run(pretrain=pretrain, epochs=epochs)
    straight.train(progress=False)
    same_state(gl.Run.resume(tmp_path), straight)
    assert (tmp_path / "report.html").exists()


def test_what_a_finished_run_left_goes_when_the_run_goes_on(tmp_path, monkeypatch):
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0

    def stop(run: gl.Run, n: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gl.Run, "step", stop)
    assert cli.main(["resume", str(tmp_path), "--epochs", "3"]) == 128 + signal.SIGINT
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "history.csv", "knobs.json"}
    assert gl.Run.resume(tmp_path).steps == 2 * STEPS


def at_step(monkeypatch, number: int, does) -> None:
    """After so many gated steps of any run something happens, once."""
    real = gl.Run._gated_step

    def step(run: gl.Run) -> None:
        real(run)
        if run.steps == number:
            monkeypatch.setattr(gl.Run, "_gated_step", real)
            does()

    monkeypatch.setattr(gl.Run, "_gated_step", step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_asks_to_end_stops_between_two_steps_and_keeps_all(tmp_path, monkeypatch, capsys, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), number))
    assert cli.main(["run", *SHORT, "--out", str(tmp_path / "a")]) == 128 + number
    out, err = capsys.readouterr()
    assert "Stopped after 22 dense and 7 of 44 gated steps; all is kept." in out and "Traceback" not in err
    assert gl.Run.resume(tmp_path / "a").steps == 7
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    at_step(monkeypatch, 12, lambda: os.kill(os.getpid(), number))
    assert cli.main(["resume", str(tmp_path / "a")]) == 128 + number
    assert gl.Run.resume(tmp_path / "a").steps == 12
    assert not (tmp_path / "a/.lock").exists()


def take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(os.name != "posix", reason="terminals as on Unix")
def test_a_terminal_that_is_closed_keeps_what_was_reached(tmp_path):
    """Nothing can be said any more, and that is no error."""
    import fcntl
    import struct
    import termios

    line = command("run", "--pretrain", 1, "--epochs", 500, "--threads", 1, "--out", tmp_path)
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # without columns there is no bar to see
    ends = {"stdin": inside, "stdout": inside, "stderr": inside}
    with subprocess.Popen(line, env=environ(), cwd=tmp_path, preexec_fn=take_terminal, **ends) as process:
        os.close(inside)
        seen = b""
        while b"gate closed, C = 60" not in seen:  # the bar's, not the table's at the end of a run
            seen += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(120) == 128 + signal.SIGHUP
    kept = gl.Run.resume(tmp_path)
    assert kept.dense_steps == STEPS and kept.steps < kept.planned


def test_a_hangup_that_is_ignored_stays_so(tmp_path, monkeypatch):
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("when", ["after the first", "in the last"])
def test_an_interrupt_in_a_save_lets_it_finish(tmp_path, monkeypatch, when, straight):
    if when == "after the first":
        at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    write, once = checkpoint.write_atomically, iter([signal.SIGINT])

    def interrupted(path: Path, content: bytes) -> None:
        for number in once:
            os.kill(os.getpid(), number)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "history.csv", "knobs.json"}
    assert gl.Run.resume(tmp_path).steps == (7 if when == "after the first" else 44)
    assert cli.main(["resume", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(ALL)
    same_state(gl.Run.resume(tmp_path), straight)


def test_interrupt_before_training_is_no_stack_trace(monkeypatch, capsys):
    def stop(self: gl.Run, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gl.Run, "__init__", stop)
    assert cli.main(["run"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "gsm-lab: interrupted\n"


# ------------------------------------------------------------------------------------------------ what breaks down

DIVERGES = ["--lr", "100", "--pretrain", "1", "--epochs", "5", "--threads", "1"]


def test_divergence_is_one_sentence_and_leaves_nothing(tmp_path):
    result = gsm_lab("run", *DIVERGES, "--out", tmp_path / "d")
    assert result.returncode == 1
    *bar, said = result.stderr.strip().splitlines()
    assert said.startswith("gsm-lab: ") and "no weight was changed" in said
    assert all("step/s" in line for line in bar if line), bar
    assert list(tmp_path.iterdir()) == []


def test_divergence_leaves_the_last_saved_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "SAVE_EVERY", 0.0)  # seconds: at every look at the clock
    monkeypatch.setattr(run_folder, "_PIECE", 1)
    assert cli.main(["run", *DIVERGES, "--out", str(tmp_path)]) == 1
    run = gl.Run.resume(tmp_path)
    assert run.steps > 0 and all(torch.isfinite(p).all() for p in run.model.parameters())
    assert f"the state after {run.steps:,} steps is in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(FloatingPointError):
        run.step()


# ------------------------------------------------------------------------------------------------ disks and writers


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
    failing(monkeypatch, lambda n: n in (4, 5), number)
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gsm-lab:")]
    assert len(said) == 2
    for line in said:
        assert f"{tmp_path} cannot be written ({os.strerror(number)})" in line
        assert line.endswith(f"the state after 20 dense steps is in {tmp_path}")
    same_state(gl.Run.resume(tmp_path), straight)
    assert {path.name for path in tmp_path.iterdir()} == set(ALL)


def test_a_disk_that_stays_full_is_one_sentence_with_what_is_kept(tmp_path, monkeypatch, capsys):
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    failing(monkeypatch, lambda n: True, errno.ENOSPC)
    capsys.readouterr()
    assert cli.main(["resume", str(tmp_path), "--epochs", "3"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"gsm-lab: {tmp_path} cannot be written (No space left on device): make room there or name another place; "
        f"the state after 44 steps is in {tmp_path}"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "all of the old state"


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


HOLDS = """
import sys
from pathlib import Path
from gsm_lab.training.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_name_until_the_first_has_ended(whole, capsys):
    line = [sys.executable, "-c", HOLDS, whole]
    with subprocess.Popen(line, env=environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        run = gl.Run.resume(whole)
        before = {path.name: path.read_bytes() for path in whole.iterdir() if path.name in ALL}
        for second in (["run", *SHORT, "--overwrite", "--out"], ["resume", "--epochs", "3"], ["report"]):
            assert cli.main([*second, str(whole)]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"gsm-lab: {whole} is in use: process {first.pid} on ") and said.count("\n") == 1
        with pytest.raises(OSError, match=f"is in use: process {first.pid} on"):
            run.save(whole)
        assert {path.name: path.read_bytes() for path in whole.iterdir() if path.name in ALL} == before
        first.kill()
    assert cli.main(["report", str(whole)]) == 0, "a lock does not outlive its process"
    assert {path.name for path in whole.iterdir()} == set(ALL)


# ------------------------------------------------------------------------------------------------ resume, report


def test_resume_of_a_finished_run_says_so(finished, capsys):
    assert cli.main(["resume", str(folder_of(finished[0]))]) == 0
    assert "at the end of its 2 epochs; --epochs N extends it" in capsys.readouterr().out


def test_resume_extends(tmp_path, capsys):
    assert cli.main(["run", *SHORT, "--out", str(tmp_path)]) == 0
    assert cli.main(["resume", str(tmp_path), "--epochs", "1"]) == 2
    assert "has 2 epochs behind it" in capsys.readouterr().err
    assert cli.main(["resume", str(tmp_path), "--epochs", "4"]) == 0
    extended = gl.Run.resume(tmp_path)
    oracle = gl.Run(pretrain=1, epochs=2)
    oracle.train(progress=False)
    oracle.set(epochs=4)
    oracle.train(progress=False)
    same_state(extended, oracle)


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(folder_of(finished[0]), tmp_path / "whole"))


def looked_at(folder: Path, capsys) -> dict[str, str]:
    """What the doctor finds, by file."""
    capsys.readouterr()
    status = cli.main(["doctor", str(folder)])
    found = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert status == int(any(state != "ok" for state, _ in found))
    return {next(name for name in ALL if name in text): state for state, text in found}


def test_the_doctor_finds_a_finished_folder_whole(whole, capsys):
    assert looked_at(whole, capsys) == dict.fromkeys(ALL, "ok")


@pytest.mark.parametrize(("name", "command"), [*zip(ALL[1:], ["report", "resume"] * 2, strict=True)])
def test_what_is_damaged_or_gone_is_made_again(whole, name, command, capsys):
    good = {path.name: path.read_bytes() for path in whole.iterdir()}
    bad = bytearray(good[name])
    bad[len(bad) // 2] ^= 1
    (whole / name).write_bytes(bad)
    assert looked_at(whole, capsys) == dict.fromkeys(ALL, "ok") | {name: "wrong"}
    assert cli.main([command, str(whole)]) == 0
    assert looked_at(whole, capsys) == dict.fromkeys(ALL, "ok")
    (whole / name).unlink()
    assert cli.main([command, str(whole)]) == 0
    if command == "resume":
        assert f"Written again, as it was missing, damaged or of another state: {name}." in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == good


def test_what_belongs_to_another_state_is_noticed(whole, capsys):
    """As a kill leaves it between a new checkpoint and the removal of what belonged to the old one."""
    run = gl.Run.resume(whole)
    run.step()
    run.save(whole)
    derived = dict.fromkeys(("weights.safetensors", "report.html"), "wrong")
    assert looked_at(whole, capsys) == dict.fromkeys(ALL, "ok") | derived
    assert cli.main(["report", str(whole)]) == 0
    assert looked_at(whole, capsys) == dict.fromkeys(ALL, "ok")


def test_the_doctor_on_a_damaged_checkpoint_and_on_nothing(whole, capsys):
    (whole / "checkpoint.safetensors").write_bytes(b"cut short")
    assert cli.main(["doctor", str(whole)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("wrong ") and "is damaged" in out and out.count("\n") == 1
    assert cli.main(["doctor", str(whole / "nowhere")]) == 1
    assert "there is no run in" in capsys.readouterr().out


def test_report_is_made_again(finished, capsys):
    page = folder_of(finished[0]) / "report.html"
    before = page.read_text()
    page.unlink()
    assert cli.main(["report", str(page.parent)]) == 0
    assert page.read_text() == before
    assert capsys.readouterr().out.strip() == str(page)


# ------------------------------------------------------------------------------------------------ a sentence each


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run --lr -3", "lr must be a number from 0 to 100, got '-3'"),
        ("run --momentum 1", "momentum must be a number from 0 to below 1, got '1'"),
        ("run --epochs 1.5", "epochs must be a whole number from 1 to 1,000,000,000, got '1.5'"),
        ("run --model vgg", "model must be one of lenet300, lenet5, resnet56, got 'vgg'"),
        ("run --threads 0", "threads must be a whole number >= 1, got 0"),
        ("run --pre 3", "unknown argument '--pre'"),
        ("run --batch-size 5000 --pretrain 0", "batch_size is 5000; valid: an integer in 1 .. 1437"),
        ("data cifar", "name is 'cifar'; valid: digits, mnist, fashion_mnist"),
        ("resume NOWHERE", "there is no run in NOWHERE: checkpoint.safetensors is missing"),
        ("report NOWHERE", "there is no run in NOWHERE: checkpoint.safetensors is missing"),
        ("dance", "invalid choice: 'dance'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_arguments(line, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(shlex.split(line))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert sentence in err and err.startswith("gsm-lab: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there(tmp_path, monkeypatch, capsys):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there: offline, as far as we are concerned
    monkeypatch.setenv("GSM_LAB_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    assert cli.main(["run", "--data", "mnist", "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "could not be downloaded" in said and "gsm-lab data mnist" in said and "Traceback" not in said
    assert not (tmp_path / "a").exists()


def test_damaged_data_and_a_damaged_run(tmp_path, capsys):
    (tmp_path / "mnist").mkdir()
    for file in FILES:
        (tmp_path / "mnist" / file).write_bytes(b"no idea")
    assert cli.main(["data", "mnist", "--root", str(tmp_path)]) == 2
    assert FILES[0] in capsys.readouterr().err
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cut short")
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_found_out_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["run", *SHORT, "--out", str(tmp_path / "file/run")]) == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said and "step/s" not in said


# ------------------------------------------------------------------------------------------------ the small ones


def test_digits_ship(capsys):
    assert cli.main(["data", "digits"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_knobs_are_printed(capsys):
    assert cli.main(["knobs"]) == 0
    assert capsys.readouterr().out.strip() == knobs.table()


def test_a_reader_who_leaves_early_is_no_error():
    line = f"{shlex.join(command('knobs'))} | head -c 1"
    result = subprocess.run(line, shell=True, cwd=ROOT, env=environ(), capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("|", "")


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"gsm-lab {gl.__version__}\n"


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name} " not in text] == []


def test_lab_is_jupyterlab_on_the_notebooks_on_loopback(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "call", lambda line, env: started.append(line) or 0)
    assert cli.main(["lab", "--no-browser", "--port", "8899"]) == 0
    (line,) = started
    assert line[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ServerApp.ip=127.0.0.1" in line and f"--ServerApp.root_dir={ROOT / 'notebooks'}" in line
    assert line[-3:] == ["--no-browser", "--port", "8899"]
    assert not any("token" in part for part in line)  # Jupyter's own, random


def test_lab_really_is_jupyterlab():
    result = gsm_lab("lab", "--version")
    assert result.returncode == 0 and re.fullmatch(r"4\.\d+\.\d+\s*", result.stdout)


def test_doctor_finds_what_is_installed(capsys, monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    for file in FILES:
        (tmp_path / "mnist" / f"{file}.gz").write_bytes(b"")
    monkeypatch.setenv("GSM_LAB_DATA", str(tmp_path))
    status = cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    for name in ("Python", "torch", "jupyterlab", "plotly", "ipywidgets"):
        assert [line for line in lines if re.match(rf"ok +{name} \d", line)], name
    assert "ok       1 threads for training" in "\n".join(lines)
    assert f"ok       mnist in {tmp_path / 'mnist'}" in lines
    assert status == 0


def test_doctor_says_what_is_missing_or_does_not_fit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["torch>=99,<100", "no-such-package-at-all>=1,<2"])
    monkeypatch.setenv("GSM_LAB_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("gsm_lab.optim.gate.compiled", lambda: None)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^wrong +torch \S+ \(>=99,<100\)$", text, re.MULTILINE)
    assert re.search(r"^missing +no-such-package-at-all \(>=1,<2\)$", text, re.MULTILINE)
    assert re.search(r"^missing +a Chromium or Chrome", text, re.MULTILINE)
    assert re.search(r"^missing +numba \(only for a faster step", text, re.MULTILINE)
    assert re.search(r"^missing +mnist \(`gsm-lab data mnist`", text, re.MULTILINE)


def test_what_was_kept_out_of_the_competition_stays_whole_in_the_weights_that_are_left(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
    run = gl.Run(model, "digits", exclude="3.weight", compression=50, pretrain=0, epochs=1)
    run_folder.train(run, tmp_path / "a")
    left = checkpoint.load_weights(tmp_path / "a")
    assert int((left["1.weight"] != 0).sum()) == run.nonzeros == 784 * 12 // 50
    assert torch.equal(left["3.weight"], model[3].weight)


def test_what_a_kill_left_behind_the_last_save_goes_when_the_folder_is_looked_after(tmp_path):
    run = gl.Run("lenet300", "digits", compression=20, pretrain=0, epochs=1)
    run_folder.train(run, tmp_path)
    for name in (".knobs.json.r36tot0c", ".report.html.00000000"):
        (tmp_path / name).write_bytes(b"half of it")
    (tmp_path / ".mine.r36tot0c").write_bytes(b"somebody's own")
    assert run_folder.complete(run, tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {*checkpoint.KEPT, ".mine.r36tot0c"}
