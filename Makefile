# Every target does its own set-up in .venv. Another interpreter: make PYTHON=python3.12 install

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(BIN)/uv

# Byte-compiling at installation would double its time; Python compiles what it imports, once.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-dev install-torch install-newest quickstart test lint format bench lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/runtime.stamp  ## install the package and what it needs to run

install-dev: $(VENV)/dev.stamp  ## install the tools for test and lint as well

install-torch: $(VENV)/runtime.stamp  ## install PyTorch and MONAI, for the parity tests and PyTorch checkpoints
	$(PIP_INSTALL) torch==2.13.0 monai==1.6.1

install-newest: | $(BIN)/pip  ## install the newest versions that pyproject.toml allows, in place of the locked ones
	$(PIP_INSTALL) --upgrade --upgrade-strategy=eager --editable='.[dev,torch,monai]'
	@touch $(VENV)/runtime.stamp $(VENV)/dev.stamp

# Huge pages spare XLA on CPU most page faults of its fresh buffers: 96 instead of 67 images/s here. Other systems ignore it.
quickstart bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: $(VENV)/runtime.stamp  ## train, evaluate and predict on the sample data (QUICKSTART_FLAGS=...)
	$(BIN)/python tools/quickstart.py $(QUICKSTART_FLAGS)

test: $(VENV)/dev.stamp  ## run the tests on up to four cores (PYTEST_FLAGS=...)
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(VENV)/dev.stamp  ## check style, format, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/basedpyright

format: $(VENV)/dev.stamp  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install-torch  ## time the networks (BENCH_FLAGS=...)
	$(BIN)/python tools/benchmark.py $(BENCH_FLAGS)

LOCK := $(UV) pip compile --quiet --universal --python-version=3.11 --fork-strategy=requires-python \
	--generate-hashes --no-annotate --custom-compile-command="make lock" $(LOCK_FLAGS) pyproject.toml

lock: | $(UV)  ## resolve both lock files from pyproject.toml (LOCK_FLAGS=--upgrade for the newest versions)
	$(LOCK) --output-file=requirements.lock
	$(LOCK) --constraint=requirements.lock --extra=dev --output-file=requirements-dev.lock

clean:  ## remove caches and builds, and keep .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "medvlsm-jax needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/pip
	$(PIP_INSTALL) uv

$(VENV)/runtime.stamp: requirements.lock pyproject.toml | $(BIN)/pip
	$(PIP_INSTALL) --requirement=requirements.lock
	$(PIP_INSTALL) --no-deps --editable=.
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/runtime.stamp
	$(PIP_INSTALL) --requirement=requirements-dev.lock
	@touch $@
