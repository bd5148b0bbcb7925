# Every target works on a bare Python 3.11: the first one run makes .venv and installs into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test test-parts test-whole check bench nightly proto clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with everything (uv if it can be had, else pip)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@{ $(PIP) uv && echo "installing with uv" \
	    && $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,demo]'; } \
	  || { echo "installing with pip"; $(PIP) -e '.[dev,demo]'; }
	@touch $(STAMP)

demo: $(STAMP) ## Five daemons train, share, split, crash, heal and agree
	$(BIN)/crdt-merge-node demo

test: $(STAMP) ## All tests, the fast ones first, in two lanes side by side
	@echo "Two lanes, which speak when they are done: in about six minutes on two cores."
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-parts test-whole

test-parts: $(STAMP)
	$(PYTEST) -q tests/unit tests/property tests/bad_inputs

test-whole: $(STAMP)
	$(PYTEST) -q tests/integration tests/simulation tests/e2e

check: $(STAMP) ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Ratios against a floor or a rival, measured in one run (PART="names" picks some)
	$(BIN)/python -m tests.benchmarks $(PART)

nightly: $(STAMP) ## Full counts, in resumable stages (STAGE=name picks one)
	$(BIN)/python -m tests.nightly $(STAGE)

proto: ## Regenerate the control API's code from its .proto files
	PYTHON=$(PYTHON) proto/generate.sh

clean: ## Remove what the other targets made
	rm -rf $(VENV) .venv-codegen dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .nightly
