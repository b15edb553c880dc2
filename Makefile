# make demo: sets up, trains on data/cartpole-mixed, prints a table and draws a plot
# make test: sets up, then runs lint, type checks and the fast tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Ray's local clusters need no token, and no usage report is sent
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test lint test-fast test-slow docs bench format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first: if a CPU build is available, it then satisfies the other packages
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/python -m tuned_examples.demo

test: lint test-fast

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# two processes: each test file runs in one, with a Ray cluster of its own
test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

# the site is in results/site; a warning is an error
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# compares with transformers and with d3rlpy, which gets a separate environment
bench: setup
	$(BIN)/python -m benchmarks.speed.run
	$(BIN)/python -m benchmarks.speed.table results/bench.json --into docs/performance.md

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-d3rlpy build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache results
