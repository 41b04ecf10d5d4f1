# The two commands: `make demo` runs the main job, `make test` runs the tests. Both set everything up first.

PYTHON ?= python3
# An open range takes the newest CUDA build, gigabytes that a machine without a GPU does not need.
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready
# In the order of collection: tests/conftest.py puts the files that take longest first.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export DO_NOT_TRACK = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export MLFLOW_DISABLE_TELEMETRY = true
export DVC_NO_ANALYTICS = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test test-pages chromium test-postgres postgresql lint types architectures constraints wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Make .venv and install the tested set of versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version); prefixline needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@command -v git >/dev/null || { echo "git is not installed: apt-get install git" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,demo,postgres]'
	@touch $@

demo: $(READY) ## Build the data, train, judge, register, and again after the data changed
	HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py

test: $(READY) ## Run the tests (no network, no GPU, no browser needed), a file at a time on each of up to 4 cores
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m 'not browser and not postgres' $(PARALLEL)

test-pages: $(READY) chromium ## Open the pages in Chromium
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m browser

chromium: ## Install Chromium where there is none (Debian, Ubuntu; as root)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

test-postgres: $(READY) postgresql ## Run the ledger's tests on PostgreSQL
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m postgres

postgresql: ## Install PostgreSQL where there is none (Debian, Ubuntu; as root)
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql; }

lint: $(READY) ## Style, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## Types
	$(BIN)/mypy

architectures: $(READY) ## Renew docs/architectures.md from what the tests find
	HF_HUB_OFFLINE=1 $(BIN)/python -W ignore -m tests.prefix.architecture_page

constraints: ## Renew constraints.txt from the ranges in pyproject.toml
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet '$(TORCH)' --editable '.[dev,demo,postgres]'
	{ echo "# The tested set. Renew with: make constraints"; \
	  build/constraints/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

wheel: $(READY) ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## Remove what was built, not the workspace's state
	rm -rf build dist .venv *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
