"""How a passive weight decays, against loops in Python floats, `torch.optim.SGD` and eigenvalues."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsm_lab.knobs import half_life, oscillates
from gsm_lab.studies import trajectories as study


def loop(steps, lr, momentum, decay, w=1.0, z=0.0) -> list[float]:
    """A passive weight, one step after the other."""
    values = [w]
    for _ in range(steps):
        z = momentum * z + decay * w
        w = w - lr * z
        values.append(w)
    return values


rates = st.floats(1e-4, 1.0), st.floats(0.0, 0.999), st.floats(0.0, 0.5)


@settings(deadline=None)
@given(*rates, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 400))
def test_the_exact_solution_is_the_loop(lr, momentum, decay, w, z, steps):
    expected = loop(steps, lr, momentum, decay, w, z)
    got = study.passive(np.arange(steps + 1), lr, momentum, decay, w, z)
    assert got.dtype == np.float64 and got.shape == (steps + 1,)
    np.testing.assert_allclose(got, expected, atol=1e-7 * (abs(w) + abs(z) + 1), rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.98, 0.99, 0.999])
@pytest.mark.parametrize("of_critical", [0.01, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1.5])
def test_the_exact_solution_holds_on_both_sides_of_the_critical_point(momentum, of_critical):
    product = of_critical * study.critical(momentum)
    got = study.passive(np.arange(300), product, momentum, 1.0, w=0.3)
    np.testing.assert_allclose(got, loop(299, product, momentum, 1.0, 0.3), atol=1e-8)


@pytest.mark.parametrize(
    ("lr", "momentum", "decay"), [(0.1, 0.9, 3e-3), (0.02, 0.98, 3e-3), (0.01, 0.99, 3e-2), (0.3, 0.0, 0.1)]
)
def test_the_exact_solution_is_torch_sgd_with_zero_gradients(lr, momentum, decay):
    w = torch.nn.Parameter(torch.tensor([0.7, -0.2], dtype=torch.float64))
    sgd = torch.optim.SGD([w], lr=lr, momentum=momentum, weight_decay=decay)
    for _ in range(500):
        w.grad = torch.zeros_like(w)
        sgd.step()
    expected = np.array([0.7, -0.2]) * study.passive(500, lr, momentum, decay)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-9, atol=1e-15)


@given(*rates)
def test_the_rate_is_the_larger_eigenvalue_and_the_fastest_at_the_critical_point(lr, momentum, decay):
    assume(lr * decay > 1e-12)
    p = 1 + momentum - lr * decay
    largest = np.abs(np.linalg.eigvals(np.array([[p, -momentum], [1.0, 0.0]]))).max()
    # close to the critical point an eigenvalue knows half of its digits
    assert study.decay_rate(lr, momentum, decay) == pytest.approx(-math.log(largest), abs=1e-6)
    if oscillates(lr, momentum, decay) and p >= -2 * math.sqrt(momentum):
        assert study.decay_rate(lr, momentum, decay) == pytest.approx(-0.5 * math.log(momentum), rel=1e-9)


@given(st.floats(0, 0.99), st.floats(1e-4, 0.02))
def test_far_below_the_critical_point_the_closed_form_holds(momentum, share):
    product = share * study.critical(momentum)
    assume(product > 0)
    closed, exact = study.closed_form_rate(product, momentum, 1.0), study.decay_rate(product, momentum, 1.0)
    assert exact == pytest.approx(closed, rel=0.011)
    assert closed == pytest.approx(math.log(2) / half_life(product, momentum, 1.0), rel=1e-12)


@given(st.floats(0.5, 0.999), st.floats(0.001, 0.99))
def test_momentum_has_settled_after_the_warm_up(momentum, share):
    product = share * study.critical(momentum)
    k = study.settling_steps(product, momentum, 1.0)
    assert 0 < k <= math.ceil(10 / (1 - momentum))
    assume(k < 10 / (1 - momentum))
    before, after = study.passive([k, k + 1], product, momentum, 1.0)
    assert math.log(before / after) == pytest.approx(study.decay_rate(product, momentum, 1.0), rel=0.05)


def test_bad_settings_are_named():
    for call in (study.decay_rate, study.closed_form_rate, study.settling_steps):
        with pytest.raises(ValueError, match=r"momentum must be .* below 1, got 1.0"):
            call(0.1, 1.0, 0.1)
        with pytest.raises(ValueError, match=r"lr \* weight_decay must be below .* = 3.8.*got 50 \* 0.5"):
            call(50.0, 0.9, 0.5)
    for steps in (-1, [0, -3], 2.5):
        with pytest.raises(ValueError, match="steps must be whole numbers >= 0"):
            study.passive(steps, 0.1, 0.9, 0.1)
