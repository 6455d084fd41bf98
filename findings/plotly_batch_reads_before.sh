#!/usr/bin/env bash
# plotly 7.1.0: inside batch_update() a property that was just set still reads as what it was.
#
# What one expects: `with figure.batch_update():` puts off what is sent to the page, while the figure in Python is what
# the lines before have made it: so code that sets a layout and then works with it does the same inside and outside.
# What happens: assignments are kept aside until the block ends. Until then every read gives the old value, so a second
# change that starts from the first one silently throws that away. Here a list of annotations is extended twice: outside
# the block both stay, inside the first one is gone, and an annotation without text stands in its place.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check plotly==7.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import sys

import plotly
import plotly.graph_objects as go


def twice(block):
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), {"height": 300})
    with block(figure):
        figure.layout.height = 500
        seen = figure.layout.height
        for text in ("one", "two"):
            figure.layout.annotations = [*figure.layout.annotations, {"text": text, "x": 1, "y": 3}]
    return seen, figure.layout.height, [note.text for note in figure.layout.annotations]


inside, outside = twice(lambda figure: figure.batch_update()), twice(lambda _: contextlib.nullcontext())
print(f"plotly {plotly.__version__}: height set to 500 reads {inside[0]} inside batch_update and {outside[0]} outside; of two "
      f"annotations added one after the other there are {inside[2]} and {outside[2]}")
sys.exit(0 if inside == (300, 500, [None, "two"]) and outside == (500, 500, ["one", "two"]) else 1)
PYTHON
