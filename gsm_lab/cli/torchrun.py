"""`torchrun --nproc-per-node N -m gsm_lab.train ...`: `gsm-lab run` in N processes that train one network.

Takes the options of `gsm-lab run`; `--parallel` is ddp unless given. (`torchrun -m gsm_lab.cli resume DIR` goes on.)
"""

from __future__ import annotations

import sys

from gsm_lab.cli import commands


def main(argv: list[str] | None = None) -> int:
    """Train with the arguments in `argv`, by default those of the command line; returns the exit status."""
    return commands.main(["run", "--parallel", "ddp", *(sys.argv[1:] if argv is None else argv)])
