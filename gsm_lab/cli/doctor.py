"""What `gsm-lab doctor` checks: lines of (state, what it is); a state is "ok", "missing" or "wrong"."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def needed() -> Iterator[tuple[str, str]]:
    """Python and the packages that gsm_lab cannot do without: which version there is, and which will do."""
    from packaging.requirements import Requirement

    fits = (3, 11) <= sys.version_info[:2] < (3, 15)
    yield "ok" if fits else "wrong", f"Python {'.'.join(map(str, sys.version_info[:3]))} (>=3.11,<3.15)"
    for line in _requirements():
        wanted = Requirement(line)
        ranges = line.removeprefix(wanted.name)
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield "missing", f"{wanted.name} ({ranges})"
        else:
            fits = wanted.specifier.contains(found, prereleases=True)
            yield "ok" if fits else "wrong", f"{wanted.name} {found} ({ranges})"


def surroundings() -> Iterator[tuple[str, str]]:
    """What is useful and not needed everywhere: threads, a browser, numba, MNIST."""
    import pooch
    import torch

    from gsm_lab.data.sources import ENVIRONMENT, FILES
    from gsm_lab.optim.fused import loader
    from gsm_lab.training import threads

    yield "ok", f"{torch.get_num_threads()} threads for training, {threads.described()}; {os.cpu_count()} processors"
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    yield (
        ("ok", f"browser {browser}") if browser else ("missing", "a Chromium or Chrome (only for pictures of figures)")
    )
    yield (
        ("ok", "numba: GSM's step is compiled")
        if loader.compiled(loader.STEP)
        else ("missing", "numba (only for a faster step of GSM: `pip install 'gsm_lab[fast]'`)")
    )
    own = os.environ.get(ENVIRONMENT)
    folders = [Path(own) / "mnist", Path(own)] if own else []
    for folder in (*folders, Path(pooch.os_cache("gsm_lab")) / "mnist"):
        if all((folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in FILES):
            yield "ok", f"mnist in {folder}"
            return
    yield "missing", "mnist (`gsm-lab data mnist` fetches it; digits needs nothing)"


def _requirements() -> list[str]:
    """The dependencies as pyproject.toml has them: in a clone from there, else from the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in metadata.requires("gsm_lab") or [] if "extra ==" not in line]
