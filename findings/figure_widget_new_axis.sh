#!/usr/bin/env bash
# plotly 7.1.0 (Python), FigureWidget: update_layout of a new axis with a title tells the page the axis twice: refused.
#
# What one expects: `figure.update_layout(xaxis7={"title": {...}, ...}, yaxis7={...})` of a live figure does to the page
# what it does to the figure: both axes get all of their settings.
# What happens: where the figure has no `xaxis7` yet, and what it is given is nested, as a title with a font is, the
# message to the page holds the key "xaxis7" and beside it "xaxis7.showline", "xaxis7.title.font.size" and so on.
# plotly.js ends such an update at the second of these keys, with "cannot set xaxis7.showline and a parent attribute
# simultaneously" in the browser's console: the page has the first key alone, and nothing of yaxis7, while the figure in
# Python has everything. A figure that is made with the axis, or is given it by `figure.layout.xaxis7 = {...}`, sends one
# key.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check anywidget==0.11.0 ipywidgets==8.1.9 plotly==7.1.0
cd "$folder"
cat > look.py <<'PYTHON'
import plotly.graph_objects as go


def sent(change):
    """The keys of x axis 7 in what the page is told, for one way of giving a live figure that axis."""
    figure, keys = go.FigureWidget([{"y": [1, 2]}]), []
    names = {"_py2js_update": "layout_data", "_py2js_relayout": "relayout_data"}
    figure.observe(lambda told: keys.extend((told["new"] or {}).get(names[told["name"]], {})), list(names))
    change(figure)
    assert figure.layout.xaxis7.to_plotly_json() == AXIS
    return [key for key in keys if key.startswith("xaxis7")]


AXIS = {"showline": True, "title": {"font": {"size": 12}}}
print(*sent(lambda figure: figure.update_layout(xaxis7=AXIS)))
print(*sent(lambda figure: figure.layout.__setitem__("xaxis7", AXIS)))
PYTHON
"$folder/venv/bin/python" look.py > said
echo "keys that the page is told, by update_layout: $(sed -n 1p said); by assignment: $(sed -n 2p said)"
[[ $(sed -n 1p said) == "xaxis7 xaxis7.showline xaxis7.title.font.size" && $(sed -n 2p said) == "xaxis7" ]]
