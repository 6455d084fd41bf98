"""Figures of what is left of a network: the pixels say what the view says, and so do the titles, whatever it is."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from plotly.colors import unlabel_rgb

from gsm_lab.figures import network, raster
from gsm_lab.figures.network_plots import MARKS, content, scales
from gsm_lab.figures.network_words import captions, of_unit, percent
from gsm_lab.figures.style import finish
from gsm_lab.studies.view import KINDS, PIXELS, View


def view(k: int = 12, h: int = 6, w: int = 5, share: float = 0.2, seed: int = 0, **other: object) -> View:
    """A layer of k units that are all shown."""
    rng = np.random.default_rng(seed)
    units = (rng.normal(size=(k, h, w)) * 0.1).astype(np.float32)
    kept = np.abs(units) >= np.quantile(np.abs(units), 1 - share) if share else np.zeros(units.shape, bool)
    active, back = (rng.random((2, k, h, w)) < 0.2) if share else np.zeros((2, k, h, w), bool)
    inputs, each = kept.sum(axis=0, dtype=np.int32), kept.sum(axis=(1, 2))
    of = {
        "step": 7, "dense": False, "compression": 60.0, "layer": "fc1", "kind": PIXELS, "inputs": inputs,
        "reached": int((inputs > 0).sum()), "count": h * w, "units": units, "kept": kept, "active": active | back,
        "reactivated": back, "shown": np.arange(k), "unit_kept": each, "of_units": k, "alive": int((each > 0).sum()),
        "weights": kept.size, "layer_kept": int(kept.sum()), "returned": int(back.sum()),
    }  # fmt: skip
    return View(**of | other)


def decoded(source: str) -> np.ndarray:
    """The colours of a PNG: uint8 [h, w, 3]."""
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    return np.asarray(picture.convert("RGB"))


def lightness(colours: np.ndarray) -> np.ndarray:
    """L of CIELAB, 0 to 100."""
    c = np.asarray(colours, float) / 255
    y = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def trace(figure: go.Figure, name: str) -> object:
    return next(t for t in figure.data if t.name == name)


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_the_map_says_how_many_weights_each_input_keeps() -> None:
    one = view(k=40, share=0.3)
    pixels = decoded(trace(network.network(one), "network inputs").source)
    assert pixels.shape == (6, 5, 3)
    for count in np.unique(one.inputs):  # as many colours as counts
        assert len(np.unique(pixels[one.inputs == count], axis=0)) == 1
    light = lightness(pixels)
    counted = [light[one.inputs == count].mean() for count in np.unique(one.inputs[one.inputs > 0])]
    assert (np.diff(counted) > 0).all()
    none = lightness(decoded(content(view(share=0.02), (9, 1.0))[0]["source"]))[view(share=0.02).inputs == 0]
    assert (none == 100).all()
    assert max(counted) < 85


def test_the_mosaic_says_which_weights_are_kept_and_what_they_are() -> None:
    one = view(k=7, h=4, w=3)
    pixels = decoded(trace(network.network(one), "network units").source)
    across = raster.columns(7, 4, 3)
    column, row = raster.corners(7, 4, 3, across)
    seen = np.stack([pixels[y : y + 4, x : x + 3] for x, y in zip(column, row, strict=True)])
    light = lightness(seen)
    assert (light[one.kept & (one.units > 0)] >= 74).all()
    assert (light[one.kept & (one.units < 0)] <= 38).all()
    assert ((light[~one.kept] >= 46) & (light[~one.kept] <= 66)).all()
    near_zero = ~one.kept & (np.abs(one.units) < 1e-3)
    assert len(np.unique(seen[near_zero], axis=0)) <= 1
    for sign, turn in ((1, 1), (-1, -1)):  # larger is further from the middle
        which = one.kept & (sign * one.units > 0)
        order = np.argsort(np.abs(one.units[which]))
        assert (turn * np.diff(light[which][order]) >= 0).all()
    gaps = np.ones(pixels.shape[:2], bool)
    for x, y in zip(column, row, strict=True):
        gaps[y : y + 4, x : x + 3] = False
    assert (pixels[gaps] == 255).all()


def test_dots_are_where_weights_came_back() -> None:
    one = view(k=5, h=4, w=3)
    dots, across = trace(network.network(one), "network returned"), raster.columns(5, 4, 3)
    column, row = raster.corners(5, 4, 3, across)
    expected = {(column[u] + x, row[u] + y) for u, y, x in np.argwhere(one.reactivated)}
    assert set(zip(dots.x, dots.y, strict=True)) == expected
    assert len(dots.x) == one.reactivated.sum()


def test_where_too_many_came_back_those_that_are_kept_are_marked_first() -> None:
    one = view(k=30, h=10, w=10)
    one = dataclasses.replace(one, reactivated=np.ones_like(one.kept), returned=one.kept.size)
    dots = content(one, scales([one]))[2]
    assert len(dots["x"]) == MARKS < one.kept.size
    column, row = raster.corners(30, 10, 10, raster.columns(30, 10, 10))
    kept = {(column[u] + x, row[u] + y) for u, y, x in np.argwhere(one.kept)}
    assert kept <= set(zip(dots["x"], dots["y"], strict=True))
    assert f"{MARKS:,} at most" in captions(one, MARKS)[1]


def test_the_palettes_can_be_read_in_grey() -> None:
    light = lightness(np.array(raster.UNITS[1:]))
    assert (np.diff(light) > 0).all()
    dark, goes, bright = light[:5], light[5:10], light[10:]
    assert dark.max() + 10 < goes.min()
    assert goes.max() + 10 < bright.min()
    counts = lightness(np.array(raster.MAP[2:]))
    assert (np.diff(counts) >= 0).all()
    assert counts[0] < 20
    assert counts[-1] < 85, "the white of inputs that keep nothing is lighter than all"
    assert len(raster.UNITS) <= 16, "four bits a pixel"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_every_picture_has_a_place_of_its_own(k: int, h: int, w: int) -> None:
    across = raster.columns(k, h, w)
    assert 1 <= across <= k
    pictures = np.broadcast_to((1 + np.arange(k) % 200).astype(np.uint8)[:, None, None], (k, h, w))
    joined = raster.mosaic(pictures, across)
    assert (joined > 0).sum() == k * h * w
    column, row = raster.corners(k, h, w, across)
    for i, (x, y) in enumerate(zip(column, row, strict=True)):
        assert (joined[y : y + h, x : x + w] == 1 + i % 200).all()


# -- words -------------------------------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> View:
    """Any view that can be: shapes, counts and states."""
    k, h, w = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    one = view(k, h, w, draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])), draw(st.integers(0, 9)))
    many = draw(st.sampled_from([1, 1, 1000, 10**6]))  # that the layer is larger than what is shown of it
    kept = one.layer_kept + draw(st.integers(0, (many - 1) * k * h * w))
    step = draw(st.sampled_from([0, 1, 250_000]))
    return dataclasses.replace(
        one, kind=draw(st.sampled_from(KINDS)), step=step, dense=step == 0, of_units=many * k, weights=many * k * h * w,
        layer_kept=kept, alive=min(one.alive + draw(st.integers(0, many * k - one.alive)), kept),
        returned=draw(st.sampled_from([None, 0, 1, 12_345])) if step > 1 else None,
        layer=draw(st.sampled_from(["fc1", "a<b>", "encoder.layers.0.self_attn.in_proj_weight"])),
    )  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(views(), views())
def test_titles_of_whatever_there_may_be(one: View, other: View) -> None:
    first, last = sorted((one, other), key=lambda v: v.step)
    texts = [*network.titles(one), network.sentence(one), network.changed(first, last), *captions(one, 10)]
    texts += [of_unit(one)(3, 1)]
    for text in texts:
        assert not re.search(r"e[+-]\d|nan|inf|  |\b1 (weights|units|kernels|steps|pixels)\b", text), text
        assert not re.search(r"<(?!br>)", text), text
    left, right = network.titles(one)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", left)]
    assert set(numbers) <= {one.reached, one.count}
    assert right.endswith("came back in this step") == (one.returned is not None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "24 of 30 pixels still have a weight; fc1 keeps 20% of its weights, in all 12 units; 55 came back"),
        ({"step": 0, "returned": None}, "24 of 30 pixels would keep a weight; a cut now would leave fc1 20% of its"),
        ({"returned": 1}, "; 1 came back in this step"),
        ({"returned": 0}, "; none came back in this step"),
        ({"reached": 1}, "1 of 30 pixels still has a weight"),
        ({"reached": 30, "layer_kept": 360}, "All 30 pixels still have a weight; fc1 keeps all of its 360 weights"),
        ({"reached": 0, "layer_kept": 0}, "None of the 30 pixels still has a weight; fc1 keeps none of its"),
        ({"alive": 7, "kind": "positions"}, "24 of 30 kernel positions still have a weight; fc1 keeps 20% of its "
         "weights, in 7 of 12 kernels"),
    ],
)  # fmt: skip
def test_titles_of_some_states(change: dict, said: str) -> None:
    one = dataclasses.replace(view(), reached=24, layer_kept=72, returned=55)
    assert said in network.sentence(dataclasses.replace(one, **change))


@settings(deadline=None)
@given(st.integers(1, 10**9), st.data())
@example(10**9, None)
def test_percent_is_short_and_right(whole: int, data: st.DataObject) -> None:
    part = whole - 1 if data is None else data.draw(st.integers(0, whole))
    text = percent(part, whole)
    assert (text == "100%") == (part == whole)
    assert (text == "0%") == (part == 0)
    if text == "under 0.01%":
        assert 0 < part / whole < 1e-4
        return
    assert re.fullmatch(r"\d+(\.\d+)?%", text)
    assert float(text[:-1]) == pytest.approx(100 * part / whole, rel=0.06, abs=0.1 * (part > 0.99 * whole))


def test_what_changed_says_from_where_to_where() -> None:
    first, last = view(step=0, returned=None, reached=30), view(step=1500, reached=11)
    assert network.changed(first, last).startswith("In 1,500 steps, pixels that keep a weight go from 30 to 11 (of 30)")


# -- in another figure, and as a film ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board() -> go.Figure:
    """A living figure of another plot, with annotations of its own."""
    figure = finish(go.Figure(go.Scatter(x=[1], y=[2])), 600).add_annotation(text="mine", x=1, y=2)
    return network.add(figure, view(), (0.0, 0.4, 0.0, 0.5), (0.5, 1.0, 0.0, 0.5))


def test_an_update_shows_what_a_new_figure_would(board: go.Figure) -> None:
    others = view(seed=3), view(k=4, h=9, w=2, kind="features"), view(k=20, h=1, w=8, kind="inputs"), view(share=0)
    for other in others:
        notes = network.update(board, other)
        anew = network.add(finish(go.Figure(go.Scatter(x=[1], y=[2])), 600), other, (0, 0.4, 0, 0.5), (0.5, 1, 0, 0.5))
        for old, new in zip(board.data, anew.data, strict=True):
            assert json.loads(old.to_json()) == json.loads(new.to_json())
        for axis in network.AXES:
            assert board.layout[axis] == anew.layout[axis]
        assert notes == [note.to_plotly_json() for note in anew.layout.annotations if note.name == "network"]
    assert board.layout.annotations[0].text == "mine"


def test_an_update_that_changes_nothing_sets_nothing(board: go.Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    network.update(board, view(seed=5))
    told = []
    monkeypatch.setattr(type(board), "_restyle_child", lambda *a: told.append(a))
    monkeypatch.setattr(type(board), "_relayout_child", lambda *a: told.append(a))
    network.update(board, view(seed=5))
    assert not told


def test_it_can_be_hidden(board: go.Figure) -> None:
    for visible in (False, True):
        network.show(board, visible)
        assert [t.visible for t in board.data if t.name in network.TRACES] == [visible] * len(network.TRACES)
        assert [board.layout[axis].visible for axis in network.AXES] == [visible] * 4
    assert board.data[0].visible is None


def test_an_update_is_small() -> None:
    one = view(k=40, h=28, w=28, share=0.02)
    assert len(json.dumps([{**part} for part in content(one, scales([one]))], default=lambda a: a.tolist())) < 100_000


def test_a_film_has_a_frame_a_view_and_shows_the_last() -> None:
    shares = np.linspace(0.4, 0.02, 24)
    run = [view(k=40, h=28, w=28, share=share, seed=i, step=10 * i) for i, share in enumerate(shares)]
    film = network.film(run)
    assert [frame.name for frame in film.frames] == [f"{10 * i}" for i in range(24)]
    ends = scales(run)
    for one, frame in zip(run, film.frames, strict=True):
        shown = content(one, ends)
        assert [data.source for data in frame.data[:2]] == [shown[i]["source"] for i in (0, 1)]
        assert list(frame.traces) == [0, 1, 2, 3]
    assert [t.source for t in film.data[:2]] == [data.source for data in film.frames[-1].data[:2]]
    slider, (buttons,) = film.layout.sliders[0], film.layout.updatemenus
    assert slider.active == 23
    assert [step.args[0] for step in slider.steps] == [(frame.name,) for frame in film.frames]
    assert buttons.buttons[0].label == "▶ play"
    said = film.layout.title.text.replace("<br>", " ")
    assert network.changed(run[0], run[-1]) in said
    assert film.frames[-1].layout.title.text == film.layout.title.text
    assert film.frames[0].layout.title.text.startswith("<b>Step 0:")
    assert len(film.to_json()) < 1_500_000


def test_bars_say_what_the_colours_are() -> None:
    one = view(k=40, share=0.3)
    bar = trace(network.network(one), "network bar").marker
    assert bar.colorbar.ticktext == ("none", "1", f"{one.inputs.max()}")
    ends = {at: tuple(unlabel_rgb(colour)) for at, colour in bar.colorscale}
    assert ends[1.0] == raster.MAP[-1]
    assert trace(network.network(view(share=0)), "network bar").marker.colorbar.ticktext == ("none",)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: network.network(3), TypeError, "view must be a View, .* got int"),
        (lambda: network.film([]), ValueError, "views must hold at least one View, got none"),
        (lambda: network.film([view(), view(layer="fc2")]), ValueError, "views must be of one layer, 'fc1'"),
        (lambda: network.film([view(), view()]), ValueError, "views must be in the order of their steps, got 7"),
        (lambda: network.update(go.Figure(), view()), ValueError, "figure must be one to which `add` has added"),
        (lambda: network.add(go.Figure(), view()), TypeError, "figure.layout.height must be"),
        (lambda: network.add(finish(go.Figure(), 500), view(), left=(0, 1, 1, 0)), ValueError, "left must be x from"),
    ],
)
def test_what_is_no_argument_is_named(call: object, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        call()
