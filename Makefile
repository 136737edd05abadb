# Every target sets up what it needs, once: .venv, system libraries where they are missing, pinned versions.
# Afterwards nothing is fetched again until pyproject.toml or constraints.txt change.

BIN := .venv/bin
# Build tools come pinned as well, so the build of this package is not isolated.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= demo

.PHONY: help demo test lint docs benchmarks constraints clean

help:
	@echo "make demo        learn from strokes on a real image, segment it, write $(OUT)/"
	@echo "make test        run all tests, windows in a virtual screen"
	@echo "make lint        ruff and mypy"
	@echo "make docs        build site/ and check its links"
	@echo "make benchmarks  how to measure speed and accuracy"
	@echo "make constraints write the installed versions into constraints.txt"
	@echo "make clean       remove what the other targets made"

demo: .venv/ready-all
	$(BIN)/cellbrush demo --out $(OUT)

# One process per core, each with one thread: most tests wait for a window rather than for a processor.
test: .venv/ready-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/ready-docs
	$(BIN)/mkdocs build --strict --site-dir site

benchmarks: .venv/ready-benchmarks
	@echo "Each of these prints a table; docs/benchmarks.md says what it means:"
	@for script in $$(grep -l "^def main" benchmarks/*.py); do echo "  $(BIN)/python $$script"; done

# From an environment that holds exactly what the extras bring; a local tag such as +cpu is no version of its own.
constraints: .venv/ready-dev .venv/ready-docs .venv/ready-benchmarks
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/ready-system: .ci/setup
	.ci/setup
	@touch $@

.venv/ready-build: .venv/ready-system constraints.txt
	$(INSTALL) hatchling editables
	@touch $@

.venv/ready-%: .venv/ready-build pyproject.toml constraints.txt
	$(INSTALL) --no-build-isolation --editable ".[all,$*]"
	@touch $@
