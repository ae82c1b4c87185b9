# `make demo` and `make test` do everything on a fresh machine; both keep their environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

BUILT := src/osteomorph/report_assets/built/viewer.js

.PHONY: viewer demo test test-slow lint types format bench clean

demo: .venv/.core viewer
	$(BIN)/osteomorph demo --output demo --overwrite

test: .venv/.dev lint types viewer
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/.dev viewer
	$(BIN)/python -m pytest -m slow

# The interactive part of reports; without npm, or without its registry, reports have their pictures alone.
viewer:
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory $(BUILT) || echo "The viewer was not built."; \
	else echo "npm is not here: reports will have pictures alone."; fi

$(BUILT): viewer/package-lock.json viewer/build.mjs $(wildcard viewer/src/* viewer/licences/*)
	cd viewer && npm ci --no-audit --no-fund --silent && npm run --silent build

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
	rm -rf .venv demo build dist viewer/node_modules src/osteomorph/report_assets/built

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
