# make demo: restore a noisy picture.  make test: run the tests.  make torture: kills, odd files and
# load, 20 minutes.  All make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test torture lint bench clean

demo: .venv/installed
	$(BIN)/dip-recon demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

torture: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step.py

# torch before everything that depends on it, so that the version pinned is the one that comes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.11 …" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv demo
