"""A run as one HTML page that is interactive and works offline."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import platform
import textwrap
from importlib import resources
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined, Template

from gsm_lab._version import __version__
from gsm_lab.checks import kind
from gsm_lab.cli.summary import Results, finding, results
from gsm_lab.knobs import KNOBS
from gsm_lab.training.run import Run
from gsm_lab.wording import number, percent

EVENTS_SHOWN = 100


def report(run: Run) -> str:
    """One self-contained HTML page about a run: results, the four plots, settings, moves of knobs, how to repeat it.

    Nothing in it is fetched from anywhere, and its policy forbids that.
    """
    found = results(kind("run", run, Run, "a gsm_lab.Run"))
    return _template().render(
        title=finding(run, found),
        about=f"{run.knobs['model']} on {run.data.name}, seed {run.knobs['seed']}: {run.dense_steps:,} dense steps, "
        f"then {run.steps:,} steps ({run.steps / run.epoch_steps:.4g} epochs) with the gate closed",
        found=found,
        tests=len(run.data.test_y),
        plots=_plots(run),
        layers=_layers(found),
        settings=[(name, f"{number(run.knobs[name])} {knob.unit}".strip(), knob.help) for name, knob in KNOBS.items()],
        moves=[
            (f"{e['step']:,}", f"{e['step'] / run.epoch_steps:.2f}", e["knob"], number(e["old"]), number(e["new"]))
            for e in run.history.events
            if e["old"] is not None
        ],
        shown=EVENTS_SHOWN,
        recipe=recipe(run),
        made_with=_made_with(run),
        data=run.data,
    )


def recipe(run: Run) -> str:
    """How to get to where `run` is: a command where one will do, else Python."""
    kind("run", run, Run, "a gsm_lab.Run")
    mine = {"loss": run.given_loss, "metric": run.given_metric, "output": run.output}
    mine = [f"{what}=my_{what}" for what, given in mine.items() if given is not None]
    named = isinstance(run.source_model, str) and isinstance(run.source_data, str) and not mine
    moves = [e for e in run.history.events if e["old"] is not None]
    began = dict(run.knobs) | {e["knob"]: e["new"] for e in reversed(run.history.events) if e["old"] is None}
    threads = _threads(run)
    if named and not moves and run.steps == run.planned:
        options = [f"--{name.replace('_', '-')} {number(began[name])}" for name in KNOBS]
        return f"gsm-lab run --threads {threads} {' '.join(options)}"
    own = [f"{what}=my_{what}" for what in ("model", "data") if not isinstance(getattr(run, f"source_{what}"), str)]
    given = [f"{what}={began[what]!r}" for what in ("model", "data") if f"{what}=my_{what}" not in own]
    knobs = [f"{name}={number(began[name])}" for name in KNOBS if name not in ("model", "data")]
    call = textwrap.fill(", ".join(own + given + mine + knobs), 100, initial_indent="    ", subsequent_indent="    ")
    lines = ["import torch, gsm_lab as gl", "", f"torch.set_num_threads({threads})", f"run = gl.Run(\n{call})"]
    at = 0
    for step, together in itertools.groupby(moves, lambda e: e["step"]):
        lines += [f"run.step({step - at})"] if step > at else []
        moved = ", ".join(f"{e['knob']}={number(e['new'])}" for e in together)
        lines.append(f"run.set({moved})")
        at = step
    if run.steps > at:
        lines.append(f"run.step({run.steps - at})")
    elif run.steps == 0:
        lines.append(f"run.pretrain({run.dense_steps})")
    return "\n".join(lines)


# -- parts of the page -------------------------------------------------------------------------------------------------


def _template() -> Template:
    text = (resources.files("gsm_lab.cli") / "report.html").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    made.policies["json.dumps_kwargs"] = {}  # in the order of the figure
    return made.from_string(text)


def _layers(found: Results) -> list[tuple[str, str, str, str]]:
    """Layers, their weights, how many of them the cut keeps, and the share; last of all together."""
    rows = [(name, size, kept, kept / size) for name, (size, kept) in found.layers.items()]
    kept = sum(kept for _, kept in found.layers.values())
    rows += [("all", found.weights, kept, found.nonzeros / found.weights)] if rows else []
    return [(name, f"{size:,}", f"{kept:,}", percent(share)) for name, size, kept, share in rows]


def _plots(run: Run) -> dict[str, Any] | None:
    """The dashboard's traces, its layout on a wide page (plots beside one another) and on a narrow one, and plotly."""
    if not len(run.history.steps.array()):
        return None
    from plotly.offline import get_plotlyjs

    from gsm_lab import figures

    telephone = figures.Arrangement(columns=1, width=320, row=400)
    arranged = {"wide": figures.Arrangement(width=1000, row=346), "narrow": telephone}
    plain = {
        name: json.loads(figures.dashboard(run.history, arrangement=arrangement).to_json())
        for name, arrangement in arranged.items()
    }
    layouts = {name: figure["layout"] for name, figure in plain.items()}
    return {"plotly": get_plotlyjs(), "data": plain["wide"]["data"], **layouts}


def _made_with(run: Run) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "plotly")]
    waiting = f" ({run.waiting} where they wait)" if run.waiting else ""
    here = f"Python {platform.python_version()}", *versions, platform.machine(), f"{_threads(run)} threads{waiting}"
    return ", ".join((f"gsm_lab {__version__}", *here))


def _threads(run: Run) -> int:
    return run.threads or torch.get_num_threads()
