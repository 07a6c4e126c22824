# Everything happens in .venv, installed from the hashed lock; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PYTEST := $(BIN)/python -m pytest -q
# Without the tests that take minutes or need a server.
DEFAULT := not long and not wandb_server and not slurm and not gpu
# Two workers, because many tests start processes. All tests of a file run on one worker, because they share fixtures.
# Files run in the order of their names, so that short ones come last.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

# Advisories that do not affect this project, as --ignore-vuln ID, each with its reason in a comment here. There are none.
EXCEPTIONS :=

.PHONY: help demo test test-long test-gpu test-slurm chaos lint check audit bench format lock clean

help:  ## list the targets; times are those of 2 cores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## fine-tune a small Whisper on spoken Japanese (3 minutes)
	@echo "make: fine-tuning a Whisper from random weights on the demo corpus"
	@$(BIN)/kikitori train experiment=demo

test: $(STAMP)  ## run the tests (5 minutes)
	@echo "make: running the tests"
	@$(PYTEST) $(WORKERS) -m "$(DEFAULT)"

test-long: $(STAMP)  ## run the tests that take minutes (the demo, sweeps, searches)
	@echo "make: running the tests that take minutes"
	@$(PYTEST) -s -m long

test-gpu: $(STAMP)  ## run the tests on an NVIDIA GPU (10 minutes; TABLE=FILE)
	@echo "make: running the tests on a GPU"
	@$(PYTEST) -m gpu $(if $(TABLE),--gpu-table $(TABLE)) tests/gpu

test-slurm: $(STAMP)  ## run the tests on a local Slurm (root, slurm-wlm and munge)
	@echo "make: running the tests on a Slurm with two virtual nodes"
	@$(PYTEST) -s -m slurm

chaos: $(STAMP)  ## interrupt and damage runs, count what recovers (hours, root)
	@echo "make: interrupting and damaging runs; the table goes to docs/reliability.md"
	@$(BIN)/python tests/chaos/run.py --write

lint: $(STAMP)  ## run ruff, its format check and mypy
	@echo "make: ruff and mypy"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check: lint  ## run lint and the fast tests, before a commit
	@echo "make: running the fast tests"
	@$(PYTEST) $(WORKERS) -m "$(DEFAULT) and not slow"

# In a separate environment. Strict: otherwise a package that no advisory service knows would pass.
audit: .venv/audit/installed  ## look up known vulnerabilities of the packages (online)
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock $(EXCEPTIONS) \
		|| (echo "make: vulnerable, or not checked because no advisories could be reached: see above"; exit 1)

.venv/audit/installed: audit.lock
	@echo "make: installing pip-audit into .venv/audit"
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r audit.lock
	@touch $@

bench: $(STAMP)  ## time training and evaluation against the stock recipe (1 hour)
	@$(BIN)/python benchmarks/speed.py

format: $(STAMP)  ## format the code with ruff
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock:  ## resolve the dependencies into requirements.lock (needs uv)
	@echo "make: resolving pyproject.toml into requirements.lock"
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra dev pyproject.toml --output-file requirements.lock
	@echo "pip-audit>=2.10,<3" | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate - --output-file audit.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kikitori needs Python 3.11 or later; run make PYTHON=python3.12")'
	@echo "make: installing the locked packages into .venv (6 GB, a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:  ## remove .venv
	rm -rf .venv
