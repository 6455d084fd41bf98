#!/usr/bin/env bash
# ipywidgets 8.1.9 embed, plotly 7.1.0, anywidget 0.11.0: a saved page of a live figure lacks the code that draws it.
#
# What one expects: `ipywidgets.embed.embed_data(views=[figure])`, and `embed_minimal_html` with it, write down all that
# a page needs to show a widget again without a kernel.
# What happens: a property that has its default is left out, unless drop_defaults=False is said, because the code in the
# page knows the defaults. A widget of anywidget's, as plotly's FigureWidget is, carries that very code in the property
# `_esm`, as a default: it is left out, too. Of a figure's 5 MB some kB are saved, and `_esm` is not among them; nor is
# it for a widget of one line. With drop_defaults=False all 5 MB are there, once for each figure.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check anywidget==0.11.0 ipywidgets==8.1.9 plotly==7.1.0
cd "$folder"
cat > look.py <<'PYTHON'
import json

import anywidget
import plotly.graph_objects as go
from ipywidgets.embed import embed_data


class Line(anywidget.AnyWidget):
    _esm = "export default { render({ el }) { el.textContent = 'here'; } }"


def saved(widget, **how):
    """Whether the widget's code is saved with it, and how many kB are saved in all."""
    state = embed_data([widget], **how)["manager_state"]["state"]
    return "_esm" in state[widget.model_id]["state"], len(json.dumps(state)) // 1000


figure = go.FigureWidget([{"y": [1, 2]}])
print(*saved(figure), *saved(figure, drop_defaults=False), *saved(Line()))
PYTHON
"$folder/venv/bin/python" look.py > said
read -r code size all_code all_size line _ < said
echo "code saved with a figure: $code ($size kB); with drop_defaults=False: $all_code ($all_size kB); with a line: $line"
[[ $code == False && $size -lt 100 && $all_code == True && $all_size -gt 4500 && $line == False ]]
