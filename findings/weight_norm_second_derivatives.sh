#!/usr/bin/env bash
# torch.nn.utils.parametrizations.weight_norm on a CPU: second derivatives through it are wrong, and nothing says so.
#
# Seen with torch 2.13.0 (CPU, Linux x86-64). No gsm_lab is needed or used here.
#
# Input, all of it by documented calls: a small Linear in float64 under weight_norm, a smooth loss, and its matrix of
# second derivatives by magnitude g and direction v, as one forms it for curvature, influence or a gradient penalty:
# torch.autograd.grad(..., create_graph=True), and the gradient of each entry of that.
#
# Expected: the matrix is symmetric, and is what differences of the first derivatives give; for the formula g v / |v|,
# written out with torch's own operations, both are true to 1e-8.
# Seen: first derivatives are right. Second ones through the layer are neither symmetric nor near: they are off by about
# as much as the largest entry of the matrix. No warning is given; torch.autograd.gradgradcheck tells it.
#
# Exit status: 0 while torch behaves like this, 1 when it does not any more (or when this cannot be tried).
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$place"
cat > try.py <<'PYTHON'
import sys

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

torch.manual_seed(0)
x = torch.randn(7, 3, dtype=torch.float64)
layer = weight_norm(nn.Linear(3, 2, bias=False).double())
g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1


def through_the_layer():
    return torch.tanh(layer(x)).square().mean()


def by_the_formula():
    return torch.tanh(x @ (g * v / v.norm(dim=1, keepdim=True)).T).square().mean()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def first(loss, **graph):
    return flat(torch.autograd.grad(loss(), (g, v), **graph))


def second(loss):
    return torch.stack([flat(torch.autograd.grad(one, (g, v), retain_graph=True)) for one in first(loss, create_graph=True)])


def by_differences(loss, step=1e-6):
    rows = []
    for p in (g, v):
        for i in range(p.numel()):
            ends = []
            for way in (step, -step):
                p.data.view(-1)[i] += way
                ends.append(first(loss))
                p.data.view(-1)[i] -= way
            rows.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(rows)


def off(a, b):
    return float((a - b).abs().max())


truth = by_differences(by_the_formula)
layers, formulas = second(through_the_layer), second(by_the_formula)
print("torch", torch.__version__, "- largest second derivative", round(float(truth.abs().max()), 3))
print(f"first derivatives, layer against formula: off by {off(first(through_the_layer), first(by_the_formula)):.1e}")
print(f"second, formula against differences: off by {off(formulas, truth):.1e}")
print(f"second, layer against differences: off by {off(layers, truth):.3f}; asymmetric by {off(layers, layers.T):.3f}")
right_first = off(first(through_the_layer), first(by_the_formula)) < 1e-12
same = right_first and off(formulas, truth) < 1e-7 and off(layers, truth) > 0.05 and off(layers, layers.T) > 0.05
print("as described above" if same else "torch behaves differently now: this finding is out of date")
sys.exit(not same)
PYTHON
"$place/venv/bin/python" try.py
