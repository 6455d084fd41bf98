#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64 Linux): torch.linalg.inv and torch.linalg.solve with two threads where they share one
# processor, as in a container with a quota or beside other programs: 20 to 100 times as long as with one thread.
#
# What one expects: threads of OpenMP that may not spin (OMP_WAIT_POLICY=PASSIVE) cost a few switches, as they do for
# a Cholesky decomposition, a product or a sum of the same matrix.
# What happens: the LU decomposition inside both has its threads wait for each other in a loop of its own, which that
# setting does not reach; each such wait lasts until the scheduler takes the processor away. Pruning by second
# derivatives (OBS, L-OBS, Fisher blocks) inverts one such matrix a layer and solves one a unit. What helps:
# torch.set_num_threads(1) around it, or torch.linalg.cholesky, where the matrix is positive definite.
#
# Exits 0 while it is so, 1 when it has changed, 77 where there is no taskset.
set -euo pipefail
command -v taskset >/dev/null || exit 77
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE taskset -c 0 "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import torch

torch.manual_seed(0)
a = torch.randn(300, 300, dtype=torch.float64)
a = a @ a.T + 300 * torch.eye(300, dtype=torch.float64)


def ms(f, threads):
    torch.set_num_threads(threads)
    f(a)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        f(a)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


ratios = {}
for name, f in {"inv": torch.linalg.inv, "cholesky": torch.linalg.cholesky, "product": lambda x: x @ x}.items():
    one, two = ms(f, 1), ms(f, 2)
    ratios[name] = two / one
    print(f"torch {torch.__version__}, 300 x 300, {name}: {one:.1f} ms with one thread, {two:.1f} ms with two")
so = ratios["inv"] > 10 and ratios["cholesky"] < 5 and ratios["product"] < 5
print("as described" if so else "CHANGED")
sys.exit(not so)
PYTHON
