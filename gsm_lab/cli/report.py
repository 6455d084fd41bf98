"""What came out of a run as one HTML page that is interactive and works offline."""

from __future__ import annotations

import html
import importlib.metadata
import itertools
import json
import platform
import textwrap
from collections.abc import Iterable
from typing import Any

from gsm_lab import __version__
from gsm_lab.checks import kind
from gsm_lab.cli.summary import Results, finding, results
from gsm_lab.knobs import KNOBS
from gsm_lab.training.run import Run
from gsm_lab.wording import number

EVENTS_SHOWN = 100
_VERSIONS = ("torch", "numpy", "plotly")


def report(run: Run) -> str:
    """One self-contained HTML page about a run: results, the four plots, settings, moves of knobs, how to repeat it.

    Nothing in it is fetched from anywhere, and its policy forbids that.
    """
    found = results(kind("run", run, Run, "a gsm_lab.Run"))
    title = finding(run, found)
    tests = len(run.data.test_y)
    parts = [
        f"<h1>{_safe(title)}</h1>",
        f"<p class=sub>{_safe(_what(run))}</p>",
        "<h2>Results</h2>",
        _table(("test accuracy of", ""), found.rows()),
        f"<p class=note>Measured on {tests:,} test samples; one sample is {100 / tests:.2g} points. Live means with "
        "all weights as they are; cut means that all but the Q largest are set to zero, without training after it.</p>",
        _plots(run),
        _layers(found),
        "<h2>Settings</h2>",
        _table(("knob", "value", "what it is"), _settings(run)),
        "<h2>Knobs that moved</h2>",
        _events(run),
        "<h2>How to repeat it</h2>",
        f"<pre>{_safe(recipe(run))}</pre>",
        f"<p class=note>To the bit on the same machine, with the same versions and number of threads: "
        f"{_safe(_made_with(run))}. Data: {_safe(repr(run.data))}, digest {_safe(run.data.digest)}.</p>",
    ]
    return _PAGE.format(title=_safe(title), css=_CSS, body="\n".join(parts))


def recipe(run: Run) -> str:
    """How to get to where `run` is: a command where one will do, else Python."""
    kind("run", run, Run, "a gsm_lab.Run")
    named = isinstance(run.source_model, str) and isinstance(run.source_data, str)
    moves = [e for e in run.history.events if e["old"] is not None]
    began = dict(run.knobs) | {e["knob"]: e["new"] for e in reversed(run.history.events) if e["old"] is None}
    threads = _threads(run)
    if named and not moves and run.steps == run.planned:
        options = [f"--{name.replace('_', '-')} {number(began[name])}" for name in KNOBS]
        return f"gsm-lab run --threads {threads} {' '.join(options)}"
    own = [f"{what}=my_{what}" for what in ("model", "data") if not isinstance(getattr(run, f"source_{what}"), str)]
    given = [f"{what}={began[what]!r}" for what in ("model", "data") if f"{what}=my_{what}" not in own]
    knobs = [f"{name}={number(began[name])}" for name in KNOBS if name not in ("model", "data")]
    call = textwrap.fill(", ".join(own + given + knobs), 100, initial_indent="    ", subsequent_indent="    ")
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


def _what(run: Run) -> str:
    epochs = run.steps / run.epoch_steps
    return (
        f"{run.knobs['model']} on {run.data.name}, seed {run.knobs['seed']}: {run.dense_steps:,} dense steps, "
        f"then {run.steps:,} steps ({epochs:.4g} epochs) with the gate closed"
    )


def _settings(run: Run) -> Iterable[tuple[str, str, str]]:
    for name, knob in KNOBS.items():
        yield name, f"{number(run.knobs[name])} {knob.unit}".strip(), knob.help


def _layers(found: Results) -> str:
    if not found.layers:
        return ""
    rows = [
        (name, f"{size:,}", f"{kept:,}", f"{100 * kept / size:.2f}%") for name, (size, kept) in found.layers.items()
    ]
    total = (f"{found.weights:,}", f"{sum(kept for _, kept in found.layers.values()):,}")
    share = f"{100 * found.nonzeros / found.weights:.2f}%"
    table = _table(("layer", "weights", "kept by the cut", "share"), [*rows, ("all", *total, share)])
    return f"<h2>Where the weights stay</h2>{table}"


def _events(run: Run) -> str:
    moves = [e for e in run.history.events if e["old"] is not None]
    if not moves:
        return "<p>None: the settings above held all the way.</p>"
    rows = [
        (f"{e['step']:,}", f"{e['step'] / run.epoch_steps:.2f}", e["knob"], number(e["old"]), number(e["new"]))
        for e in moves[:EVENTS_SHOWN]
    ]
    more = len(moves) - len(rows)
    note = f"<p class=note>and {more:,} more</p>" if more > 0 else ""
    return _table(("after step", "epoch", "knob", "from", "to"), rows) + note


def _plots(run: Run) -> str:
    """The dashboard, beside one another on a wide page, below one another on a narrow one."""
    if not len(run.history.steps.array()):
        return ""
    from plotly.offline import get_plotlyjs

    from gsm_lab import figures

    figure = figures.dashboard(run.history)
    figure.update_layout(height=700)
    # "<" as an escape, so that no name in it can end the script
    data, wide = (json.dumps(json.loads(figure.to_json())[part]).replace("<", "\\u003c") for part in ("data", "layout"))
    narrow = json.dumps(_narrow(json.loads(figure.to_json())["layout"])).replace("<", "\\u003c")
    return (
        "<h2>What happened</h2><div id=plots></div><noscript><p>The plots need JavaScript.</p></noscript>"
        "<p class=note>A vertical line marks a moved knob. Drag to zoom, double-click to go back, click a name in a "
        "legend to hide its line.</p>"
        f"<script>{get_plotlyjs()}</script>"
        f"<script>const data = {data}, wide = {wide}, narrow = {narrow};{_DRAW}</script>"
    )


def _narrow(layout: dict[str, Any]) -> dict[str, Any]:
    """The dashboard's layout with its four plots below one another."""
    slot, low, high = 1 / 4, 0.13, 0.76  # in each quarter of the height: axis labels, the plot, its legend and title
    for i, (x, ys) in enumerate((("", ("", "2")), ("2", ("3",)), ("3", ("4",)), ("4", ("5",)))):
        bottom = 1 - (i + 1) * slot
        layout[f"xaxis{x}"]["domain"] = [0, 1]
        for y in ys:
            layout[f"yaxis{y}"]["domain"] = [bottom + low * slot, bottom + high * slot]
        layout[f"legend{x}"] |= {"x": 0, "y": bottom + high * slot}
        title = layout["annotations"][i]
        words = textwrap.wrap(title["text"].removeprefix("<b>").removesuffix("</b>"), 40)
        place = {"align": "left", "x": 0, "xshift": -50, "y": bottom + slot, "yanchor": "top"}
        title |= {"text": f"<b>{'<br>'.join(words)}</b>", **place}
    return layout | {"height": 1760, "margin": {"l": 58, "r": 50, "t": 4, "b": 4}}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; columns whose first entry begins with a digit are numbers, and stand to the right."""
    lines = [tuple(row) for row in rows]
    classes = [" class=n" if cell[:1].isdigit() else "" for cell in lines[0]]

    def row(tag: str, cells: Iterable[str]) -> str:
        inside = (f"<{tag}{kind}>{_safe(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    body = "".join(row("td", line) for line in lines)
    return f"<div class=wide><table><thead>{row('th', head)}</thead><tbody>{body}</tbody></table></div>"


def _made_with(run: Run) -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS]
    here = f"Python {platform.python_version()}", *versions, platform.machine(), f"{_threads(run)} threads"
    return ", ".join((f"gsm_lab {__version__}", *here)) + _waiting(run)


def _threads(run: Run) -> int:
    import torch

    return run.threads or torch.get_num_threads()


def _waiting(run: Run) -> str:
    return f" ({run.waiting} where they wait)" if run.waiting else ""


def _safe(text: Any) -> str:
    return html.escape(str(text))


_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 1120px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; text-wrap: balance; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.sub, .note { color: #555; margin: .4rem 0; }
.note { font-size: .9rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.6rem .3rem 0; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #444; }
.n { text-align: right; }
pre { background: #f4f4f4; padding: .8rem 1rem; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 24rem; overflow-y: auto; }
@media (max-width: 720px) { h1 { font-size: 1.3rem; } th, td { padding-right: .8rem; font-size: .92rem; } }
@media print {
  body { padding: 0; font-size: 11pt; max-width: none; }
  h2 { break-after: avoid; } tr, #plots { break-inside: avoid; }
  pre { max-height: none; } .modebar-container { display: none; }
  #plots { zoom: .68; }
}
"""

# Redrawn at the two moments when the page's width changes in kind: across 720 px, and around printing.
_DRAW = """
const plots = document.getElementById("plots"), small = matchMedia("(max-width: 720px)");
function draw(width) {
  const layout = structuredClone(small.matches && !width ? narrow : wide);
  if (width) Object.assign(layout, {autosize: false, width});
  plots.style.width = width ? width + "px" : "";
  Plotly.react(plots, structuredClone(data), layout, {responsive: !width, displaylogo: false});
}
draw();
small.addEventListener("change", () => draw());
addEventListener("beforeprint", () => draw(1000));
addEventListener("afterprint", () => draw());
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""
