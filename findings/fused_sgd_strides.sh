#!/usr/bin/env bash
# torch.optim.SGD(fused=True) on a CPU takes no notice of strides: it moves the wrong entries, and says nothing.
#
# Seen with torch 2.13.0 (CPU, Linux x86-64). No gsm_lab is needed or used here.
#
# Input, all of it by documented calls: a convolution is trained for some steps; its optimizer's state_dict() is loaded
# into the optimizer of the same network in the channels_last memory format (as one does who resumes a checkpoint and
# wants faster convolutions); one more step is done. The same once more for a network that is converted with
# model.to(memory_format=torch.channels_last) between two steps of one optimizer. Gradients are autograd's own.
#
# Expected: fused or not, the step is the same but for rounding: "fused" is described as another implementation of the
# same algorithm, and the documentation of load_state_dict, of memory formats and of SGD names no such condition.
# Seen: without fused, both ways agree with the row-major network to about 1e-7. With fused=True the momentum is read in
# the order in which it lies in memory, so that each entry of the weight gets another entry's momentum: weights are off by
# as much as the momentum moves them, at every step from then on. (The source of the kernel for GPUs refuses lists of
# different strides; that was read, and not run here.)
#
# Exit status: 0 while torch behaves like this, 1 when it does not any more (or when this cannot be tried).
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$place"
cat > try.py <<'PYTHON'
import copy
import sys

import torch
from torch import nn

torch.manual_seed(0)
first = nn.Conv2d(4, 8, 3)
batches = torch.randn(6, 2, 4, 6, 6)


def sgd(model, fused):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)


def train(model, optimizer, some):
    for x in some:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def off(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def one(fused, way):
    """How far the weights are from those of a network that was row-major all the time."""
    straight = copy.deepcopy(first)
    optimizer = sgd(straight, fused)
    train(straight, optimizer, batches[:5])
    model = copy.deepcopy(straight)
    if way == "state loaded":
        model = model.to(memory_format=torch.channels_last)
        other = sgd(model, fused)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        other = sgd(model, fused)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        model.to(memory_format=torch.channels_last)
    train(straight, optimizer, batches[5:])
    train(model, other, batches[5:])
    return off(straight, model)


print("torch", torch.__version__)
same = True
for way in ("state loaded", "converted between steps"):
    plain, fused = one(False, way), one(True, way)
    print(f"{way}: largest difference to the row-major network: fused=False {plain:.1e}, fused=True {fused:.1e}")
    same &= plain < 1e-5 < 1e-3 < fused
print("as described above" if same else "torch behaves differently now: this finding is out of date")
sys.exit(not same)
PYTHON
"$place/venv/bin/python" try.py
