"""What figures say in every state of their tables: no number that nobody reads, no wrong plural, nothing untrue."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsm_lab.figures import communication, convergence, reactivation, rivals, sensitivity, taylor, trajectories
from gsm_lab.studies.aggregation import ESTIMATES
from gsm_lab.studies.communication import cost
from gsm_lab.wording import counted, digits, share, signed, times
from tests.figures import test_communication as ranks
from tests.figures import test_reactivation as back
from tests.figures import test_trajectories as runs
from tests.figures.cases import LONG

THINGS = "weight|step|rank|point|seed|layer|row|pixel|epoch|bit|run"
BAD = {
    "a number with an exponent": r"\d[eE][+-]?\d+\b(?<!1e-3)(?<!1e-4)",  # thresholds have these names
    "no number": r"\b(nan|NaN|inf|None|infinity)\b",
    "a zero with a sign": r"-0(\.0+)?(?![\d.])",
    "one of many": rf"(?<![\d.,])1 ({THINGS})s\b",
    "many of one": rf"(?<![\d.,])(?!1 )\d[\d,]* ({THINGS})\b(?! that| of| alone)",
    "a hundred digits": r"\d{12}",
}
MANY = settings(max_examples=6)
SHARES = st.one_of(st.sampled_from([0.0, 1e-12, 4e-6, 0.0951, 0.0996, 0.994, 0.99501, 0.9996, 1.0]), st.floats(0, 1))
SIZES = st.one_of(st.sampled_from([0.0, 1e-30, 1e-5, 0.9999, 1.0, 99.6, 1e4, 1e12]), st.floats(0, 1e9))


def said(figure: go.Figure) -> str:
    """All that a figure says, in one line."""
    layout = figure.layout.to_plotly_json()
    axes = [axis for key, axis in layout.items() if key[1:5] == "axis"]
    texts = [layout["title"]["text"], *(axis.get("title", {}).get("text", "") for axis in axes)]
    texts += [note["text"] for note in layout.get("annotations", [])] + [trace.name or "" for trace in figure.data]
    return re.sub("<br>", " ", " | ".join(texts))


def title(figure: go.Figure) -> str:
    return re.sub("</?b>", "", figure.layout.title.text.replace("<br>", " "))


def wrong(text: str) -> list[str]:
    return [f"{what}: {found.group()!r} in {text}" for what, bad in BAD.items() if (found := re.search(bad, text))]


@pytest.mark.parametrize(
    "text",
    ["fc1 keeps 1e+02% of it", "it is nan%", "by -0.0 points", "by -0 points", "1 weights stay", "2 weight stays",
     "within 1 steps", "the mean of 3 seed", f"{10**20}× off"],
)  # fmt: skip
def test_what_is_wrong_is_found(text: str) -> None:
    assert wrong(text)


@pytest.mark.parametrize("text", ["-0.05 points", "11 weights, 1 weight", "1e-3 and 1e-4", "from 0.1 to 1,001 steps"])
def test_what_is_right_is_not(text: str) -> None:
    assert wrong(text) == []


# ------------------------------------------------------------------------------------------------ numbers in words


@given(st.floats(0, 1e6))
@example(0.99499)
@example(0.0994)
def test_a_share_is_near_what_it_says_and_all_only_where_it_is_all(part: float) -> None:
    text = share(part)
    assert wrong(text) == []
    if text == "under 0.001%":
        assert 0 < part < 1e-5
        return
    assert abs(float(text.removesuffix("%").replace(",", "")) / 100 - part) <= 0.051 * part
    assert (text == "100%") <= (0.9999999 < part < 1.005)


@given(st.one_of(st.floats(-1e300, 1e300), st.floats(-1e-3, 1e-3), st.sampled_from([float("nan"), float("inf")])))
@example(1e12)
@example(-1e-9)
def test_two_digits_are_near_what_they_say(value: float) -> None:
    text = digits(value)
    assert wrong(text) == [] or not np.isfinite(value)
    if np.isfinite(value):
        plain = text.replace(",", "").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        raised = re.fullmatch(r"(?:(-?[\d.]+)·)?10(-?\d+)", plain) if re.search("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]", text) else None
        got = float(f"{raised[1] or 1}e{raised[2]}") if raised else float(plain)
        assert abs(got - value) <= 0.0501 * abs(value) + 1e-300


@given(st.floats(-1e3, 1e3), st.integers(1, 2))
def test_a_change_has_a_sign_and_is_no_zero_below_zero(value: float, decimals: int) -> None:
    text = signed(value, decimals)
    assert text[0] in "+-" and wrong(text) == [] and abs(float(text) - value) <= 0.51 * 10.0**-decimals


def test_one_is_one() -> None:
    assert (counted(1, "weight"), counted(0, "weight"), counted(1200, "weight")) == (
        "1 weight",
        "0 weights",
        "1,200 weights",
    )
    assert times(1e38) == "10³⁸×" and times(1400.0) == "1,400×"


# ------------------------------------------------------------------------------------------------ trajectories


@MANY
@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=6))
def test_near_zero(ends: list[tuple[float, float]]) -> None:
    tables = [runs.near_zero(run=f"run {i}").assign(**{"under_1e-4": a, "target": t}) for i, (a, t) in enumerate(ends)]
    text = said(trajectories.near_zero(pd.concat(tables)))
    assert wrong(text) == []
    for target in (min(t for _, t in ends), max(t for _, t in ends)):
        assert f"{100 * target:.1f}%" in text.split("have to go")[0]


@MANY
@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=6), SHARES, st.integers(1, 6))
def test_cut_gap(gaps: list[float], tolerance: float, n: int) -> None:
    figure = trajectories.cut_gap(pd.concat([runs.cut_gap(gaps, run=f"run {i}") for i in range(n)]), tolerance)
    assert wrong(said(figure)) == []
    free = gaps[-1] <= tolerance + 1e-12
    assert ("from step" in title(figure)) == free


@MANY
@given(st.lists(SHARES, min_size=1, max_size=20))
def test_density(parts: list[float]) -> None:
    table = pd.DataFrame(
        {"run": 0.9, "step": 10, "layer": LONG[: len(parts)], "weights": 1, "kept": 1, "density": parts}
    )
    text = title(trajectories.density(table))
    assert wrong(text) == [] and share(max(parts)) in text and share(min(parts)) in text
    assert ("layers shown" in text) == (len(parts) > 12)


@MANY
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_paths(kept: int, switched: int, passive: int, low: bool) -> None:
    table = runs.paths(layers=("a.weight",), each=3, steps=np.arange(1, 4))
    rank = table.groupby("kind")["weight"].rank("dense")
    most = table["kind"].map({"kept": kept, "switched": switched, "passive": passive})
    table = table[rank <= most].assign(magnitude=1e-5 if low else 1.0)
    if table.empty:
        return
    text = title(trajectories.paths(table))
    assert wrong(text) == [] and f", {kept} {'is' if kept == 1 else 'are'} kept" in text


@MANY
@given(st.lists(st.tuples(SHARES, SIZES), min_size=1, max_size=5))
def test_sets(rows: list[tuple[float, float]]) -> None:
    table = pd.concat([runs.sets().iloc[[i]].assign(kept=k, asked=a) for i, (k, a) in enumerate(rows)])
    assert wrong(title(trajectories.sets(table.assign(step=range(1, len(rows) + 1))))) == []


@MANY
@given(st.floats(0, 60), st.floats(0, 60), st.integers(1, 6), st.floats(0.2, 3))
def test_falls(rate: float, closed: float, n: int, off: float) -> None:
    tables = [runs.falls(f"run {i}", rate, closed).assign(measured=lambda t: off * t["exact"]) for i in range(n)]
    text = said(trajectories.falls(pd.concat(tables)))
    assert wrong(text) == []
    assert ("do not follow" in text) == (abs(off - 1) >= 0.1)


# ------------------------------------------------------------------------------------------------ re-activation


@MANY
@given(st.lists(st.one_of(SHARES, st.just(float("nan"))), min_size=1, max_size=4))
def test_shares(parts: list[float]) -> None:
    table = back.steps().iloc[[0] * len(parts)].assign(share=parts, epoch=range(len(parts)))
    text = said(reactivation.shares(table))
    known = [part for part in parts if part == part]
    assert wrong(text) == [] and all(share(part) in text for part in known[:1] + known[-1:])


@MANY
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.sampled_from([0, 10_000]))
def test_compared(came: list[int], pool: int) -> None:
    tables = {f"run {i}": back.steps().assign(reactivated=k, share=k / 1e4, pool=pool) for i, k in enumerate(came)}
    text = said(reactivation.compared(tables, "run"))
    assert wrong(text) == []
    assert ("least" in text) == (pool > 0 and share(max(came) / pool) != share(min(came) / pool))


@MANY
@given(st.lists(SHARES, min_size=1, max_size=5), st.integers(1, 9))
def test_survival(longer: list[float], first: int) -> None:
    table = pd.DataFrame({"steps": range(first, first + len(longer)), "longer": sorted(longer, reverse=True)})
    assert wrong(said(reactivation.survival({"a": table}, "layer"))) == []


@MANY
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=0, max_size=4))
def test_layers(counts: list[tuple[int, int]]) -> None:
    rows = [(f"fc{i}", n, n, min(n, w), 1, 0) for i, (n, w) in enumerate(counts)] + [("all", 10, 9, 3, 1, 0)]
    table = pd.DataFrame(rows, columns=["layer", "weights", "active", "woken", "kept", "kept_woken"])
    assert wrong(said(reactivation.layers(table))) == []


@MANY
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_kept(n: int, woken: int, near: int) -> None:
    table = back.KEPT.assign(kept=[n, n, n, woken, near, 0])
    text = title(reactivation.kept(table))
    assert wrong(text) == [] and "1 were" not in text and ("cut keeps no" in text) == (n == 0)


@MANY
@given(st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4))
@example([4e-4, -4e-4, 0.0, -0.0])
def test_controls(lost: list[float]) -> None:
    assert wrong(said(reactivation.controls(back.runs(*lost)))) == []


def test_controls_need_the_plain_runs() -> None:
    table = back.runs(0.1, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="table must hold a plain run of every seed, and has none of seed 1"):
        reactivation.controls(table[(table["variant"] != "plain") | (table["seed"] == 0)])
    assert "nothing was forbidden" in title(reactivation.controls(table[table["variant"] == "plain"]))


# ------------------------------------------------------------------------------------------------ Taylor


ERRORS = st.one_of(SIZES, st.just(float("nan")))


@MANY
@given(st.lists(st.tuples(SIZES, ERRORS), min_size=1, max_size=4))
def test_errors(groups: list[tuple[float, float]]) -> None:
    rows = [
        (f"fc{i}", e, error, 0.9, 12, 1)
        for i, pair in enumerate(groups)
        for e, error in zip(ESTIMATES, pair, strict=False)
    ]
    columns = ["layer", "estimate", "relative_error", "rank_correlation", "weights", "below_floor"]
    assert wrong(said(taylor.errors(pd.DataFrame(rows, columns=columns), "layer"))) == []


@MANY
@given(st.integers(1, 10**6), st.one_of(st.floats(-1e6, 1e6), st.sampled_from([float("nan"), float("inf")])), ERRORS)
def test_set_errors(size: int, true: float, error: float) -> None:
    row = {"kind": "top", "size": size, "true": true}
    row |= {e: 0.1 for e in ESTIMATES} | {f"error of {e}": error for e in ESTIMATES}
    text = title(taylor.set_errors(pd.DataFrame([row])))
    assert wrong(text) == [] and ("changes" in text or "leaves" in text) == (size == 1)


@MANY
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_maps(counts: list[int]) -> None:
    table = pd.DataFrame(np.reshape(counts, (3, 3)), index=[1, 10, 100], columns=[1, 10, 100])
    for text in (title(taylor.rank_map(table)), title(taylor.input_map(table)), title(rivals.pixels(table))):
        assert wrong(text) == [] and "100% of all 0" not in text and "of the 1 " not in text


@MANY
@given(SIZES, st.floats(0, 1))
def test_scatter(size: float, floor: float) -> None:
    rows = {"region": ["top", "cut"], "layer": "fc1", "index": 1, "rank": 1, "true": [size, 0.5]}
    table = pd.DataFrame(rows | {e: [0.5, 0.1] for e in ESTIMATES})
    table.attrs["floor"] = floor
    assert wrong(said(taylor.scatter(table))) == []


# ------------------------------------------------------------------------------------------------ layers, rivals, seeds


@MANY
@given(st.lists(SHARES, min_size=1, max_size=4))
def test_densities(parts: list[float]) -> None:
    table = pd.DataFrame({"layer": [f"fc{i}" for i in range(len(parts))], "weights": 1000, "density": parts})
    table = table.assign(kept=1000 * table["density"], low=table["density"], high=table["density"])
    text = title(sensitivity.densities(table))
    assert wrong(text) == [] and share(max(parts)) in text and share(min(parts)) in text


@MANY
@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=4), st.sampled_from([0.0, 1.0, 2.0]))
@example([-1e-5, 0.01], 1.0)
def test_alone(lost: list[float], finetune: float) -> None:
    rows = {"layer": [f"fc{i}" for i in range(len(lost))], "ratio": 0.9, "finetune": finetune, "lost": lost}
    text = said(sensitivity.alone(pd.DataFrame(rows), finetune))
    assert wrong(text) == [] and ("gains" in text) == (min(lost) < -5e-4 and (len(lost) == 1 or min(lost) < -5e-4))


@MANY
@given(st.integers(1, 4), st.one_of(st.floats(-1, 1), st.just(float("nan"))))
def test_tau(n: int, tau: float) -> None:
    layers = [f"fc{i}" for i in range(n)]
    answer = pd.DataFrame({"layer": layers, "density": 0.1})
    truth = pd.DataFrame({"layer": layers * 2, "finetune": [0] * n + [1] * n, "more": 0.5})
    agreed = pd.DataFrame({"finetune": [0, 1], "tau": tau, "low": tau, "high": tau, "layers": n})
    assert wrong(said(sensitivity.compared(answer, truth, agreed))) == []


@MANY
@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=4))
def test_rivals(rows: list[tuple[float, float]]) -> None:
    table = pd.DataFrame(rows, columns=["cut", "live"])
    table = table.assign(model="lenet300", compression=60.0, seed=0, base=0.98, seconds=1.0, published=98.0)
    table["label"] = [f"method {i}" for i in range(len(rows))]
    for draw in (rivals.budgets, rivals.ranked, rivals.against_published):
        assert wrong(said(draw(table))) == []


@MANY
@given(st.lists(SIZES, min_size=1, max_size=3), st.lists(SHARES, min_size=1, max_size=3), st.integers(1, 2))
def test_convergence(sizes: list[float], parts: list[float], seeds: int) -> None:
    n = min(len(sizes), len(parts))
    one = {"step": range(1, n + 1), "epoch": range(n), "loss": sizes[:n], "distance": parts[:n], "turnover": parts[:n]}
    one |= {"renewed": parts[:n], "live": parts[:n], "cut": parts[n - 1]}
    table = pd.concat([pd.DataFrame({"seed": seed, **one}) for seed in range(seeds)])
    for draw in (convergence.accuracies, convergence.loss, convergence.distance, convergence.turnover):
        assert wrong(said(draw(table))) == []
    text = title(convergence.distance(table))
    first, last = share(parts[0]), share(parts[n - 1])
    assert ("falls" in text, "rises" in text) == (
        parts[n - 1] < parts[0] and first != last,
        parts[n - 1] > parts[0] and first != last,
    )


# ------------------------------------------------------------------------------------------------ ranks


@MANY
@given(st.floats(0, 1), st.integers(1, 3), st.sampled_from([(1.0,), (1.0, 2.0), (0.5, 16.0)]))
def test_ranks(scale: float, n: int, factors: tuple[float, ...]) -> None:
    table = ranks.agreement(scale=scale, factors=factors).assign(ranks=n)
    table = table.assign(between=table["between"].clip(lower=0) if n > 1 else np.nan)
    assert wrong(said(communication.recall(table))) == []
    figure = communication.overlap(table, factors[-1])
    assert wrong(said(figure)) == [] and (" share " in title(figure)) == (n > 1)


@MANY
@given(st.sampled_from([[2, 4], [2, 4, 1000]]), st.sampled_from(["bytes", "seconds"]), st.integers(-9, 9))
def test_volume_and_accuracy(n: list[int], what: str, lost: int) -> None:
    assert wrong(said(communication.volume(cost(1000, n), what))) == []
    assert wrong(said(communication.accuracy(ranks.hooked(1).assign(lost=lost / 1e4)))) == []
