"""Does a figure fit? What plotly draws of it in a real browser, measured: texts that overlap, are cut off or faint.

    with page(chromium) as drawn:
        drawn.faults(figure)                    # sentences, none where all is well
        drawn.faults(figure, widths=[604])
    look(page, ".gsm-playground .js-plotly-plot")   # a figure that some page, such as JupyterLab's, already shows

`grey(figure)` says which lines of a plot look alike without colour; it needs no browser.

A figure is drawn as JupyterLab does: in a white or a dark page, as wide as the output of a cell, with the mode bar out
(it comes when the mouse is over the figure, which is when one reads it).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure
from plotly.colors import validate_colors
from plotly.offline import get_plotlyjs

# Width of a cell's output in JupyterLab 4.6, in pixels, by the width of the page (measured, light and dark alike):
# beside the file browser, and with that closed. On a page of 720 the file browser leaves 352, too little for a plot.
BESIDE_FILES = {1000: 568, 1440: 1008, 1920: 1488}
FILES_CLOSED = {720: 604, 1000: 820, 1440: 1260, 1920: 1740}
WIDTHS = (604, 568, 1008, 1488)  # pages of 720, 1000, 1440, 1920
ALL_WIDTHS = tuple(sorted({*BESIDE_FILES.values(), *FILES_CLOSED.values()}))
CONTRAST = 4.0  # the least, of a text against what is behind it
SMALLEST = 10.0  # pixels, of a letter
SLACK = 1.5  # pixels that something may reach over an edge
APART = 0.12  # of the way from black to white, between fills that are to be told apart
Figure = BaseFigure | dict[str, Any]
DARK = "#111111"  # JupyterLab's dark page

# The figures' own units are the browser's pixels. A text's box is that of its letters, turned as they are; of the
# height of a line, which has room above and below the letters, a part is left out.
_LOOK = """
([plot, least, smallest, slack]) => {
  const faults = [], card = plot.querySelector(".main-svg").getBoundingClientRect(), full = plot._fullLayout ?? {};
  const short = text => text.length > 60 ? text.slice(0, 57) + "..." : text;
  const hex = c => { const m = (c ?? "").match(/[\\d.]+/g)?.map(Number);
                     return m && m.length >= 3 ? [m[0], m[1], m[2], m[3] ?? 1] : [0, 0, 0, 0]; };
  const over = (top, under) => [0, 1, 2].map(k => top[3] * top[k] + (1 - top[3]) * under[k]).concat([1]);
  const light = c => { const [r, g, b] = c.map(v =>
                         (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const corners = (node, trim) => {
    const box = node.getBBox(), m = node.getScreenCTM(), points = [];
    const cut = trim * box.height / Math.max(1, node.querySelectorAll("tspan.line").length);
    for (const [x, y] of [[0, 0], [1, 0], [1, 1], [0, 1]])
      points.push(new DOMPoint(box.x + x * box.width, y ? box.y + box.height - cut : box.y + cut).matrixTransform(m));
    return points.map(p => [p.x, p.y]);
  };
  const rectangle = r => [[r.left, r.top], [r.right, r.top], [r.right, r.bottom], [r.left, r.bottom]];
  const around = points => { const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
    return {left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys)}; };
  const reach = (points, x, y) => { const d = points.map(p => p[0] * x + p[1] * y);
                                    return [Math.min(...d), Math.max(...d)]; };
  const meet = (a, b) => {  // of two convex shapes: no line parts them
    for (const shape of [a, b])
      for (let i = 0; i < 2; i++) {
        const dx = shape[i + 1][0] - shape[i][0], dy = shape[i + 1][1] - shape[i][1], n = Math.hypot(dx, dy) || 1;
        const [p, q] = reach(a, -dy / n, dx / n), [r, s] = reach(b, -dy / n, dx / n);
        if (q - r < slack || s - p < slack) return false;
      }
    return true;
  };
  const kinds = [[".gtitle", "title"], [".legendtext", "legend entry"], [".legendtitletext", "legend title"],
                 [".colorbar", "colour bar label"], [".slider-container", "slider label"],
                 [".updatemenu-container", "menu label"], [".annotation", "annotation"], [".textpoint", "point label"],
                 [".xtick, .x2tick, .ytick, [class*=tick]", "tick label"], ["[class*=title]", "axis title"]];
  const named = node => {
    const text = short((node.getAttribute("data-unformatted") ?? node.textContent).replace(/<br>/g, " ")
                       .replace(/<[^>]*>/g, ""));
    return `${(kinds.find(([selector]) => node.closest(selector)) ?? ["", "text"])[1]} "${text}"`;
  };
  const paper = over(hex(getComputedStyle(plot.querySelector(".main-svg")).backgroundColor),
                     over(hex(getComputedStyle(document.body).backgroundColor), [255, 255, 255, 1]));
  const probe = document.body.appendChild(document.createElement("i"));  // says "white" in numbers
  probe.style.color = full.plot_bgcolor;
  const ground = over(hex(getComputedStyle(probe).color), paper);
  probe.remove();
  const areas = Object.values(full._plots ?? {}).map(p => p.plotgroup?.node() && p.xaxis && p.yaxis && {
    left: card.left + p.xaxis._offset, right: card.left + p.xaxis._offset + p.xaxis._length,
    top: card.top + p.yaxis._offset, bottom: card.top + p.yaxis._offset + p.yaxis._length}).filter(Boolean);
  const seen = [];
  for (const node of plot.querySelectorAll(".main-svg text")) {
    const style = getComputedStyle(node), text = node.textContent.trim();
    if (!text || node.closest(".hoverlayer, .modebar, defs") || style.display === "none") continue;
    let opacity = Number(style.fillOpacity), shown = style.visibility === "visible";
    for (let up = node; up && up !== plot; up = up.parentElement) {
      opacity *= Number(getComputedStyle(up).opacity);
      shown &&= getComputedStyle(up).display !== "none";
    }
    const shape = corners(node, 0.14), box = around(shape), what = named(node);
    if (!shown || opacity === 0 || box.right - box.left === 0) continue;
    for (let up = node.parentElement; up && up !== plot; up = up.parentElement) {
      const clip = up.getAttribute("clip-path")?.match(/#([^'")]+)/)?.[1];
      const rect = clip && document.getElementById(clip)?.querySelector("rect");
      if (!rect) continue;
      const [x, y, w, h] = ["x", "y", "width", "height"].map(k => Number(rect.getAttribute(k) ?? 0));
      const m = up.getScreenCTM(), a = new DOMPoint(x, y).matrixTransform(m);
      const b = new DOMPoint(x + w, y + h).matrixTransform(m);
      if (box.left < a.x - slack || box.right > b.x + slack || box.top < a.y - slack || box.bottom > b.y + slack)
        faults.push(`${what} is cut off by the edge of what it is in`);
    }
    const out = [["left", card.left - box.left], ["right", box.right - card.right], ["upper", card.top - box.top],
                 ["lower", box.bottom - card.bottom]].filter(([, by]) => by > slack);
    for (const [edge, by] of out) faults.push(`${what} is cut off at the ${edge} edge, by ${Math.round(by)} px`);
    const size = parseFloat(style.fontSize);
    if (size < smallest) faults.push(`${what} has letters of ${size} px`);
    const x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
    let behind = areas.some(r => r.left < x && x < r.right && r.top < y && y < r.bottom) ? ground : paper;
    const card_of = node.closest(".annotation-text-g, .legend");
    const bg = card_of?.querySelector("rect.bg");
    if (bg) { const s = getComputedStyle(bg), c = hex(s.fill); c[3] *= Number(s.fillOpacity) * Number(s.opacity);
              behind = over(c, behind); }
    const ink = hex(style.fill); ink[3] *= opacity;
    const [l, d] = [light(over(ink, behind)), light(behind)].sort((a, b) => b - a), ratio = (l + 0.05) / (d + 0.05);
    if (ratio < least) faults.push(`${what} is faint: contrast ${ratio.toFixed(1)}`);
    seen.push({what, shape, box, legend: node.closest(".legend")});
    const r = node.closest(".traces")?.querySelector(".layers")?.getBoundingClientRect();
    const legend = node.closest(".legend");
    if (r?.width) seen.push({what: `line of ${what}`, shape: rectangle(r), box: r, legend, of: what});
  }
  for (let i = 0; i < seen.length; i++)
    for (let j = 0; j < i; j++) {
      const a = seen[j], b = seen[i];
      if (a.of === b.what || b.of === a.what || (a.of && b.of)) continue;
      if (a.box.right < b.box.left || b.box.right < a.box.left || a.box.bottom < b.box.top || b.box.bottom < a.box.top)
        continue;
      if (meet(a.shape, b.shape)) faults.push(`${a.what} overlaps ${b.what}`);
    }
  for (const {what, box, legend} of seen)
    if (legend && areas.some(r => box.left < r.right - slack && r.left < box.right - slack && box.top < r.bottom - slack
                                  && r.top < box.bottom - slack))
      faults.push(`${what} lies over a plot`);
  const bar = [...plot.querySelectorAll(".modebar-group")].map(g => g.getBoundingClientRect()).filter(r => r.width);
  for (const {what, shape} of seen)
    if (bar.some(r => meet(shape, rectangle(r)))) faults.push(`the mode bar covers ${what}`);
  for (const r of areas)
    if (r.right - r.left < 60 || r.bottom - r.top < 60)
      faults.push(`a plot of ${Math.round(r.right - r.left)} x ${Math.round(r.bottom - r.top)} px is too small`);
  return [...new Set(faults)];
}
"""
_DRAW = """
async ([figure, width, dark]) => {
  document.body.style.background = dark;
  const node = document.getElementById("figure");
  Plotly.purge(node);
  node.style.width = width + "px";
  const layout = {...figure.layout, height: figure.layout.height ?? 360};  // as JupyterLab's renderer has it
  await Plotly.newPlot(node, figure.data, layout, {...figure.config, displayModeBar: true});
}
"""


class Drawn:
    """A page that draws figures and says what is wrong with them."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def faults(self, figure: Figure, widths: Sequence[int] = WIDTHS, dark: bool = False) -> list[str]:
        """What is wrong with a figure (or its JSON) at these widths in pixels; in a dark page, if wanted."""
        content = json.loads(figure.to_json()) if isinstance(figure, BaseFigure) else figure
        found = []
        for width in widths:
            self.draw(content, width, dark)
            found += [f"{width} px: {fault}" for fault in look(self.page, "#figure")]
        return found

    def draw(self, figure: Figure, width: int, dark: bool = False) -> None:
        """Draw a figure at a width, and leave it there."""
        content = json.loads(figure.to_json()) if isinstance(figure, BaseFigure) else figure
        self.page.evaluate(_DRAW, [content, width, DARK if dark else "white"])

    def shot(self) -> bytes:
        """The figure that is there, as PNG."""
        return self.page.locator("#figure").screenshot()


@contextlib.contextmanager
def page(chromium: Any) -> Iterator[Drawn]:
    """A page with the plotly.js of the plotly package, which can reach nothing else."""
    new = chromium.new_page(viewport={"width": 1920, "height": 900})
    try:
        new.route("**/*", lambda route: route.abort())
        new.set_content('<!doctype html><body style="margin:0"><div id="figure"></div></body>')
        new.add_script_tag(content=get_plotlyjs())
        yield Drawn(new)
    finally:
        new.close()


def look(page: Any, selector: str) -> list[str]:
    """What is wrong with the figure that a page shows at `selector`, a `.js-plotly-plot`."""
    return page.locator(selector).evaluate(f"(plot, more) => ({_LOOK})([plot, ...more])", [CONTRAST, SMALLEST, SLACK])


def grey(figure: Figure) -> list[str]:
    """Which traces of a plot look alike without colour, and which heat maps are not in the order of their lightness."""
    figure = go.Figure(figure)
    places: dict[tuple[str, str], list[Any]] = {}
    for trace in figure.data:
        if trace.visible not in (False, "legendonly"):
            place = getattr(trace, "xaxis", None) or "x", getattr(trace, "yaxis", None) or "y"
            places.setdefault(place, []).append(trace)
    found = []
    for place, traces in places.items():
        drawn = [
            t for t in traces if t.type in ("scatter", "scattergl") and _look(t) != (None, None, None) and _seen(t)
        ]
        for a, b in itertools.combinations(drawn, 2):
            if _look(a) == _look(b) and abs(_fill(a) - _fill(b)) < APART and not _one_thing(a, b):
                found.append(f"{a.name!r} and {b.name!r} look alike in grey, in {' '.join(place)}: {_look(a)}")
        for heat in (t for t in traces if t.type == "heatmap"):
            scale = heat.colorscale or figure.layout.template.layout.colorscale.sequential
            steps = [_lightness(colour) for _, colour in scale]
            if steps != sorted(steps) and steps != sorted(steps, reverse=True):
                found.append(f"the heat map {heat.name!r} is not in the order of its lightness")
    return found


def _seen(trace: Any) -> bool:
    """Whether a trace draws anything; some are there for a text under the mouse or a bar of colours alone."""
    return trace.marker.opacity != 0 and any(x is not None for x in (trace.x if trace.x is not None else ()))


def _look(trace: Any) -> tuple[Any, Any, Any]:
    """Dash, marker, and thick or thin: what is left of a trace without its colour."""
    mode = trace.mode or "lines+markers"
    lines = "lines" in mode and trace.line.width != 0
    wide = lines and (trace.line.width or 2) >= 5
    symbol = (trace.marker.symbol or "circle") if "markers" in mode else None
    symbol = symbol if isinstance(symbol, str | None) else tuple(symbol)
    return (trace.line.dash or "solid") if lines else None, symbol, wide or None


def _fill(trace: Any) -> float:
    """How light the inside of its markers or its area is, 0 to 1, on white."""
    colour = trace.fillcolor if trace.fill else (trace.marker.color or trace.line.color)
    return _lightness(colour) if isinstance(colour, str) else 0.0


def _one_thing(a: Any, b: Any) -> bool:
    """Parts of one line, such as two stretches of it, have one name."""
    return bool(a.name) and a.name == b.name and a.legendgroup == b.legendgroup


def _lightness(colour: str) -> float:
    """CIE L*, 0 to 1, of a colour on white."""
    alpha = float(colour.rstrip(")").split(",")[3]) if colour.startswith("rgba") else 1.0
    if colour.startswith("rgba"):
        colour = "rgb(" + ",".join(colour[5:].split(",")[:3]) + ")"
    linear = []
    for part in validate_colors(colour, "tuple")[0]:
        part = alpha * part + 1 - alpha
        linear.append(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
    y = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (116 * y ** (1 / 3) - 16) / 100 if y > 0.008856 else 9.033 * y
