# make demo: restore a noisy picture.  make test: run the tests.  make torture: kills, odd files and
# load, 20 minutes.  All make .venv first.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0

.PHONY: demo test torture lint bench clean

demo: .venv/installed
	$(BIN)/dip-recon demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

torture: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/suite.py

# Nothing is installed whose hash is not in requirements.txt, but for torch, whose builds differ from
# machine to machine: of it the version is pinned, and all else that it needs is there by then.
.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.11 …" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv demo
