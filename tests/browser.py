"""Which browser the browser tests drive: `find_browser()`, and `python -m tests.browser --install` for `make test`."""

import argparse
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
NONE = "no Chromium or Chrome on this machine, and none could be installed"


def under_ci() -> bool:
    """Where a missing browser is a failure and not a reason to skip."""
    return os.environ.get("CI", "").lower() == "true"


@functools.cache
def find_browser() -> str | None:
    """The path of a Chromium or Chrome that starts: the system's, else the one Playwright installed, else None."""
    candidates = [shutil.which(name) for name in NAMES] + [path for path in MAC if Path(path).exists()]
    for path in filter(None, candidates):
        if _starts(path):
            return path
    path = _of_playwright()
    return path if path and _starts(path) else None


def install() -> str | None:
    """`find_browser()`, after trying to install one if there is none; what fails is said and is no error."""
    if find_browser():
        return find_browser()
    _try([sys.executable, "-m", "playwright", "install", "chromium"], seconds=300)
    find_browser.cache_clear()
    if not find_browser() and _debian_as_root():
        _try(["apt-get", "update"], seconds=120)
        _try(["apt-get", "install", "--yes", "chromium"], seconds=600)
        find_browser.cache_clear()
    return find_browser()


def _starts(path: str) -> bool:
    """Some systems ship a `chromium-browser` that only says where to get one: so ask for the version."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=300).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _of_playwright() -> str | None:
    # In a process of its own: Playwright's API refuses to work inside a running event loop.
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path = result.stdout.strip()
    return path if result.returncode == 0 and Path(path).exists() else None


def _debian_as_root() -> bool:
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None and os.geteuid() == 0


def _try(command: list[str], seconds: float) -> None:
    print(f"browser: trying {' '.join(command)}", flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, env=environ
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"browser: {error}")
        return
    if result.returncode:
        said = (
            line for line in (result.stderr + result.stdout).splitlines() if "rror" in line or line.startswith("E:")
        )
        print(f"browser: that failed: {next(said, f'exit status {result.returncode}').strip()}")


def main() -> int:
    """One line about the browser; exit status 1 if there is none where there must be one."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install a browser if none is found")
    path = install() if parser.parse_args().install else find_browser()
    if path:
        print(f"browser: {path}")
        return 0
    print(f"browser: {NONE}: " + ("a failure, as CI=true" if under_ci() else "the browser tests will be SKIPPED"))
    return int(under_ci())


if __name__ == "__main__":
    sys.exit(main())
