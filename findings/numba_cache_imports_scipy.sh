#!/usr/bin/env bash
# numba 0.68.1 with SciPy 1.17.1: to load a compiled function from its cache imports scipy.linalg, whatever it computes.
#
# What one expects: a function of two additions that was compiled with cache=True in an earlier process is read from its
# file; SciPy, which numba needs for np.dot and np.linalg only, stays where it is.
# What happens: loading it makes the table of the C functions that compiled code may call, and for the entries of BLAS
# and LAPACK that imports scipy.linalg.cython_blas with all of scipy.linalg behind it: a hundred modules and megabytes in
# a process that multiplies no matrix. Where SciPy is not installed, the same function loads without it.
#
# Exits 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6 scipy==1.17.1
cd "$folder"
cat > added.py <<'PYTHON'
from numba import njit


@njit("float64(float64, float64)", cache=True)
def added(a, b):
    return a + b + 1.0
PYTHON
cat > ask.py <<'PYTHON'
import sys

import numba  # noqa: F401

before, count = "scipy.linalg" in sys.modules, len(sys.modules)
from added import added

result, hits = added(1.0, 2.0), sum(added.stats.cache_hits.values())
there = "scipy.linalg" in sys.modules
print(f"numba {numba.__version__}: after import numba scipy.linalg is {'there' if before else 'not there'}; after a function of "
      f"two additions from {hits} cached file(s) it is {'there' if there else 'not there'}, with "
      f"{len([m for m in sys.modules if m.startswith('scipy')])} modules of SciPy; {result}")
sys.exit(0 if result == 4.0 and hits == 1 and not before and there == (sys.argv[1] == "with") else 1)
PYTHON
"$folder/venv/bin/python" -c "import added"
"$folder/venv/bin/python" ask.py with
"$folder/venv/bin/pip" uninstall --quiet --yes scipy
"$folder/venv/bin/python" ask.py without
