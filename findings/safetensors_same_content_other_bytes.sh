#!/usr/bin/env bash
# safetensors: the same tensors and the same metadata, saved twice, are two files that differ.
#
# Seen with safetensors 0.8.0 (Linux x86-64). No gsm_lab is needed or used here.
#
# Input: one small array and three metadata entries, given to safetensors.numpy.save in fresh processes and in one.
#
# Expected: equal bytes. The format has a JSON header, then tensors in an order that the library settles itself, so one
# may be led to name a model by the hash of its file, or to see by comparing whether a save has changed anything.
# Seen: the entries of "__metadata__" come in another order from call to call, also within one process, so the bytes and
# any hash of them differ. With one entry, or none, they are equal. What is loaded is the same in each case: a checksum has
# to be one of the content, or the header has to be written again in a settled order.
#
# Exit status: 0 while safetensors behaves like this, 1 when it does not any more (or when this cannot be tried).
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$place"
cat > try.py <<'PYTHON'
import hashlib
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

content = {"w": np.arange(6, dtype=np.float32)}
about = {"step": "12", "seed": "0", "net": "a"}


def hashes(metadata):
    return {hashlib.sha256(save(content, metadata)).hexdigest() for _ in range(50)}


print("safetensors", safetensors.__version__)
print("different files in 50 saves, with three entries:", len(hashes(about)), "- with one:", len(hashes({"step": "12"})))
whole = all(np.array_equal(load(save(content, about))["w"], content["w"]) for _ in range(50))
print("what is loaded is always the same:", whole)
same = len(hashes(about)) > 1 and len(hashes({"step": "12"})) == len(hashes(None)) == 1 and whole
print("as described above" if same else "safetensors behaves differently now: this finding is out of date")
sys.exit(not same)
PYTHON
"$place/venv/bin/python" try.py
