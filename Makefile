# `make` lists the targets. Each target sets up .venv first if needed and reports progress on standard error.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
# One more than the number of cores: tests of processes that are killed and restarted mostly wait.
TEST_WORKERS ?= 3
BENCH ?=
DATA ?=
SAMPLE ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
UV_VERSION := 0.13.9
PACKAGES := --constraint constraints.txt --editable '.[dev]'
SOURCES := fraud_assets fraud_assets_tests benchmarks setup.py

.PHONY: help setup demo lint types test-unit test test-cluster proof bench dev docs format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# uv installs in a fraction of pip's time. It does not read pip's settings, so pip installs if uv fails.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up .venv (once, about a minute; two or three if no package is in uv's cache) …" >&2
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or set PYTHON=…" >&2; exit 1; }
	@[ -x $(BIN)/pip ] && $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) >&2 || true
	@UV_SYSTEM_CERTS=1 VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv pip install --quiet $(PACKAGES) >&2 || { \
		echo "uv failed; installing with pip, which takes a few minutes …" >&2; \
		$(BIN)/pip install --quiet --disable-pip-version-check $(PACKAGES) >&2; }
	@touch $@

setup: $(INSTALLED) ## Make .venv/, the state folder and .env
	@$(BIN)/fraud-assets setup

demo: setup ## Stream to scored predictions in a fresh folder (DATA="file …" or SAMPLE=sparkov through the drop folder)
	@$(BIN)/fraud-assets demo $(foreach file,$(DATA),--data '$(file)') $(if $(SAMPLE),--sample '$(SAMPLE)')

lint: setup ## Format and lint
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)

types: setup ## Types and layers
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-unit: setup ## The fast tests, in seconds
	@$(BIN)/pytest -q -n $(TEST_WORKERS) fraud_assets_tests/unit

test: lint types ## Format, lint, types, layers, unit and integration tests
	@$(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadgroup

test-cluster: setup ## Spark, object stores, kills and the handbook; CI runs them after `make test`
	@$(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadgroup fraud_assets_tests/cluster

proof: setup ## The long proofs: kills, clusters, big data
	@$(BIN)/pytest -v --timeout 1800 fraud_assets_tests/proof

bench: setup ## The benchmarks, each as ratios (BENCH=name for one)
	@shopt -s nullglob; for file in benchmarks/$(or $(BENCH),[a-z]*).py; do $(BIN)/python "$$file"; done

dev: setup ## Live traffic, landing, web UI and daemon; Ctrl-C ends all
	@$(BIN)/fraud-assets dev

docs: setup ## The documentation as a site in site/, with strict links
	@$(BIN)/mkdocs build --strict --quiet

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

clean: ## Remove .venv/ and caches; the state in FRAUD_HOME stays
	@rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
