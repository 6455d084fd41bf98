"""Fixtures of these tests."""

import pytest

from gsm_lab import Run
from tests.distributed.over_ranks import SETTINGS, STEPS


@pytest.fixture(scope="module")
def alone() -> Run:
    run = Run(**SETTINGS)
    run.step(STEPS)
    return run
