# Everything a newcomer needs: `make demo` and `make test` do all their set-up, and repeat cheaply.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FASHION := .cache/fashion-mnist
DEMO_RANKS ?= 2
# One thread a rank: ranks share the cores, and more threads than cores make each other wait.
export OMP_NUM_THREADS ?= 1

.PHONY: help venv demo test lint clean-runs
help:
	@echo 'make demo   train AHPA on the embedded demo, draw samples and the router (about 10 minutes)'
	@echo 'make test   the test suite'
	@echo 'make lint   formatting, lint, types, import floors'
	@echo 'make venv   only the set-up of .venv'

venv: $(STAMP)

$(STAMP): pyproject.toml
	bash tools/make_venv.sh $(PYTHON) $(VENV)
	touch $@

runs/demo-data/dataset.json: $(STAMP)
	$(BIN)/ahpa-scale prepare demo --out runs/demo-data --overwrite

demo: $(STAMP) runs/demo-data/dataset.json
	rm -rf runs/demo
	$(BIN)/composer -n $(DEMO_RANKS) train.py yamls/demo-ahpa.yaml

$(FASHION)/.unpacked:
	bash tools/fetch_fashion_mnist.sh $(FASHION)
	touch $@

test: $(STAMP) $(FASHION)/.unpacked
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean-runs:
	rm -rf runs
