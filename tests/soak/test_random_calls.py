"""The 5,000 calls of which `tests/test_random_calls.py` does a few."""

import os
from collections import Counter

from hypothesis import HealthCheck, given, settings

from tests.random_calls import CALLS, calls, complaint
from tests.random_inputs import JUNK, junk

CALLS_MADE = int(os.environ.get("GSM_LAB_RANDOM_CALLS", "5000"))


def test_everything_that_is_listed_for_every_argument() -> None:
    wrong = [
        said
        for name, (_, valid) in CALLS.items()
        for argument in valid
        for value in JUNK
        if (said := complaint(name, argument, value))
    ]
    assert wrong == []


def test_random_calls() -> None:
    made: Counter[str] = Counter()

    @settings(max_examples=CALLS_MADE, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls, junk)
    def call(which: tuple[str, str], value: object) -> None:
        made[which[0]] += 1
        assert complaint(*which, value) == ""

    call()
    print(f"\n{sum(made.values()):,} calls of {len(made)} functions: right, or refused by the argument's name")
