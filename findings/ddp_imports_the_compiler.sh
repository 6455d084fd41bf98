#!/usr/bin/env bash
# torch 2.13.0 (CPU, x86-64 Linux): wrapping a model in DistributedDataParallel imports the whole compiler.
#
# What one expects: DDP is a module that broadcasts weights, fills buckets and reduces them. Nothing is compiled here, and
# `import torch`, `init_process_group`, the model and its backward pass have imported all that they need.
# What happens: the constructor (nothing before it, and no step after it) imports torch._dynamo, torch._inductor's
# configuration, torch.distributed.tensor and sympy: several hundred modules, and about as much processor time as
# `import torch` takes. Every rank of every run pays it. Where ranks run on one machine for a short training (a test, a
# lesson), most of their time goes there. What helps: import it once, and fork the ranks from there.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > try.py <<'PYTHON'
import sys
import time

start = time.process_time()
import torch
import torch.distributed as dist

took = time.process_time() - start
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
model = torch.nn.Linear(3, 2)
model(torch.ones(4, 3)).sum().backward()
HEAVY = ("torch._dynamo", "torch.distributed.tensor", "sympy")


def there():
    return [name for name in HEAVY if name in sys.modules]


before, count, start = there(), len(sys.modules), time.process_time()
wrapped = torch.nn.parallel.DistributedDataParallel(model)
wraps = time.process_time() - start
after, more = there(), len(sys.modules) - count
wrapped(torch.ones(4, 3)).sum().backward()
print(f"torch {torch.__version__}: import torch {took:.1f} s of processor time; DistributedDataParallel(Linear(3, 2)) "
      f"{wraps:.1f} s, {more} modules, among them {', '.join(after)}; before it {', '.join(before) or 'none of them'}; "
      f"in the step after it {len(sys.modules) - count - more} more")
dist.destroy_process_group()
as_described = not before and after == [*HEAVY] and more > 300 and wraps > 0.2 * took
sys.exit(0 if as_described else 1)
PYTHON
GLOO_SOCKET_IFNAME=lo timeout 300 "$folder/venv/bin/python" try.py "$folder/store" 2>/dev/null
