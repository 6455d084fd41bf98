"""Public functions given junk: they take it, or say in a sentence what is wrong with which argument. See the soak."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.random_calls import ALLOWED, CALLS, REFUSED, called, calls, complaint
from tests.random_inputs import junk


@pytest.mark.parametrize("name", CALLS)
def test_every_call_works_as_it_is_meant(name: str) -> None:
    if name not in REFUSED:
        called(name)
        return
    with pytest.raises((*ALLOWED, KeyError), match=REFUSED[name]):
        called(name)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls, junk)
def test_junk_is_taken_or_refused_by_name(call: tuple[str, str], value: object) -> None:
    assert complaint(*call, value) == ""
