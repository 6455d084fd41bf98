"""`torchrun --nproc-per-node N -m gsm_lab.train ...`: `gsm-lab run` in N processes that train one network.

Takes the options of `gsm-lab run`; `--parallel` is ddp unless given. (`torchrun -m gsm_lab.cli resume DIR` goes on.)
"""

import sys

from gsm_lab.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", "--parallel", "ddp", *sys.argv[1:]]))
