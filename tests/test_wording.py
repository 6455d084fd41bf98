"""Numbers as people read them."""

import pytest

from gsm_lab.wording import count, duration, layer_name, size, times, whole_percent


@pytest.mark.parametrize(("factor", "text"), [(1.0, "1×"), (1.234, "1.2×"), (34.4, "34×"), (1432.0, "1,400×")])
def test_factors_have_two_digits(factor, text):
    assert times(factor) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0%"), (0.426, "43%"), (0.9999, "99.9%"), (1.0, "100%")])
def test_it_is_all_only_where_it_is_all(share, text):
    assert whole_percent(share) == text


def test_bytes_seconds_and_counts_have_a_unit():
    assert [size(n) for n in (0, 999, 1000, 2_130_000, 4e11)] == ["0 bytes", "999 bytes", "1 kB", "2.13 MB", "400 GB"]
    assert [duration(s) for s in (0.03, 0.1, 12.3456)] == ["30 ms", "0.1 s", "12.3 s"]
    assert [count(n) for n in (266_200, 100_000_000_000)] == ["266,200", "100 billion"]
    assert layer_name("fc1.weight") == layer_name("fc1") == "fc1"
