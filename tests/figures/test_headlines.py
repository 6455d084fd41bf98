"""Titles of the four plots: what they say is so, in every state a run can be in."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsm_lab import figures
from gsm_lab.figures import headlines
from gsm_lab.training.history import History

FLOAT = r"\d+(?:\.\d+)?"


@st.composite
def histories(draw: st.DrawFn) -> History:
    """One to three layers, and numbers of any kind in the last step and the last evaluation."""
    layers = {f"l{i}.weight": draw(st.integers(1, 10**6)) for i in range(draw(st.integers(1, 3)))}
    history = History(layers)
    history.moved(0, "compression", None, draw(st.sampled_from([1.0, 1.001, 2.0, 60.0, 2000.0, 1e6])))
    for step in range(1, draw(st.integers(0, 3)) + 1):
        history.steps.append((step, 0.1, 0.5, 0.1, 0.1, *(tuple(draw(_counts(layers))) for _ in range(4))))
        row = history.steps.array()[-1]
        row["under_1e-4"] = np.minimum(row["under_1e-4"], row["under_1e-3"])
    accuracy = st.floats(0, 1)
    history.evaluations.append((0, draw(accuracy), draw(accuracy), tuple(draw(_counts(layers)))))
    return history


def _counts(layers: dict[str, int]) -> st.SearchStrategy[list[int]]:
    return st.tuples(*(st.one_of(st.just(0), st.just(size), st.integers(0, size)) for size in layers.values()))


def number(text: str, before: str = "", after: str = "%") -> float:
    """The number in a text, between two others; "under 0.1" is 0.05."""
    found = re.search(rf"{before}(under )?({FLOAT}){after}", text)
    assert found, text
    return float(found[2]) / (2 if found[1] else 1)


@given(histories())
def test_titles_are_true_in_every_state(history: History) -> None:
    texts = figures.title_texts(history)
    for text in texts:
        assert not re.search(r"e\+|e-\d\d|nan|inf|-0|\b1 weights|\s\s", text), text
        assert len(text) <= 75
    evaluation, total = history.evaluations.array()[-1], sum(history.layers.values())
    live, cut = (100 * float(evaluation[name]) for name in ("live_accuracy", "cut_accuracy"))
    assert abs(number(texts[0], "Accuracy ") - live) <= 0.051 and abs(number(texts[0], "cut ") - cut) <= 0.051
    shares = {n.removesuffix(".weight"): k / s for k, (n, s) in
              zip(evaluation["kept"], history.layers.items(), strict=True)}  # fmt: skip
    for name, share in shares.items():
        if said := re.search(rf"{name} (?:keeps )?(all|none|less than|{FLOAT}%)", texts[3]):
            assert (said[1] == "all") == (share == 1) and (said[1] == "none") == (share == 0), texts[3]
            if said[1].endswith("%"):
                assert abs(float(said[1][:-1]) - 100 * share) <= max(0.51, 0.06 * 100 * share)
    steps = history.steps.array()
    if not len(steps):
        assert texts[1:3] == ("No gated step yet",) * 2
        return
    thousandth, tenth = (100 * steps[-1][name].sum() / total for name in ("under_1e-3", "under_1e-4"))
    assert abs(number(texts[1], "^", "% under 1e-3") - thousandth) <= 0.1
    assert abs(number(texts[1], "3, ", "% under 1e-4") - tenth) <= 0.1
    assert ("100% under" in texts[1]) == (100 in (thousandth, tenth))
    mean = steps["reactivated"].sum(axis=1).mean()
    if "open" in texts[2]:
        assert steps[-1]["active"].sum() == total
    elif mean > 1.5:
        assert abs(float(re.search(r"[\d,]+", texts[2])[0].replace(",", "")) - mean) <= 0.5


@pytest.mark.parametrize(("share", "said"), [
    (0, "none"), (1, "all"), (0.2, "20%"), (0.0051, "0.51%"), (0.9999, "99%"), (0.995, "99%"), (0.099, "9.9%"),
    (3e-6, "less than 0.001%"), (0.0996, "10%"),
])  # fmt: skip
def test_a_density_has_two_digits_and_is_all_only_where_it_is(share: float, said: str) -> None:
    assert headlines.density(share) == said


@pytest.mark.parametrize(("counts", "said"), [
    ([0], "No weight comes back"), ([1], "1 weight a step comes back"), ([1, 0, 0], "Less than 1 weight"),
    ([2, 1, 1], "1 weight a step comes back"), ([1300, 1301], "1,300 weights a step come back"),
])  # fmt: skip
def test_how_many_come_back(counts: list[int], said: str) -> None:
    history = History({"a.weight": 5000})
    for step, count in enumerate(counts):
        history.steps.append((step, 0, 0, 0, 0, (10,), (count,), (0,), (0,)))
    assert headlines.back(history).startswith(said)


def test_an_open_gate_takes_none_and_lets_nothing_come_back() -> None:
    history = History({"a.weight": 100})
    history.moved(0, "compression", None, 1.0)
    history.steps.append((1, 0, 0, 0, 0, (100,), (0,), (3,), (0,)))
    assert headlines.near_zero(history) == "3.0% under 1e-3, 0% under 1e-4; a cut takes none"
    assert headlines.back(history) == "The gate is open: no weight is passive"
