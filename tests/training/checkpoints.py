"""What the tests of checkpoints share."""

import pandas as pd

from gsm_lab import Run
from tests.runs import differs, everything, net, tiny


def assert_same(a: Run, b: Run) -> None:
    assert differs(everything(a), everything(b)) == []
    pd.testing.assert_frame_equal(a.history.frame(), b.history.frame(), check_exact=True)
    assert a.given == b.given


def lenet300() -> Run:
    return Run(pretrain=1, evaluate_every=40, seed=6)


def own() -> Run:
    return tiny(net(3), batch_size=16)


def smoothed() -> Run:
    return tiny(compression=20, smoothing=0.9, ramp=0.4, freeze=0.7)
