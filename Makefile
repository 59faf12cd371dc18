# `make demo`: the comparison on digits; `make test`: the tests; `make test-docs`: the examples of the docstrings;
# `make test-claims`: the published claims, by training, and what takes long; `make docs`: the site, in docs/_build/html;
# `make notebooks`: executes all notebooks; each makes the environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo docs notebooks test test-docs test-claims test-fast lint env clean

env: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: env
	$(BIN)/python -m experiments.compare demo

docs: env
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --jobs 2 docs docs/_build/html

notebooks: env
	$(BIN)/jupyter execute --inplace --kernel_name=python3 notebooks/*.ipynb

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: env lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests

test-docs: env
	$(BIN)/pytest -n 2 --dist worksteal --doctest-modules regjax experiments/commands.py

test-claims: env
	$(BIN)/pytest -n 2 --dist worksteal -m slow tests

test-fast: env
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests/core tests/losses tests/gradients \
		tests/test_catalog.py tests/contracts/test_cards.py tests/contracts/test_memory.py

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache
