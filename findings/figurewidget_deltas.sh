#!/usr/bin/env bash
# plotly 7.1.0, FigureWidget: a batch_update that sets y of one trace and only x of another makes the kernel raise
# "The truth value of an array with more than one element is ambiguous", once per update, as soon as a page shows it.
#
# What one expects: the second trace's y is left alone, on both sides, and nothing is raised.
# What happens: (1) for that y the kernel sends the placeholder "_undefined_"; (2) the page's model stores this word as
# the value of y (plotly.js itself leaves the drawn line alone), so the page then reports the whole of y as if it were a
# default, a dictionary from index to number; (3) the kernel merges dictionaries only, meets its numpy array, and asks
# whether that is empty with `not`. Lines whose y does not change while x grows (a target, a limit) run into it.
#
# Shown without a browser: the page's report is the one that the page's script makes (recorded in Chromium 156).
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check plotly==7.1.0 anywidget==0.11.0 ipywidgets==8.1.9 \
    numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import plotly.graph_objects as go


def y(value):
    return np.full(3, value, np.float32)


figure = go.FigureWidget([go.Scatter(x=y(0), y=y(1)), go.Scatter(x=y(0), y=y(2))])
sent = []
figure.comm.send = lambda data=None, **more: sent.append(data)
with figure.batch_update():
    figure.data[0].x, figure.data[0].y = y(5), y(6)
    figure.data[1].x, figure.data[1].y = y(5), y(2)  # the same y as before
updates = [d["state"]["_py2js_update"] for d in sent if d and (d.get("state") or {}).get("_py2js_update")]
style = updates[0]["style_data"]
print("sent to the page for y of the two traces:", [one if isinstance(one, str) else "an array" for one in style["y"]])

report = {"uid": figure.data[1].uid, "y": {"0": 2.0, "1": 2.0, "2": 2.0}}
message = {"trace_deltas": [report], "trace_edit_id": figure._last_trace_edit_id}
try:
    figure.set_state({"_js2py_traceDeltas": message})
    raised = "nothing"
except ValueError as error:
    raised = f"ValueError: {error}"
print("raised for the page's report:", raised)
so = style["y"][1] == "_undefined_" and "truth value of an array" in raised
print("as described" if so else "CHANGED")
sys.exit(not so)
PYTHON
