"""What the doctor says of an installation."""

import re

from gsm_lab import cli
from gsm_lab.cli import doctor
from gsm_lab.data.sources import FILES


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
    monkeypatch.setattr("gsm_lab.optim.fused.loader.compiled", lambda name: None)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^wrong +torch \S+ \(>=99,<100\)$", text, re.MULTILINE)
    assert re.search(r"^missing +no-such-package-at-all \(>=1,<2\)$", text, re.MULTILINE)
    assert re.search(r"^missing +a Chromium or Chrome", text, re.MULTILINE)
    assert re.search(r"^missing +numba \(only for a faster step", text, re.MULTILINE)
    assert re.search(r"^missing +mnist \(`gsm-lab data mnist`", text, re.MULTILINE)
