"""The measured speed of decay, on the digits and against a naive log."""

import numpy as np
import pytest

from gsm_lab.studies import trajectories as study
from tests.studies.test_trajectories import run


@pytest.fixture(scope="module")
def speeds():
    """Real training on the digits, with the paper's weight decay, at three momenta, also past the critical point."""
    digits = {"model": "lenet300", "data": "digits", "pretrain": 1, "seed": 0}
    usual = study.zero_out_speed(digits | {"weight_decay": 5e-4}, window=30)
    return usual, study.zero_out_speed(digits, (0.9, 0.98), of_critical=(0.5, 3.0), window=30)


def test_measured_speed_is_the_closed_form_within_5_percent(speeds):
    usual, _ = speeds
    assert usual["momentum"].tolist() == [0.9, 0.98, 0.99]
    assert usual["lr"].tolist() == [0.1, 0.02, 0.01]
    assert (usual["off_closed_form"].abs() < 0.05).all()
    assert (usual["off_exact"].abs() < 0.01).all()
    assert (usual["weights"] > 1000).all() and not usual["oscillates"].any()
    for _, row in usual.iterrows():
        assert row["exact"] == pytest.approx(study.decay_rate(row["lr"], row["momentum"], row["weight_decay"]))
        assert row["off_exact"] == pytest.approx(row["exact"] / row["measured"] - 1)
        assert row["low"] <= row["measured"] <= row["high"]


def test_past_the_critical_point_the_exact_root_holds_and_the_closed_form_does_not(speeds):
    _, critical = speeds
    assert critical["of_critical"].tolist() == pytest.approx([0.5, 3.0, 0.5, 3.0])
    assert critical["oscillates"].tolist() == [False, True, False, True]
    assert (critical["off_exact"].abs() < 0.01).all()
    assert (critical["off_closed_form"].abs() > 0.1).all()


def test_weights_that_were_active_do_not_count_and_settle_before():
    one = run(momentum=0.8, compression=4)
    one.step(20)
    log = []
    one.recorders.append(lambda step, active, weights: log.append(
        (active.copy(), np.concatenate([w.reshape(-1) for w in weights]).astype(np.float64))))  # fmt: skip
    table = study.zero_out_speed(one, window=10, weights=1000)
    warm = study.settling_steps(0.05, 0.8, 0.02)
    assert len(log) == warm + 20 == int(table["warm_up"][0]) + 20
    never = ~np.any([active for active, _ in log], axis=0)
    values = np.array([w[never] for _, w in log])[warm:]
    rates = np.log((values[:10] ** 2).sum(0) / (values[10:] ** 2).sum(0)) / 20
    assert table["weights"][0] == never.sum() > 5
    assert table["measured"][0] == pytest.approx(np.median(rates), rel=1e-9)
    assert len(one.recorders) == 1  # its own is gone


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="weight_decay must be > 0"):
        study.zero_out_speed(run(weight_decay=0))
    with pytest.raises(ValueError, match=r"hold must be 1 for the learning rate to stay 0.05, got 0.5"):
        study.zero_out_speed(run(hold=0.5, epochs=2))
    with pytest.raises(ValueError, match=r"no weight stayed passive .* compression = 1 "):
        study.zero_out_speed(run(compression=1))
    with pytest.raises(ValueError, match="window must be a whole number >= 1, got 0"):
        study.zero_out_speed(run(), window=0)
    with pytest.raises(ValueError, match=r"of_critical must hold numbers > 0, got \(0.1, -1\)"):
        study.zero_out_speed({}, of_critical=(0.1, -1))
    with pytest.raises(ValueError, match="of_critical needs settings instead of a run"):
        study.zero_out_speed(run(), of_critical=(0.1,))
