# Works with GNU make 3.81 (macOS) and later. Everything is installed into .venv, at the versions in constraints.txt.

VENV := .venv
PY := $(VENV)/bin/python
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && echo "$$p" && break; done)
ARGS ?=
EXTRAS ?= test

.PHONY: help lab test nbval bench soak clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make lab     install into $(VENV) (once, some minutes) and open JupyterLab on notebooks/; for JupyterLab:"
	@echo "             make lab ARGS=\"--no-browser --port 8899\""
	@echo "make test    ruff, unit tests, browser tests, and every notebook run and compared with its saved outputs"
	@echo "             make test EXTRAS=test,clients   inside Lightning, Hugging Face, ... too (installs 270 MB more)"
	@echo "make nbval   only the notebooks"
	@echo "make bench   the measurements in tests/bench"
	@echo "make soak    what is rare, looked for long: kills, full disks, flipped bits, random calls, half an hour of play, notebooks"
	@echo "make clean   remove caches and build output ($(VENV) stays; delete that folder to start over)"
	@echo "PYTHON=...   the Python to make $(VENV) with (3.11 to 3.14)"

# --- installation ---------------------------------------------------------------------------------------------------
# A stamp says what was installed and when, so a second `make lab` asks nobody anything. It holds the folder's name:
# in a folder that was moved, the editable install points to the old place and is made again.

READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
INSTALL := $(PY) -m pip install --disable-pip-version-check --constraint constraints.txt
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings

ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif

$(PY):
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "gsm_lab needs Python 3.11, 3.12, 3.13 or 3.14: install one, or name one with 'make lab PYTHON=...'" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "That Python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }

$(READY): pyproject.toml constraints.txt gsm_lab/_version.py | $(PY)
	@echo "Installing gsm_lab into $(VENV): once, some minutes."
	$(INSTALL) --editable '.[fast]'
# JupyterLab asks at its first start whether to fetch news, and asks a registry for updates: neither here.
	@mkdir -p $(LAB_SETTINGS)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
		> $(LAB_SETTINGS)/overrides.json
	@echo "$(CURDIR)" > $@

ifneq ($(shell cat $(READY_TEST) 2>/dev/null),$(EXTRAS))
$(READY_TEST): FORCE
endif

$(READY_TEST): $(READY)
	$(INSTALL) --quiet --editable '.[$(EXTRAS)]'
	@echo "$(EXTRAS)" > $@

# --- use ------------------------------------------------------------------------------------------------------------
# On loopback only, with Jupyter's own random token, and with the kernels and commands of $(VENV). Our notebooks are
# trusted, so that what they have saved is shown alive, and a playground that still runs is there after a reload.

lab: $(READY)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" JUPYTER_PREFER_ENV_PATH=1 $(PY) -m gsm_lab.notebook.lab \
		--ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks \
		--LabApp.default_url=/lab/tree/00_start_here.ipynb $(shell [ "$$(id -u)" -ne 0 ] || echo --allow-root) $(ARGS)

# --- checks ---------------------------------------------------------------------------------------------------------

# How many processes, and which does what: tests/conftest.py.
SIDE_BY_SIDE := $(PY) -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

test: $(READY_TEST)
	$(PY) -m tests.browser --install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(SIDE_BY_SIDE) -m "not bench and not soak"

nbval: $(READY_TEST)
	$(SIDE_BY_SIDE) -m notebooks tests/test_notebooks.py

bench: $(READY_TEST)
	$(PY) -m pytest tests/bench -m bench -s

soak: $(READY_TEST)
	$(PY) -m tests.browser --install
	$(PY) -m pytest tests/soak -m soak -s

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage
	find gsm_lab tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
