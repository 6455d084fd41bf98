"""The command line as a user meets it; what goes wrong is one sentence."""

import re
import shlex
import subprocess
import sys

import pytest

import gsm_lab as gl
from gsm_lab import cli, knobs
from gsm_lab.cli import commands, parser
from gsm_lab.data.sources import FILES
from tests.cli.commands import ROOT, SHORT, command, environ, gsm_lab

COMMANDS = ("run", "resume", "report", "data", "lab", "knobs", "doctor")


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
    light = ("checks", "cli", "cli.commands", "cli.parser", "knobs", "paper", "paper.entries", "recipes", "wording")
    assert packages == "['gsm_lab']" and own == str([f"gsm_lab.{name}" for name in light])


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
    assert line[:3] == [sys.executable, "-m", "gsm_lab.notebook.lab"]
    assert "--ServerApp.ip=127.0.0.1" in line and f"--ServerApp.root_dir={ROOT / 'notebooks'}" in line
    assert line[-3:] == ["--no-browser", "--port", "8899"]
    assert not any("token" in part for part in line)  # Jupyter's own, random


def test_lab_really_is_jupyterlab():
    result = gsm_lab("lab", "--version")
    assert result.returncode == 0 and re.fullmatch(r"4\.\d+\.\d+\s*", result.stdout)
