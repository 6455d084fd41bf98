"""A run's folder: what is in it, what is damaged, who holds it, and how a run goes on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gsm_lab as gl
from gsm_lab import cli
from gsm_lab.cli import run_folder
from gsm_lab.training import checkpoint
from tests.cli.commands import ALL, SHORT, STEPS, environ, folder_of, same_state


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


def test_overwrite_replaces(whole):
    assert cli.main(["run", *SHORT, "--out", str(whole), "--seed", "3", "--pretrain", "0", "--overwrite"]) == 0
    run = gl.Run.resume(whole)
    assert (run.knobs["seed"], run.knobs["pretrain"], run.dense_steps, run.steps) == (3, 0, 0, 2 * STEPS)
    assert "seed 3" in (whole / "report.html").read_text()


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


def test_resume_of_a_finished_run_says_so(finished, capsys):
    assert cli.main(["resume", str(folder_of(finished[0]))]) == 0
    assert "at the end of its 2 epochs; --epochs N extends it" in capsys.readouterr().out


def test_resume_extends(whole, capsys):
    assert cli.main(["resume", str(whole), "--epochs", "1"]) == 2
    assert "has 2 epochs behind it" in capsys.readouterr().err
    assert cli.main(["resume", str(whole), "--epochs", "4"]) == 0
    extended = gl.Run.resume(whole)
    oracle = gl.Run(pretrain=1, epochs=2)
    oracle.train(progress=False)
    oracle.set(epochs=4)
    oracle.train(progress=False)
    same_state(extended, oracle)


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
