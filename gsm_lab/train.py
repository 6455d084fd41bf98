"""`torchrun --nproc-per-node N -m gsm_lab.train ...`: `gsm-lab run` in N processes that train one network.

Takes the options of `gsm-lab run`; `--parallel` is ddp unless given. (`torchrun -m gsm_lab.cli resume DIR` goes on.)
"""

import sys

from gsm_lab import cli


def main(argv: list[str] | None = None) -> int:
    """Train with the arguments in `argv`, by default those of the command line; returns the exit status."""
    return cli.main(["run", "--parallel", "ddp", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
