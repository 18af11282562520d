# Every target does its own set-up: a virtual environment in .venv, pinned packages, compiled kernels.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
COMPILE := $(BIN)/python -c "from refbench import Mask, pair_counts; pair_counts([Mask.full(9, 9)], [Mask.full(9, 9)])"

.PHONY: help install demo test lint fuzz bench train-tiny clean

help:
	@echo "make demo        build the embedded datasets, run five segmenters, rank them (under a minute after install)"
	@echo "make test        the whole test suite"
	@echo "make lint        ruff and mypy"
	@echo "make fuzz        24,000 mutated files over the dataset readers, 20,000 over AP (fifteen minutes)"
	@echo "make bench       speed and memory, printed as ratios against named peers"
	@echo "make train-tiny  train the network of the adapter tiny again (under 20 minutes on two cores)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e '.[models]'
	$(COMPILE)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[models,hub,ap,dev]'
	@touch $@

install: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/refbench demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_readers.py 24000
	$(BIN)/python tests/fuzz/fuzz_scores.py 20000

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

train-tiny: $(VENV)/.dev
	$(BIN)/refbench build scenes
	$(BIN)/python -m refbench.adapters.tiny.train

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
