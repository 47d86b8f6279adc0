# The environment is made on first use and again when a pyproject.toml changes.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH ?= latency

.PHONY: help dev test test-fast test-sql lint format bench shape

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml python/rowcast_client/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e python/rowcast_client -e '.[test]'
	touch $@

dev: $(INSTALLED) ## Run PostgreSQL and a bridge on this machine
	$(BIN)/rowcast dev

test: $(INSTALLED) ## Run all tests
	$(BIN)/python -m pytest

test-fast: $(INSTALLED) ## Run the tests that start no bridge and build no package
	$(BIN)/python -m pytest -n 2 -m "not acceptance and not stress and not slow"

test-sql: $(INSTALLED) ## Run the tests of the database: sql, migrations, policies
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/sql tests/migrations tests/policies

lint: $(INSTALLED) ## Check style, types, imports between folders, and SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	$(BIN)/sqlfluff lint --processes 1 sql migrations policies

format: $(INSTALLED) ## Format Python, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## Run one benchmark: make bench BENCH=publish
	$(BIN)/python tests/bench/$(BENCH).py

shape: $(INSTALLED) ## Count what CONTRIBUTING.md sets goals for
	@echo "modules directly in python/rowcast:  $$(ls python/rowcast/*.py | wc -l)"
	@echo "files in sql/:                       $$(ls sql/*.sql | wc -l)"
	@echo "lines of the first page:             $$(wc -l < README.md)"
	@echo "subjects over 72 of the last 50:     $$(git log -50 --format=%s | awk 'length > 72' | wc -l)"
	@echo "whoever, somebody, nobody, everybody: $$(git grep -oiwE 'whoever|somebody|nobody|everybody' -- '*.md' '*.py' '*.sql' '*.js' ':!tests/migrations/snapshots' | wc -l)"
	@PYTHONPATH=python $(BIN)/lint-imports --no-cache | tail -n 1
	@$(BIN)/python -m pytest -q tests/style/test_python.py | tail -n 1
