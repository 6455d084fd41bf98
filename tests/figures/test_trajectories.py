"""Figures of the trajectories on hand-made tables: what they show, what their titles claim, and how they look."""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from gsm_lab.figures import trajectories as figures
from gsm_lab.knobs import LOSSLESS, lossless
from gsm_lab.wording import times

STEPS = np.arange(1, 41)


def near_zero(run=0.9, expected=True) -> pd.DataFrame:
    share = STEPS / 41
    table = pd.DataFrame({"run": run, "step": STEPS, "under_1e-3": share, "under_1e-4": share / 2, "target": 0.95})
    return table.assign(**{"expected_1e-3": share, "expected_1e-4": share / 2}) if expected else table


def cut_gap(gaps, run=0.9) -> pd.DataFrame:
    gaps = np.array(gaps)
    step = 10 * np.arange(len(gaps))
    return pd.DataFrame({"run": run, "step": step, "live": 0.9, "cut": 0.9 - gaps, "gap": gaps, "loss": 0.1 + gaps**2})


def density(run=0.9, layers=("a.weight", "b.weight")) -> pd.DataFrame:
    rows = [(run, step, layer, 100, (i + 1) * 5, (i + 1) / 20) for i, layer in enumerate(layers) for step in (0, 10)]
    return pd.DataFrame(rows, columns=["run", "step", "layer", "weights", "kept", "density"])


def falls(run=0.9, rate=0.1, closed=0.1) -> pd.DataFrame:
    fallen = np.exp(-rate * (STEPS - 1))
    table = {"run": run, "step": STEPS, "measured": fallen * 1.001, "low": fallen, "high": fallen, "exact": fallen}
    return pd.DataFrame(table | {"closed_form": np.exp(-closed * (STEPS - 1))})


def speed() -> pd.DataFrame:
    pairs = list(itertools.product((0.9, 0.98, 0.99), (0.1, 2.0)))
    table = pd.DataFrame(pairs, columns=["momentum", "of_critical"])
    return table.assign(measured=0.01, weights=50, product=1e-4, off_exact=0.004, off_closed_form=-0.1)


def paths(layers=("a.weight", "b.weight"), each=15, steps=STEPS) -> pd.DataFrame:
    rows = []
    for i, (layer, kind) in enumerate(itertools.product(layers, ("kept", "switched", "passive"))):
        for w in range(each):
            size = {"kept": 0.1, "switched": 1e-2 / (1 + w), "passive": 1e-5}[kind]
            for step in steps:
                active = {"kept": 1.0, "switched": float(step < 10), "passive": 0.0}[kind]
                rows.append((100 * i + w, layer, kind, step, -size, size, active))
    return pd.DataFrame(rows, columns=["weight", "layer", "kind", "step", "w", "magnitude", "active"])


def sets() -> pd.DataFrame:
    share = np.minimum(1, STEPS / 20)
    return pd.DataFrame(
        {"step": 6 * STEPS, "active": share / 2, "ever": share, "kept": share, "asked": 5 / share**0.5,
         "removed": 1 - 0.9 * share, "contested": 0.5 - 0.45 * share}
    )  # fmt: skip


def three(table) -> pd.DataFrame:
    return pd.concat([table(run) for run in (0.9, 0.98, 0.99)])


ALL = {
    "near_zero": lambda: figures.near_zero(three(near_zero)),
    "near_zero alone": lambda: figures.near_zero(near_zero(expected=False).drop(columns="run")),
    "cut_gap": lambda: figures.cut_gap(three(lambda run: cut_gap([0.3, 0.1, 0.0], run))),
    "density": lambda: figures.density(density()),
    "falls": lambda: figures.falls(three(lambda run: falls(run, rate=1 - run))),
    "speed": lambda: figures.speed(speed()),
    "paths": lambda: figures.paths(paths()),
    "sets": lambda: figures.sets(sets()),
}


def title(figure: go.Figure) -> str:
    return figure.layout.title.text.removeprefix("<b>").removesuffix("</b>").replace("<br>", " ")


def by_name(figure: go.Figure, name: str, place: int = 0) -> go.Scatter:
    return [trace for trace in figure.data if trace.name == name][place]


# ------------------------------------------------------------------------------------------------ the look


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_a_title_units_hover_and_a_legend(name):
    figure = ALL[name]()
    assert len(title(figure)) > 20
    axes = [axis for key, axis in figure.layout.to_plotly_json().items() if key.startswith(("xaxis", "yaxis"))]
    alone = [axis for axis in axes if not axis.get("matches") and axis.get("showticklabels") is not False]
    assert alone and all(axis.get("title", {}).get("text") for axis in alone)
    for trace in figure.data:
        assert "%{" in trace.hovertemplate and trace.hovertemplate.endswith("<extra></extra>")
    assert figure.layout.showlegend
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(shown) == len(set(shown)) >= 1


@pytest.mark.parametrize("name", ALL)
def test_what_the_legend_tells_apart_differs_without_colour_too(name):
    dashes, symbols, colours = [], [], []
    for trace in ALL[name]().data:
        if trace.showlegend is False:
            continue
        if "lines" in trace.mode:
            dashes.append((trace.line.dash, trace.line.width >= 5))  # a band is no line
            colours.append((trace.line.color, "lines"))
        if "markers" in trace.mode:
            symbols.append(trace.marker.symbol)
            if trace.mode == "markers":
                colours.append((trace.marker.color, "markers"))
    assert len(dashes) == len(set(dashes))
    assert len(symbols) == len(set(symbols))
    # reference lines are black or grey dots, beside lines of the same colour that carry markers
    own = [c for c in colours if c[0] not in ("#000000", "#666666")]
    assert len(own) == len(set(own))


@pytest.mark.parametrize("name", ["near_zero", "cut_gap"])
def test_a_run_looks_the_same_in_both_panels(name):
    figure = ALL[name]()
    for run in ("momentum 0.9", "momentum 0.98", "momentum 0.99"):
        first, second = (by_name(figure, run, i) for i in (0, 1))
        assert (first.line, first.marker) == (second.line, second.marker)
        assert first.legendgroup == second.legendgroup and second.showlegend is False


# ------------------------------------------------------------------------------------------------ what they say


def test_near_zero_shows_percent_and_what_has_to_go():
    figure = figures.near_zero(three(near_zero))
    np.testing.assert_allclose(by_name(figure, "momentum 0.9").y, 100 * STEPS / 41)
    np.testing.assert_allclose(by_name(figure, "momentum 0.9", 1).y, 50 * STEPS / 41)
    assert set(by_name(figure, "1 − 1/C").y) == {95.0}
    ends = f"{50 * 40 / 41:.1f}%"
    assert title(figure).startswith(f"Under 1e-4 at the end: {ends} (momentum 0.9), {ends} (momentum 0.98)")
    assert title(figure).endswith("95.0% have to go")


def test_cut_gap_says_from_when_a_cut_is_free():
    table = pd.concat([cut_gap([0.3, 0.005, 0.02, 0.0], 0.9), cut_gap([0.3, 0.2, 0.1, 0.1], 0.98)])
    figure = figures.cut_gap(table, tolerance=0.01)
    assert title(figure) == "A cut costs at most 1 point: from step 30 on (momentum 0.9), never (momentum 0.98)"
    np.testing.assert_allclose(by_name(figure, "momentum 0.9").y, [30, 0.5, 2, 0])
    np.testing.assert_allclose(by_name(figure, "momentum 0.9").customdata[:, 1], [60, 89.5, 88, 90])
    np.testing.assert_allclose(by_name(figure, "momentum 0.9", 1).y, table["loss"].iloc[:4])
    band = figure.layout.shapes[0]
    assert (band.y0, band.y1) == (-1, 1)
    assert "at most 2 points: from step 10 on" in title(figures.cut_gap(cut_gap([0.3, 0.02]), 0.02))


def test_a_cut_is_free_as_the_study_says_unless_told_otherwise():
    table = cut_gap([0.3, 0.006, 0.005, 0.0])
    assert title(figures.cut_gap(table)) == "A cut costs at most 0.5 points: from step 20 on (momentum 0.9)"
    assert LOSSLESS == 0.005 and lossless(0.9, 0.895) and not lossless(0.9, 0.894)


def test_density_names_the_densest_and_the_sparsest():
    assert title(figures.density(density())) == "In the end, a cut keeps 10% of b and 5% of a"
    assert title(figures.density(density(layers=("a.weight",)))) == "In the end, a cut keeps 5% of a"
    with pytest.raises(ValueError, match=r"table must be of one run, got momentum 0.9, momentum 0.98, momentum 0.99"):
        figures.density(three(density))


def test_falls_says_how_far_off_recurrence_and_closed_form_are():
    figure = figures.falls(pd.concat([falls(0.9, 0.1, 0.1), falls(0.99, 0.1, 0.05)]))
    assert "follow the recurrence to 0.1%" in title(figure)
    assert title(figure).endswith(f"off by under 5% (0.9), {times(np.exp(0.05 * 39))} (0.99)")
    assert sum(trace.name == "closed form" for trace in figure.data) == 2
    shared = figures.falls(pd.concat([falls(0.9), falls(0.99)]))
    assert sum(trace.name == "closed form" for trace in shared.data) == 1
    measured = by_name(figure, "momentum 0.9, measured")
    np.testing.assert_allclose(measured.y, 1.001 * np.exp(-0.1 * (measured.x - 1)))


def test_speed_is_relative_to_the_fastest_decay_of_each_momentum():
    figure = figures.speed(speed())
    assert title(figure).startswith("Measured and exact speed differ by at most 0.4%")
    for momentum in (0.9, 0.98, 0.99):
        trace = by_name(figure, f"momentum {momentum:g}, measured")
        np.testing.assert_allclose(trace.y, 0.01 / (-0.5 * np.log(momentum)))
        np.testing.assert_allclose(trace.customdata[:, 0], np.log(2) / 0.01)
    exact = by_name(figure, "exact root, β = 0.98")
    above = exact.x > 1.001
    np.testing.assert_allclose(exact.y[above], 1)
    assert (np.diff(exact.y[~above]) > 0).all() and exact.y[0] == pytest.approx(exact.x[0] / 2, rel=0.03)
    calm = speed()[lambda t: t["of_critical"] < 1]
    assert "critical" not in title(figures.speed(calm)) and not figures.speed(calm).layout.shapes


def test_paths_show_some_of_each_kind_and_count_all():
    figure = figures.paths(paths(), layer="b.weight", shown=5)
    # of 15 switched ones of 1e-2 / (1 + w), w = 10..14 are under 1e-3
    assert title(figure) == "Of 45 weights of b, 15 are kept; of 15 active only at times, 33% end under 1e-3"
    for name in ("kept in the end", "active at times", "never active"):
        trace = by_name(figure, name)
        assert np.isnan(trace.y).sum() == 5 and all("of b" in text for text in trace.customdata)
    band = by_name(figure, "active", 1)
    drawn = np.isfinite(band.y)
    assert drawn.any() and (band.x[drawn] < 10).all()
    assert title(figures.paths(paths())).startswith("Of 90 weights, 30 are kept")
    with pytest.raises(ValueError, match=r"layer must be one of a.weight, b.weight, got 'c'"):
        figures.paths(paths(), layer="c")


def test_long_paths_are_thinned_without_losing_an_active_stretch():
    table = paths(each=1, steps=np.arange(1, 2001))
    trace = by_name(figures.paths(table), "active", 1)
    assert len(trace.x) <= 2 * 210
    np.testing.assert_array_equal(trace.x[np.isfinite(trace.y)], [1, 1])
    exact_zero = paths(each=1).assign(magnitude=0.0)
    assert np.isnan(by_name(figures.paths(exact_zero), "never active").y).all()


def test_paths_without_a_kind_leave_its_panel_empty():
    table = paths()[lambda t: t["kind"] == "passive"]
    figure = figures.paths(table)
    assert title(figure) == "Of 30 weights, 0 are kept"
    assert len(by_name(figure, "kept in the end").x) == 0


def test_sets_say_what_batches_ask_for_and_when_the_final_q_is_settled():
    figure = figures.sets(sets())
    first, last = 5 / (1 / 20) ** 0.5, 5.0
    assert title(figure) == (
        f"Within 6 steps, batches ask for {first:.1f} Q weights at first and {last:.1f} Q in the end; "
        "90% of the final Q are settled at step 108"
    )
    np.testing.assert_allclose(by_name(figure, "a cut would keep").y, 100 * sets()["kept"])
    np.testing.assert_allclose(by_name(figure, "distinct active weights").y, sets()["asked"])
    never = sets().assign(kept=0.5)
    assert "settled" not in title(figures.sets(never))


@pytest.mark.parametrize("draw", [figures.near_zero, figures.cut_gap, figures.falls, figures.sets, figures.speed])
def test_an_empty_table_is_refused(draw):
    with pytest.raises(ValueError, match="table must have at least one row"):
        draw(pd.DataFrame())
