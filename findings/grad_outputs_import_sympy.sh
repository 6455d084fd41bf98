#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64 Linux): torch.autograd.grad with grad_outputs imports sympy, to compare two shapes.
#
# What one expects: a product of a vector with a Jacobian in eager mode, of plain tensors of known shapes, needs what a
# backward pass needs, and that is there after `import torch`.
# What happens: the first call with grad_outputs imports torch.fx.experimental.symbolic_shapes and with it all of sympy,
# for a check that the shape of each of grad_outputs equals that of its output, and keeps some 35 MB for it. The same
# derivative asked for as that of a sum of products imports nothing. In a notebook, where products of the Hessian and a
# vector are made while something trains, the first one comes late and the kernel is that much larger from then on.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch


def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
v = torch.tensor([0.5, -1.0, 2.0])
y = x**3
(by_sum,) = torch.autograd.grad((y * v).sum(), x, retain_graph=True)
before, count, memory = "sympy" in sys.modules, len(sys.modules), resident()
(by_vector,) = torch.autograd.grad(y, x, grad_outputs=v)
after, more, grown = "sympy" in sys.modules, len(sys.modules) - count, resident() - memory
same = torch.equal(by_sum, by_vector)
print(f"torch {torch.__version__}: the derivative of a sum of products {'had' if before else 'had not'} imported sympy; "
      f"grad_outputs {'has' if after else 'has not'}, with {more} modules and {grown:.0f} MB; equal results: {same}")
sys.exit(0 if same and not before and after and more > 300 and grown > 20 else 1)
PYTHON
