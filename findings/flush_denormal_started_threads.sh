#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64 Linux): set_flush_denormal reaches half of a tensor, where threads have computed before.
#
# What one expects: the documentation says that it disables denormal numbers on the CPU; afterwards an operation gives
# zeros where its results are below the smallest normal number, in all of its output.
# What happens: the mode is that of the calling thread, and of threads that are started by it later. Threads which
# PyTorch computes with live on once an operation has used them, and keep theirs: of a product of two large tensors, made
# with two threads after an operation with two threads, one half is zeros and the other half denormal numbers. Called
# before the first such operation, all of it is zeros. Weights that decay for tens of thousands of steps, as pruned ones
# do, come there: called late, it makes a training neither fast nor the same on every number of threads.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > look.py <<'PYTHON'
import sys

import torch

torch.set_num_threads(2)
small = torch.empty(1 << 20)
if sys.argv[1] == "late":
    small.fill_(1e-30).mul_(1.0)  # with both threads
torch.set_flush_denormal(True)
small.fill_(1e-30)
print(int((small * 1e-10).ne(0).sum()))
PYTHON
late=$("$folder/venv/bin/python" look.py late)
early=$("$folder/venv/bin/python" look.py early)
echo "of 1048576 products of 1e-30 and 1e-10, not zero after set_flush_denormal(True):" \
  "$late where two threads had computed before, $early where none had"
[[ "$early" == 0 && "$late" -gt 400000 && "$late" -lt 650000 ]]
