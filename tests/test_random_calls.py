"""Public functions given junk: they take it, or say in a sentence what is wrong with which argument. See the soak."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.random_calls import CALLS, calls, complaint, junk


@pytest.mark.parametrize("name", CALLS)
def test_every_call_works_as_it_is_meant(name: str) -> None:
    for argument, value in CALLS[name][1].items():
        if not (name == "load" and argument == "root"):
            assert complaint(name, argument, value) == ""


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls, junk)
def test_junk_is_taken_or_refused_by_name(call: tuple[str, str], value: object) -> None:
    assert complaint(*call, value) == ""
