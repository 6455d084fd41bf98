"""Knobs against closed forms written here, and the two formulas against a simulated passive weight."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsm_lab import knobs
from gsm_lab.data import NAMES
from gsm_lab.knobs import KNOBS, LIVE, RECIPES, Knob
from gsm_lab.models import MODELS

untimed = settings(deadline=None, max_examples=40)
SLIDERS = [k for k in KNOBS.values() if k.scale != "choice"]
shares = st.floats(0, 1)
by_name = pytest.mark.parametrize("k", KNOBS.values(), ids=KNOBS)
by_slider = pytest.mark.parametrize("k", SLIDERS, ids=[k.name for k in SLIDERS])


def on_scale(k: Knob, share: float) -> float:
    """What stands at a slider position, unrounded."""
    if k.scale == "linear":
        return k.low + share * (k.high - k.low)
    if k.scale == "log1m":
        return 1 - (1 - k.low) * ((1 - k.high) / (1 - k.low)) ** share
    if k.scale == "log0" and share == 0:
        return 0.0
    return k.low * (k.high / k.low) ** share


def rounding(k: Knob, value: float) -> float:
    """How far rounding to two significant digits (linear: three), or to a whole number, may move `value`."""
    if k.scale == "log1m":
        return 0.051 * (1 - value) + 1e-6
    digits = (0.0051 if k.scale == "linear" else 0.051) * value
    return max(digits, 0.51) if k.whole or value >= 15 else digits + 1e-12


# ------------------------------------------------------------------------------------------------ declarations


@by_name
def test_default_and_ends_are_valid(k: Knob) -> None:
    assert k.check(k.default) == k.default and type(k.check(k.default)) is type(k.default)
    assert k.help and k.scale in {"linear", "log", "log0", "log1m", "choice"}
    if k.choices:
        assert k.scale == "choice" and all(k.check(choice) == choice for choice in k.choices)
        return
    assert k.least <= k.low < k.high <= k.most and k.label
    assert k.check(k.low) == k.low and k.check(k.high) == k.high
    assert k.low <= k.default <= k.high


def test_choices_are_what_there_is() -> None:
    assert KNOBS["model"].choices == tuple(MODELS) and KNOBS["data"].choices == tuple(NAMES)


def test_live_knobs() -> None:
    assert {"compression", "momentum", "weight_decay", "lr"} <= set(LIVE)
    assert not {"model", "data", "batch_size", "seed", "pretrain"} & set(LIVE)


@pytest.mark.parametrize("place", RECIPES, ids="-".join)
def test_recipes_hold_valid_values(place: tuple[str, str]) -> None:
    assert place[0] in NAMES and place[1] in MODELS
    for name, value in RECIPES[place].items():
        assert KNOBS[name].check(value) == value and type(KNOBS[name].check(value)) is type(value)
        assert not KNOBS[name].choices


# ------------------------------------------------------------------------------------------------ sliders


@by_slider
@untimed
@given(share=shares)
def test_at_is_the_scale_rounded_and_valid(k: Knob, share: float) -> None:
    value, exact = k.at(share), on_scale(k, share)
    assert k.check(value) == value and type(value) is type(k.default)
    assert abs(value - exact) <= rounding(k, exact)
    assert k.low <= value <= k.high or (k.scale == "log0" and share == 0 and value == 0)


@by_slider
@untimed
@given(share=shares)
def test_position_undoes_the_scale(k: Knob, share: float) -> None:
    assert k.position(on_scale(k, share)) == pytest.approx(share, abs=1e-9)


@by_slider
@untimed
@given(share=shares)
def test_a_value_from_the_slider_stays_where_it_is(k: Knob, share: float) -> None:
    value = k.at(share)
    assume(k.scale != "log0" or value != k.low)  # the left end is zero's
    assert k.at(k.position(value)) == value


@by_slider
@untimed
@given(one=shares, other=shares)
def test_sliders_are_monotone(k: Knob, one: float, other: float) -> None:
    one, other = sorted((one, other))
    assert k.at(one) <= k.at(other)
    a, b = sorted((on_scale(k, one), on_scale(k, other)))
    assert 0 <= k.position(a) <= k.position(b) <= 1


@by_slider
def test_ends_of_the_slider(k: Knob) -> None:
    assert k.at(0) == k.at(-1) == (0 if k.scale == "log0" else k.low) and k.position(k.least) == 0
    assert k.at(1) == k.at(2) == k.high and k.position(k.high) == 1
    if not k.open_end and math.isfinite(k.most):
        assert k.position(k.most) == 1


def test_zero_stands_at_the_left_end_of_log0() -> None:
    assert KNOBS["weight_decay"].at(0) == 0.0 and KNOBS["weight_decay"].position(0.0) == 0.0
    assert KNOBS["weight_decay"].at(1e-9) == KNOBS["weight_decay"].low


# ------------------------------------------------------------------------------------------------ check


@untimed
@given(value=st.floats(0, 1, exclude_max=True))
def test_numbers_may_come_as_text(value: float) -> None:
    assert KNOBS["momentum"].check(repr(value)) == KNOBS["momentum"].check(value) == value


@untimed
@given(value=st.integers(1, 2**31 - 1))
def test_whole_numbers_come_out_whole(value: int) -> None:
    for form in (value, str(value), float(value), np.int64(value), np.float64(value), f" {value}.0 "):
        checked = KNOBS["seed"].check(form)
        assert checked == value and type(checked) is int


WRONG = [True, False, math.nan, math.inf, -math.inf, -1, "", "much", "nan", None, [], {}, 1j, -(10**400), 10**400]


@pytest.mark.parametrize("value", WRONG, ids=lambda v: repr(v)[:8])
@by_name
def test_what_is_not_valid_is_refused_with_name_value_and_what_is(k: Knob, value: object) -> None:
    with pytest.raises(ValueError) as error:
        k.check(value)
    said, text = str(error.value), repr(value)
    assert said == f"{k.name} must be {k.valid}, got {text if len(text) <= 80 else text[:77] + '...'}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compression", 0.99), ("momentum", 1), ("momentum", 1.5), ("weight_decay", 1.01), ("lr", 101), ("hold", 1.1),
        ("epochs", 0), ("epochs", 2.5), ("batch_size", "3.5"), ("seed", 2**31), ("pretrain", -1), ("model", "LeNet300"),
        ("data", ""), ("evaluate_every", 0),
    ],
)  # fmt: skip
def test_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be (one of|a|a whole) .*, got {value!r}$"):
        KNOBS[name].check(value)


def test_valid_in_words() -> None:
    assert KNOBS["momentum"].valid == "a number from 0 to below 1"
    assert KNOBS["compression"].valid == "a number >= 1"
    assert KNOBS["seed"].valid == "a whole number from 0 to 2,147,483,647"
    assert KNOBS["data"].valid == "one of digits, mnist, fashion_mnist"


@untimed
@given(value=st.one_of(st.floats(), st.integers(), st.text(max_size=5), st.booleans(), st.none()))
@by_name
def test_check_returns_what_is_in_range_and_raises_for_all_else(k: Knob, value: object) -> None:
    try:
        checked = k.check(value)
    except ValueError:
        return
    assert type(checked) is type(k.default)
    assert checked in k.choices if k.choices else k.least <= checked <= k.most
    assert k.check(checked) == checked


# ------------------------------------------------------------------------------------------------ sets of settings


def test_given_goes_before_recipe_before_default() -> None:
    recipe = RECIPES["mnist", "lenet300"]
    assert recipe["lr"] != KNOBS["lr"].default and recipe["batch_size"] != KNOBS["batch_size"].default
    found = knobs.resolve({"lr": "0.07", "seed": 3}, "mnist", "lenet300")
    assert list(vars(found)) == list(KNOBS)
    assert (found.lr, found.seed, found.data, found.model) == (0.07, 3, "mnist", "lenet300")
    assert found.batch_size == recipe["batch_size"]
    assert found.momentum == KNOBS["momentum"].default and "momentum" not in recipe


@pytest.mark.parametrize("name", ["mine", ""])
def test_data_and_models_of_ones_own_take_the_defaults(name: str) -> None:
    found = knobs.resolve({}, name, "Net")
    assert vars(found) == {n: k.default for n, k in KNOBS.items()} | {"data": name, "model": "Net"}


def test_resolve_does_not_change_a_recipe() -> None:
    before = {place: dict(recipe) for place, recipe in RECIPES.items()}
    found = knobs.resolve({"lr": 1.0}, "mnist", "lenet300")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.epochs = 7
    assert before == RECIPES


def test_unknown_knobs_are_named_with_the_known_ones() -> None:
    for ask in (
        lambda: knobs.knob("beta"),
        lambda: knobs.checked({"beta": 0.9}),
        lambda: knobs.resolve({"beta": 0.9}, "digits", "lenet300"),
    ):
        with pytest.raises(ValueError, match="no knob 'beta'; the knobs are model, data, compression"):
            ask()


def test_live_only_refuses_what_restarts() -> None:
    assert knobs.checked({"lr": "0.5"}, live_only=True) == {"lr": 0.5}
    for name, value in {"seed": 1, "batch_size": 32, "model": "lenet5"}.items():
        assert knobs.checked({name: value}) == {name: value}
        with pytest.raises(
            ValueError, match=rf"{name} restarts the run; use reset\({name}=\.\.\.\).*live: compression"
        ):
            knobs.checked({"lr": 0.5, name: value}, live_only=True)


# ------------------------------------------------------------------------------------------------ a passive weight


def passive(lr: float, momentum: float, weight_decay: float, steps: int) -> np.ndarray:
    """A weight that only decays, from 1 and without momentum: Z <- beta Z + eta w, w <- w - alpha Z."""
    w, z, trace = 1.0, 0.0, [1.0]
    for _ in range(steps):
        z = momentum * z + weight_decay * w
        w -= lr * z
        trace.append(w)
    return np.asarray(trace)


def measured_half_life(trace: np.ndarray) -> float:
    """Steps a halving, from the logarithm's slope over the second half of the trace."""
    n = len(trace) // 2
    return math.log(2) * n / math.log(trace[-1 - n] / trace[-1])


@pytest.mark.parametrize(
    ("setting", "steps"),
    [((0.1, 0.9, 3e-3), 231.05), ((0.3, 0.9, 1e-3), 231.05), ((0.03, 0.98, 1e-4), 4620.98), ((0.1, 0.0, 1e-2), 693.15)],
)
def test_half_life_of_known_settings(setting: tuple[float, float, float], steps: float) -> None:
    assert knobs.half_life(*setting) == pytest.approx(steps, abs=0.01)
    assert measured_half_life(passive(*setting, steps=round(6 * steps))) == pytest.approx(steps, rel=0.05)


@settings(deadline=None, max_examples=40)
@given(momentum=st.floats(0, 0.98), lr=st.floats(1e-2, 1), share=st.floats(0.01, 0.05))
def test_half_life_of_a_simulated_weight(momentum: float, lr: float, share: float) -> None:
    decay = share * (1 - math.sqrt(momentum)) ** 2 / lr
    predicted = knobs.half_life(lr, momentum, decay)
    trace = passive(lr, momentum, decay, steps=math.ceil(max(4 * predicted, 20 / (1 - momentum))))
    assert measured_half_life(trace) == pytest.approx(predicted, rel=0.04)


def test_nothing_decays_without_decay() -> None:
    assert knobs.half_life(0.1, 0.9, 0.0) == knobs.half_life(0.0, 0.9, 0.1) == math.inf
    assert not knobs.oscillates(0.1, 0.9, 0.0)


@settings(deadline=None, max_examples=60)
@given(momentum=st.floats(0.3, 0.99), share=st.one_of(st.floats(0.05, 0.95), st.floats(1.1, 3)))
def test_oscillates_is_whether_a_simulated_weight_changes_its_sign(momentum: float, share: float) -> None:
    lr = 0.1
    decay = share * (1 - math.sqrt(momentum)) ** 2 / lr
    trace = passive(lr, momentum, decay, steps=math.ceil(60 / (1 - math.sqrt(momentum))))
    trace = trace[np.abs(trace) > 1e-250]  # before it underflows
    assert bool((trace < 0).any()) == knobs.oscillates(lr, momentum, decay) == (share > 1)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_an_oscillating_weight_shrinks_by_the_root_of_the_momentum(momentum: float) -> None:
    decay = 3 * (1 - math.sqrt(momentum)) ** 2 / 0.1
    trace = np.abs(passive(0.1, momentum, decay, steps=math.ceil(120 / (1 - momentum))))
    third = len(trace) // 3  # the envelope, not the zeros: greatest values of two thirds
    ratio = (trace[2 * third :].max() / trace[third : 2 * third].max()) ** (1 / third)
    assert ratio == pytest.approx(math.sqrt(momentum), rel=0.01)


# ------------------------------------------------------------------------------------------------ the table


def test_table_has_a_row_a_knob() -> None:
    lines = knobs.table().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [len(row) for row in rows] == [5] * (len(KNOBS) + 2)
    for (name, k), row in zip(KNOBS.items(), itertools.islice(rows, 2, None), strict=True):
        assert row[0] == f"`{name}`" and row[2] == k.valid and row[4] == k.help
        assert k.check(row[1]) == k.default and row[3] == ("live" if k.live else "restarts")


def test_table_of_some() -> None:
    assert knobs.table(["lr"]).splitlines()[2:] == [
        "| `lr` | 0.1 | a number from 0 to 100 | live | alpha: step size, before the schedule lowers it |"
    ]
    with pytest.raises(ValueError, match="no knob"):
        knobs.table(["nothing"])
