"""`import gsm_lab` is next to nothing; the public names come when they are used, and torch with what trains."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gsm_lab as gl

ROOT = Path(__file__).parents[1]
PUBLIC = (  # of the project's plan: what users, notebooks and checks rely on
    "Compare", "Dataset", "GSM", "Playground", "Run", "cut", "data", "expect", "explore", "figures", "knobs", "load",
    "models", "optim", "param_groups",
)  # fmt: skip


def modules_after(code: str, said: str = "") -> set[str]:
    """What a fresh process has imported; `said` is what the code prints."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.startswith(said)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_it_imports_nothing_of_weight() -> None:
    loaded = modules_after("import gsm_lab; from gsm_lab import expect; gsm_lab.knobs")
    assert not {"torch", "pandas", "plotly", "ipywidgets", "scipy"} & loaded


def test_to_draw_and_to_ask_for_help_needs_no_torch() -> None:
    draw = "gsm_lab.figures.lines(__import__('pandas').DataFrame({'a': [1.0, 2.0]}), 'a', 'b', 'c')"
    assert "torch" not in modules_after(f"import gsm_lab; {draw}")
    assert "torch" not in modules_after("from gsm_lab.cli import commands; commands.parser(commands.COMMANDS)")


def test_the_optimizer_alone_needs_torch_and_numpy() -> None:
    more = modules_after("from gsm_lab import GSM, cut, param_groups") - modules_after("import torch, numpy")
    assert {name.split(".")[0] for name in more} == {"gsm_lab"}
    assert all(name in ("gsm_lab", "gsm_lab._version") or name.startswith("gsm_lab.optim") for name in more)


def test_a_run_needs_no_widgets_and_no_figures() -> None:
    loaded = {name.split(".")[0] for name in modules_after("import gsm_lab; gsm_lab.Run; gsm_lab.load('digits')")}
    assert not {"ipywidgets", "plotly", "anywidget", "kaleido", "IPython", "requests"} & loaded


@pytest.mark.parametrize("name", ["Compare", "Playground", "explore"])
def test_a_page_is_told_of_plotly_before_torch_is_imported(name: str) -> None:
    """It reads that meanwhile."""
    early = "browser.plotly_js = lambda: print('torch' in sys.modules)"
    code = f"import sys, gsm_lab\nfrom gsm_lab.notebook import browser\n{early}\ngsm_lab.{name}"
    assert "torch" in modules_after(code, said="False\n")


def test_to_compare_numbers_needs_no_widgets() -> None:
    loaded = {name.split(".")[0] for name in modules_after("from gsm_lab import expect; expect('it', 1, 1, 0)")}
    assert not {"ipywidgets", "plotly", "anywidget"} & loaded


def test_training_needs_no_compiler_of_torch_s_and_no_scikit_learn() -> None:
    run = "run = gsm_lab.Run(data='digits', pretrain=1); run.step(30); run.opt.load_state_dict(run.opt.state_dict())"
    assert not {"torch._dynamo", "sklearn", "sympy"} & modules_after(f"import gsm_lab; {run}")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    value = getattr(gl, name)
    assert getattr(gl, name) is value and name in gl.__all__ and name in dir(gl)
    if isinstance(value, type(gl)):
        assert value.__name__.startswith("gsm_lab.") and value.__doc__
        assert value is importlib.import_module(value.__name__)
    else:
        assert value.__module__.startswith("gsm_lab.") and value.__doc__


def test_all_is_what_there_is() -> None:
    assert set(PUBLIC) <= set(gl.__all__) <= set(dir(gl))
    assert dir(gl) == sorted(dir(gl)) and "__version__" in dir(gl)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"module 'gsm_lab' has no attribute 'prune'; it has .*Run"):
        gl.prune  # noqa: B018
    assert not hasattr(gl, "__path_to_nowhere__")
