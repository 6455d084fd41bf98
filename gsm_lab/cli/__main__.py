"""`python -m gsm_lab.cli`: as `gsm-lab`."""

import sys

from gsm_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
