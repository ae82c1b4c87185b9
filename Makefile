# `make demo` and `make test` do everything on a fresh machine; both keep their environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-slow lint types format bench clean

demo: .venv/.core
	$(BIN)/osteomorph demo --output demo --overwrite

test: .venv/.dev lint types
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.bench
	$(BIN)/python benchmarks/terms.py

clean:
	rm -rf .venv demo build dist

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit("osteomorph needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.core: .venv/.python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/.dev: .venv/.core
	$(PIP) --editable ".[elastix,test,dev,bench]"
	touch $@

.venv/.bench: .venv/.core
	$(PIP) --editable ".[bench]"
	touch $@
