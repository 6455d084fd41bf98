"""Interrupts as a user makes them: what was reached is kept, and a run that goes on is the same run."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

import gsm_lab as gl
from gsm_lab import cli
from gsm_lab.training import checkpoint
from tests.cli.commands import ALL, SHORT, STEPS, at_step, command, environ, same_state


@pytest.mark.parametrize(("phase", "options"), [(b"dense", (30, 3)), (b"gate closed", (1, 30))])
def test_interrupt_then_resume_equals_an_uninterrupted_run(tmp_path, phase, options):
    pretrain, epochs = options
    line = command("run", "--pretrain", pretrain, "--epochs", epochs, "--threads", 1, "--out", tmp_path)
    with subprocess.Popen(line, env=environ(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        seen = b""
        while phase not in seen:
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


def test_what_a_finished_run_left_goes_when_the_run_goes_on(whole, monkeypatch):
    def stop(run: gl.Run, n: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gl.Run, "step", stop)
    assert cli.main(["resume", str(whole), "--epochs", "3"]) == 128 + signal.SIGINT
    assert {path.name for path in whole.iterdir()} == {"checkpoint.safetensors", "history.csv", "knobs.json"}
    assert gl.Run.resume(whole).steps == 2 * STEPS


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
