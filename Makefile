# One command each; every target sets up what it needs. pip and venv only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/main

.DEFAULT_GOAL := help
.PHONY: run test test-slow check bench backbones test-gpu help

# torch first and by itself: its pinned version has a CPU build; a resolver that is free to choose takes gigabytes of CUDA
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(VENV)/installed  ## the main job on built-in parts: train in stages, merge, report
	$(BIN)/python train.py --backbone tiny-llm --output $(OUTPUT) --resume

test: $(VENV)/installed  ## the tests (what .ci/run calls)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: $(VENV)/installed  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed  ## every benchmark: benchmarks/results.json and benchmarks/README.md
	$(BIN)/python -m benchmarks

backbones: $(VENV)/installed  ## the tables of docs/backbones.md: every backbone, every column
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.backbones.table

test-gpu: $(VENV)/installed  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
