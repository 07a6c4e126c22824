# Everything happens in .venv, installed from the hashed lock; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

# Advisories that do not concern this project, as --ignore-vuln ID, each with its reason in a comment here. There are none.
EXCEPTIONS :=

.PHONY: help demo test test-long test-slurm check audit bench format lock clean

help:
	@echo "make demo     install, then fine-tune a small Whisper on spoken Japanese (3 minutes on 2 cores)"
	@echo "make test     install, then run the tests"
	@echo "make test-long  install, then run the tests that take minutes (the demo, sweeps, searches)"
	@echo "make test-slurm  install, then run the tests that bring up a Slurm here (as root, with slurm-wlm and munge)"
	@echo "make chaos    install, then break runs in every way that is known, and count (hours, as root for small disks)"
	@echo "make check    install, then ruff, mypy and the fast tests"
	@echo "make audit    ask for known vulnerabilities of the locked packages (needs the network)"
	@echo "make bench    install, then time training and evaluation against the stock recipe (an hour on 2 cores)"
	@echo "make format   let ruff format the code"
	@echo "make lock     resolve the dependencies anew into requirements.lock (needs uv)"
	@echo "make clean    remove .venv"

demo: $(STAMP)
	@echo "make: fine-tuning a Whisper from random weights on the demo corpus"
	@$(BIN)/kikitori train experiment=demo

test: $(STAMP)
	@echo "make: running the tests"
	@$(BIN)/python -m pytest -q -m "not long and not wandb_server and not slurm"

test-long: $(STAMP)
	@echo "make: running the tests that take minutes"
	@$(BIN)/python -m pytest -q -s -m long

test-slurm: $(STAMP)
	@echo "make: running the tests on a Slurm of two virtual nodes"
	@$(BIN)/python -m pytest -q -s -m slurm

chaos: $(STAMP)
	@echo "make: breaking runs; docs/reliability.md gets the table"
	@$(BIN)/python tests/chaos/run.py --write

check: $(STAMP)
	@echo "make: ruff, mypy and the fast tests"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/python -m pytest -q -m "not slow and not long and not wandb_server and not slurm"

# In an environment of its own. Strict, because a package that cannot be asked about would pass for a sound one.
audit: .venv/audit/installed
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock $(EXCEPTIONS) \
		|| (echo "make: not sound, or not known: read above. Nothing is known where no advisories can be reached"; exit 1)

.venv/audit/installed: audit.lock
	@echo "make: installing pip-audit into .venv/audit"
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r audit.lock
	@touch $@

bench: $(STAMP)
	@$(BIN)/python benchmarks/speed.py

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock:
	@echo "make: resolving pyproject.toml into requirements.lock"
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra dev pyproject.toml --output-file requirements.lock
	@echo "pip-audit>=2.10,<3" | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate - --output-file audit.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kikitori needs Python 3.11 or later; say make PYTHON=python3.12")'
	@echo "make: installing the locked packages into .venv (5 GB, a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv
