# make demo and make test need nothing but Python 3.11 or later: both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export LANGSMITH_TRACING ?= false

.PHONY: help setup demo test check live-ray bench clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed  ## create .venv with the pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup      ## watch a guarded answer on the bundled models, offline
	$(BIN)/bonmini-guard demo

test: setup      ## run all tests but the live ones
	$(BIN)/python -m pytest -m "not live"

check: setup     ## types, style and coverage
	$(BIN)/ruff check bonmini_guard tests benchmarks examples
	$(BIN)/ruff format --check bonmini_guard adapters calibration tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not live" --cov --cov-report=term:skip-covered --cov-fail-under=90

live-ray:        ## install Ray in its own environment and run what needs it
	$(PYTHON) -m venv .venv-live-ray
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt pip
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[local,calibration,parquet,ray]" pytest pytest-asyncio hypothesis
	RAY_USAGE_STATS_ENABLED=0 .venv-live-ray/bin/python -m pytest -m live tests/live/test_ray_data.py

bench: setup     ## the overhead benchmark
	$(BIN)/python -m benchmarks.overhead

clean:           ## remove what setup and the tests made
	rm -rf $(VENV) .venv-live-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage *.egg-info
