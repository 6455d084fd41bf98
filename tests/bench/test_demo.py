"""The digits demo: what somebody sees in the first half minute (targets: 30 s, the cut within 0.6 points, 60x)."""

import statistics
import time

from gsm_lab import Run
from tests.bench.test_history import machine

SEEDS = range(5)


def test_digits_demo() -> None:
    rows, seconds, gaps = [], [], []
    for seed in SEEDS:
        start = time.perf_counter()
        run = Run(seed=seed)
        run.train(progress=False)
        live, cut = run.evaluate(), run.evaluate(cut=True)
        seconds.append(time.perf_counter() - start)
        gaps.append(100 * (live - cut))
        assert run.nonzeros == 266_200 // 60
        accuracies = " | ".join(f"{100 * a:.2f}" for a in (run.base, run.magnitude, live, cut))
        rows.append(f"| {seed} | {accuracies} | {seconds[-1]:.1f} |")
    print(f"\n{machine()}\n| seed | dense | dense, cut | live | cut | s |\n|---|---|---|---|---|---|", *rows, sep="\n")
    print(f"median gap {statistics.median(gaps):.2f} points, slowest {max(seconds):.1f} s")
    assert statistics.median(gaps) <= 0.6
    assert max(seconds) <= 30
