"""Fixtures of these tests."""

from pathlib import Path

import pytest

from tests.runs import net, tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = tiny(net())
    run.step(12)
    return run.save(tmp_path / "runs" / "a")
