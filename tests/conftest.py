"""What all tests share: the order they run in, a browser, and a real JupyterLab server on loopback."""

import contextlib
import dataclasses
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.browser import NONE, find_browser, under_ci

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background; the programs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile("any time", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any time")

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each program that tests start would compile our modules anew

BENCH, SOAK = Path(__file__).with_name("bench"), Path(__file__).with_name("soak")
NOTEBOOKS = "test_notebooks.py"
# begun first, in this order: begun last, the other processes would wait for the one that runs it
LONGEST = ("test_placement.py", "test_torchrun.py", NOTEBOOKS,
           "test_jupyterlab.py", "test_pictures.py", "test_board_fits.py", "test_compare_pages.py")  # fmt: skip
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
# Without these Chromium looks for updates and asks its maker's hosts at every start.
CHROMIUM_ARGS = [
    *(["--no-sandbox"] if AS_ROOT else []),
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_sessionstart(session):
    """What numba compiles is compiled before several processes begin, each of which would do it for itself."""
    if session.config.getoption("numprocesses", None):
        code = "import gsm_lab.optim.fused.step, gsm_lab.training.history_compiled, gsm_lab.studies.scan_compiled"
        subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)  # without numba there is nothing to do


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what uses a browser or measures time, and run the modules with browser tests last.

    Last, because Playwright's event loop goes on running in the main thread, where nothing can start another one.
    """
    browses = {item.path for item in items if "browser_path" in getattr(item, "fixturenames", ())}
    for item in items:
        if "browser_path" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if item.path.is_relative_to(BENCH):
            item.add_marker("bench")
        if item.path.is_relative_to(SOAK):
            item.add_marker("soak")
    early = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path in browses, early.get(item.path.name, len(LONGEST))))


def pytest_collection_finish():
    """What has been imported stays: the garbage collection that many tests ask for need not look at it each time."""
    gc.collect()
    gc.freeze()


class ByModule(LoadScopeScheduling):
    """Processes share the work by module, for what its tests set up together; a notebook is a piece of work by itself.

    (The `loadgroup` of xdist 3.8 would say so by marks, which pytest 9.2 does not let it write.)
    """

    def _split_scope(self, nodeid):
        path, _, _ = nodeid.partition("::")
        return nodeid if path.endswith(NOTEBOOKS) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Who runs what."""
    return ByModule(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers():
    """A process for each core, up to four: a test computes with one thread, and has memory for a browser."""
    return min(4, (yield))


@pytest.fixture(autouse=True, scope="module")
def one_thread(request):
    """Every test but a bench trains with one thread: on a busy machine two wait for each other all the time."""
    if request.path.is_relative_to(BENCH):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The browser to drive; without one the test is skipped, under CI=true it fails."""
    path = find_browser()
    if path is None:
        (pytest.fail if under_ci() else pytest.skip)(f"{NONE}: a browser test did not run")
    return path


@pytest.fixture(scope="session")
def chromium(browser_path):
    """A headless Chromium of Playwright's, one for all tests: `chromium.new_page()`, and close the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclasses.dataclass(frozen=True)
class Lab:
    """A running JupyterLab: put notebooks into `folder`, open `address("name.ipynb")`."""

    url: str
    token: str
    folder: Path
    log: Path  # what the server and its kernels say, and where they have gone wrong

    def address(self, path: str = "") -> str:
        """The address of a notebook (relative to `folder`) in JupyterLab, token included."""
        return f"{self.url}/lab/tree/{path}?token={self.token}"


@pytest.fixture(scope="session")
def lab(request, tmp_path_factory):
    """A real JupyterLab on loopback, on an empty folder, with nobody's settings and this environment's kernel.

    Kernels compute with one thread, as the tests do, but for a bench: beside a browser two wait for each other.
    """
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(24), folder, home / "log")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *(["--allow-root"] if AS_ROOT else [])]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    environ = _environ(home, server.token)
    if request.config.option.markexpr != "bench":
        environ["OMP_NUM_THREADS"] = "1"
    with _running(command, environ, server):
        yield server


def _environ(home: Path, token: str) -> dict[str, str]:
    """The environment of a server that reads and writes no settings but its own, and asks no news question."""
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
    }
    # The token goes this way because every user of a machine can read a process's arguments.
    here = {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1"}
    return {**os.environ, **{name: str(path) for name, path in folders.items()}, **here}


@contextlib.contextmanager
def _running(command: list[str], environ: dict[str, str], server: Lab, seconds: float = 600):
    """Start a Jupyter server, wait until it answers, and end it with all it started."""
    with server.log.open("w") as file:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        assert _answers(process, server, seconds), "JupyterLab did not start:\n" + server.log.read_text()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # it then ends its kernels, which have process groups of their own
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(process: subprocess.Popen, server: Lab, seconds: float) -> bool:
    """Ask until it answers, it has ended, or the time is up: it says that it runs a little before it listens."""
    request = urllib.request.Request(f"{server.url}/api/status", headers={"Authorization": f"token {server.token}"})
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status == 200
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    return False
