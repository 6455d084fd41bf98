"""The set-up: what two files say must agree, and what no file may say is looked for."""

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import gsm_lab as gl
from tests import notebooks
from tests.browser import under_ci

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
ON_CONDA = {"torch": "pytorch-cpu", "kaleido": "python-kaleido"}  # the others have the same name there
ROOMS = {"notebooks", "gsm_lab", "tests"}
FOR_TOOLS = {"pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "README.md", "LICENSE", "findings"}
NO_END = {"torch"}  # asked for without an upper bound
HIDDEN = {".ci", ".gitignore"}
OF_MAKE = {"EXTRAS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}  # what the `make` that runs these tests was told
# cut in two, so that this file does not name them either
REGISTRIES = (
    "py|pi.org python|hosted.org download.py|torch.org ana|conda.org ana|conda.com deb|ian.org npm|js.org npm|js.com"
)


def required(*extras: str) -> dict[str, SpecifierSet]:
    """The direct dependencies and their ranges, by canonical name."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def pins() -> dict[str, Version]:
    """constraints.txt, by canonical name; every line pins exactly, for every machine."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            name, version = re.fullmatch(r"([\w.-]+)==([\w.!+]+)", text).groups()
            found[canonicalize_name(name)] = Version(version)
    return found


def conda_lines() -> list:
    """environment.yml's dependencies: Python first, pip's own section last."""
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


@functools.cache
def files() -> tuple[str, ...]:
    """What git has or would add, by its path from the top."""
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return tuple(path for path in listed.splitlines() if (ROOT / path).is_file())


def installed() -> dict[str, Version]:
    """All packages of this environment, by canonical name."""
    found = {}
    for distribution in importlib.metadata.distributions():  # of two of a name the first counts, as in an import
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), Version(distribution.version))
    return found


def make(*arguments: str) -> str:
    """What make would run, without running it."""
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", *arguments]
    environ = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    said = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout
    return said.replace("\\\n", " ")


def test_every_range_has_a_lower_and_an_upper_bound():
    for name, ranges in required("test", "clients").items():
        assert {s.operator for s in ranges} == ({">="} if name in NO_END else {">=", "<"}), name


def test_conda_and_pip_ask_for_the_same_ranges():
    _, *lines, last = conda_lines()
    conda = {r.name: r.specifier for r in map(Requirement, lines)}
    assert conda.pop("pip") == SpecifierSet()
    assert conda == {ON_CONDA.get(name, name): ranges for name, ranges in required("fast").items()}
    assert last == {"pip": ["-e ."]}, "the package itself; all it needs is there by then"


def test_conda_names_one_supported_python():
    # Binder chooses its base image by `python=X.Y`; at a range it takes its own default
    assert conda_lines()[0] in [f"python={version}" for version in SUPPORTED]


def test_supported_pythons_are_the_same_everywhere():
    ranges = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10", *SUPPORTED, "3.15") if v in ranges] == list(SUPPORTED)
    check = re.search(r"^SUPPORTED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert "not (3, 11) <= sys.version_info[:2] < (3, 15)" in check


def test_pins_lie_in_the_ranges():
    found = pins()
    for name, ranges in required("test", "clients").items():
        assert found[name] in ranges, name
        assert found[name].local is None, f"{name}: a local version exists on one kind of machine only"


def test_pins_cover_all_that_an_installation_brings():
    there = {*required("test"), *required("clients").keys() & installed().keys()}
    seen, waiting = set(), [(name, frozenset()) for name in there]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen or name.startswith(("nvidia-", "cuda-", "triton")):  # torch pins its own
            continue
        seen.add((name, extras))
        for line in importlib.metadata.requires(name) or []:
            r = Requirement(line)
            if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                waiting.append((canonicalize_name(r.name), frozenset(r.extras)))
    if sys.platform == "linux":  # elsewhere a few more come along
        assert {name for name, _ in seen} - pins().keys() == set()


def test_no_file_names_a_package_registry():
    hosts = REGISTRIES.replace("|", "").split()
    for path in files():
        text = (ROOT / path).read_bytes().decode(errors="replace").lower()
        assert [host for host in hosts if host in text] == [], path


def test_top_level_holds_only_its_rooms():
    assert {path.split("/")[0] for path in files()} <= ROOMS | FOR_TOOLS | HIDDEN


WHEEL = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
assert "torch" not in sys.modules
"""


def test_a_wheel_has_every_file_of_the_package_and_its_version(tmp_path):
    package = [path for path in files() if path.startswith("gsm_lab/")]
    for path in ("pyproject.toml", "README.md", "LICENSE", *package):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    command = [sys.executable, "-c", WHEEL, str(tmp_path / "dist")]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    wheel = tmp_path / "dist" / said.splitlines()[-1]
    assert wheel.name.startswith(f"gsm_lab-{gl.__version__}-")
    assert set(package) <= set(zipfile.ZipFile(wheel).namelist())


def test_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


@pytest.mark.parametrize("target", ["help", "lab", "test", "nbval", "bench", "soak", "clean"])
def test_make_has(target):
    assert make(target)
    assert f"make {target}" in make("help") or target == "help"


def test_lab_is_served_on_loopback_with_a_token():
    line = make("lab", "ARGS=--no-browser --port 8899").strip().splitlines()[-1]
    assert "-m gsm_lab.notebook.lab" in line
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in line
    assert line.count("ip=") == 1 and "--ServerApp.ip=127.0.0.1" in line
    assert "token" not in line.lower() and "password" not in line.lower()  # Jupyter's own: random, every time
    assert "--ServerApp.root_dir=notebooks" in line
    assert line.endswith("--no-browser --port 8899")


def test_test_target_runs_every_check():
    text = make("test")
    steps = ["tests.browser --install", "ruff check", "ruff format --check", "-m pytest --numprocesses"]
    assert [step for step in steps if step not in text] == []
    assert '-m "not bench and not soak"' in text, "the default leaves out the notebooks, too"
    assert "-m notebooks tests/test_notebooks.py" in make("nbval")
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    one, two = ({"OMP_NUM_THREADS": n} for n in "12")
    other = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    for wanted in (one, two, other):
        assert any(wanted.items() <= setting.items() for setting in notebooks.SETTINGS.values())


def test_a_notebook_that_fails_makes_the_check_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cell = nbformat.v4.new_code_cell("import os; print(os.environ['OMP_NUM_THREADS'])", execution_count=1)
    said = {}
    for threads in ("7", "8"):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{threads}\n")]
        path = tmp_path / f"saved with {threads}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        said[threads] = notebooks.wrong(path, {"OMP_NUM_THREADS": "7"})
    assert said["7"] == "" and "mismatch" in said["8"]


def test_every_notebook_is_checked_under_every_setting():
    asked = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "notebooks", "tests/test_notebooks.py"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert all(f"[{path.stem}-{setting}]" in listed for setting in notebooks.SETTINGS), path.name


def test_ci_runs_make_test():
    script = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in script and "export CI=true" in script
    assert re.search(r"^exec make test EXTRAS=test,clients\b", script, re.MULTILINE)
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0


def test_make_has_installed_the_pins():
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not the environment that make installs")
    there = installed()
    found = {name: there[name].public for name in {*required("test"), *required("clients").keys() & there.keys()}}
    assert found == {name: str(pins()[name]) for name in found}


def test_ci_has_every_client():
    # each module of tests/clients skips itself where its library is not there: under CI none may
    if not under_ci():
        pytest.skip("needed under CI only")
    assert required("clients").keys() - installed().keys() == set()


def test_make_test_installs_the_clients_only_if_asked():
    said = {extras: make("test", *extras) for extras in ((), ("EXTRAS=test,clients",))}
    assert "'.[test]'" in said[()] and "clients" not in said[()]
    assert "'.[test,clients]'" in said["EXTRAS=test,clients",]
