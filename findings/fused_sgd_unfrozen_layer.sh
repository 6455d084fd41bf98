#!/usr/bin/env bash
# torch.optim.SGD(fused=True, momentum=...): a layer that is unfrozen after the first step ends training with a TypeError.
#
# Seen with torch 2.13.0 (CPU, Linux x86-64). No gsm_lab is needed or used here.
#
# Input, all of it by documented calls: a network of two layers in one optimizer, the first layer frozen
# (requires_grad_(False)) for a step, as in fine-tuning, then unfrozen.
#
# Expected: what SGD does without fused, and with foreach: the layer's momentum begins with its first gradient, while the
# other goes on with what it has. "fused" is described as another implementation of the same algorithm.
# Seen: the fused kernel is handed the list of momenta with a None in it, and raises "expected Tensor as element 0 in
# argument 2, but got NoneType". A parameter group for each layer avoids it, since a kernel is called for each group.
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
first, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(8, 5)


def unfrozen(groups_of, **how):
    """The network after a step with its first layer frozen and one without; or what was raised."""
    model = copy.deepcopy(first)
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9, **how)
    try:
        for trains in (False, True):
            model[0].requires_grad_(trains)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    except TypeError as error:
        return str(error)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def together(model):
    return model.parameters()


def by_layer(model):
    return [{"params": list(model[i].parameters())} for i in (0, 2)]


plain, foreach = unfrozen(together), unfrozen(together, foreach=True)
fused, apart = unfrozen(together, fused=True), unfrozen(by_layer, fused=True)
print("torch", torch.__version__)
print("plain and foreach agree:", torch.allclose(plain, foreach))
print("fused, one group:", fused)
print("fused, a group for each layer, agrees:", isinstance(apart, torch.Tensor) and torch.allclose(plain, apart))
same = torch.allclose(plain, foreach) and isinstance(fused, str) and "NoneType" in fused
same = same and isinstance(apart, torch.Tensor) and torch.allclose(plain, apart)
print("as described above" if same else "torch behaves differently now: this finding is out of date")
sys.exit(not same)
PYTHON
"$place/venv/bin/python" try.py
