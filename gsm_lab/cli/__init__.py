"""The command line, `gsm-lab`; also `python -m gsm_lab.cli`."""

from gsm_lab.cli.commands import main

__all__ = ["main"]
