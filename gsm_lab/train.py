"""`torchrun --nproc-per-node N -m gsm_lab.train ...`: see `gsm_lab.cli.torchrun`."""

import sys

from gsm_lab.cli.torchrun import main

if __name__ == "__main__":
    sys.exit(main())
