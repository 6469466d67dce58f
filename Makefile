# Everything a newcomer needs: `make demo` and `make test` do all their set-up, and repeat cheaply.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FASHION := .cache/fashion-mnist
RUNS ?= runs
DEMO_RANKS ?= 2
# Overrides for a shorter or another demo: make demo DEMO_ARGS='max_duration=200ba'
DEMO_ARGS ?=
DEMO_PICTURES ?= 16384
# One thread a rank: ranks share the cores, and more threads than cores make each other wait.
export OMP_NUM_THREADS ?= 1

.PHONY: help venv demo test lint k8s clean-runs
help:
	@echo 'make demo   train AHPA on the embedded demo, draw samples and the router (about 6 minutes)'
	@echo 'make test   the test suite'
	@echo 'make lint   formatting, lint, types, import floors'
	@echo 'make k8s    k8s/settings.env into the manifests'
	@echo 'make venv   only the set-up of .venv'

venv: $(STAMP)

$(STAMP): pyproject.toml
	bash tools/make_venv.sh $(PYTHON) $(VENV)
	touch $@

# Drawn again when the embedded VAE changes: the data belong to it.
$(RUNS)/demo-data/dataset.json: $(STAMP) ahpa_scale/assets/demo-vae/config.json
	$(BIN)/ahpa-scale prepare demo --size 32 --num-samples $(DEMO_PICTURES) \
	  --out $(RUNS)/demo-data --overwrite

demo: $(RUNS)/demo-data/dataset.json
	rm -rf $(RUNS)/demo
	$(BIN)/composer -n $(DEMO_RANKS) train.py yamls/demo-ahpa.yaml data.local=$(RUNS)/demo-data \
	  output_dir=$(RUNS)/demo checkpoint.save_folder=$(RUNS)/demo/checkpoints $(DEMO_ARGS)

$(FASHION)/.unpacked:
	bash tools/fetch_fashion_mnist.sh $(FASHION)
	touch $@

test: $(STAMP) $(FASHION)/.unpacked
	bash tools/get_iproute2.sh
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Standard library only: no set-up.
k8s:
	$(PYTHON) tools/k8s_settings.py

clean-runs:
	rm -rf $(RUNS)
