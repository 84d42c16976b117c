# Both commands set themselves up: a fresh clone and Python 3.11 are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint clean

run: $(VENV)/.run-ready  ## set up, then the whole pipeline on both built-in models
	$(BIN)/sae-forge run

test: lint  ## set up, then lint, types, import contract and the whole suite
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(VENV)/.run-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch --editable ".[plot]"
	touch $@

$(VENV)/.test-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch --editable ".[plot,test,dev]"
	touch $@ $(VENV)/.run-ready

clean:
	rm -rf $(VENV)
