# Everything a newcomer needs: `make demo` and `make test` do all their set-up, and repeat cheaply.
SHELL := bash
PYTHON ?= python3
# Another torch, in an environment of its own: make test TORCH=new. docs/torch.md says who needs it.
TORCH ?= default
ifeq ($(TORCH),new)
VENV := .venv-new
OVERRIDES := requirements/new.txt
# No image of PyTorch's is pinned for it: on this base torch comes from the lock.
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
else ifeq ($(TORCH),default)
VENV := .venv
else
$(error TORCH=$(TORCH) is neither default nor new)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FASHION := .cache/fashion-mnist
RUNS ?= runs
DEMO_RANKS ?= 2
# Overrides for a shorter or another demo: make demo DEMO_ARGS='max_duration=200ba'
DEMO_ARGS ?=
DEMO_PICTURES ?= 16384
# The image: make image ENGINE=podman IMAGE=registry.example.com/ahpa_scale:0.1.0 TARGET=prepare
ENGINE ?= docker
TARGET ?= train
IMAGE ?= ahpa_scale$(if $(filter prepare,$(TARGET)),-prepare):$(VERSION)$(if $(OVERRIDES),-torch-$(TORCH))
# Another base: make image BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm
BASE_IMAGE ?=
BUILD_FLAGS ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ahpa_scale/__init__.py)
# One thread a rank: ranks share the cores, and more threads than cores make each other wait.
export OMP_NUM_THREADS ?= 1

.PHONY: help venv demo test test-quick lint k8s image lock clean-runs
help:
	@echo 'make demo   train AHPA on the embedded demo, draw, export and report (about 6 minutes)'
	@echo 'make test   the test suite; make test-quick leaves out the modules of tests/slow.txt'
	@echo 'make lint   formatting, lint, types, import floors, manifests as written from yamls/'
	@echo 'make k8s    k8s/settings.env into the manifests'
	@echo 'make image  the container image of docker/'
	@echo 'make lock   the versions in it anew; UPGRADE=--upgrade takes the newest'
	@echo 'make venv   only the set-up of .venv; TORCH=new: of .venv-new, with today'\''s torch'

venv: $(STAMP)

$(STAMP): pyproject.toml $(OVERRIDES)
	bash tools/make_venv.sh $(PYTHON) $(VENV) $(OVERRIDES)
	touch $@

# Drawn again when the embedded VAE changes: the data belong to it.
$(RUNS)/demo-data/dataset.json: $(STAMP) ahpa_scale/assets/demo-vae/config.json
	$(BIN)/ahpa-scale prepare demo --size 32 --num-samples $(DEMO_PICTURES) \
	  --out $(RUNS)/demo-data --overwrite

demo: $(RUNS)/demo-data/dataset.json
	rm -rf $(RUNS)/demo
	$(BIN)/composer -n $(DEMO_RANKS) train.py yamls/demo-ahpa.yaml data.local=$(RUNS)/demo-data \
	  output_dir=$(RUNS)/demo checkpoint.save_folder=$(RUNS)/demo/checkpoints $(DEMO_ARGS)
	$(BIN)/ahpa-scale sample $(RUNS)/demo/checkpoints $(RUNS)/demo/pictures.png --preset fast --overwrite
	$(BIN)/ahpa-scale export $(RUNS)/demo/checkpoints $(RUNS)/demo/diffusers --format diffusers
	$(BIN)/ahpa-scale report $(RUNS)/demo --out $(RUNS)/demo/report.html

$(FASHION)/.unpacked:
	bash tools/fetch_fashion_mnist.sh $(FASHION)
	touch $@

# Three at a time on two cores: for half of the time a test waits, for ranks, stores or containers.
# make test TESTS=tests/test_ahpa.py runs a part.
test: $(STAMP) $(FASHION)/.unpacked
	bash tools/get_iproute2.sh
	bash tools/get_podman.sh
	bash tools/get_promtool.sh .cache/promtool
	bash tools/get_chromium.sh
	bash tools/get_azurite.sh .cache/azurite
	$(BIN)/python -m pytest -n 3 --dist worksteal $(TESTS)

test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal --quick

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	@$(PYTHON) tools/k8s_settings.py --check || { echo 'k8s/ is not what yamls/ and settings.env say: make k8s'; exit 1; }

# Standard library only: no set-up.
k8s:
	$(PYTHON) tools/k8s_settings.py

image:
	$(ENGINE) build $(BUILD_FLAGS) --file docker/Dockerfile --target $(TARGET) --tag $(IMAGE) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --build-arg TORCH=$(TORCH) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) .

# For Linux, x86_64 and ARM, Python 3.11 and later. Versions change only where they must.
lock: $(STAMP)
	for torch in default new; do \
	  $(BIN)/uv pip compile pyproject.toml --extra gcs --extra azure --extra hf --extra webdataset --extra heic --extra eval \
	    $$(test $$torch = default || echo --override requirements/$$torch.txt) \
	    --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --no-emit-index-url --quiet $(UPGRADE) \
	    --output-file requirements/$$torch.lock || exit; \
	done

clean-runs:
	rm -rf $(RUNS)
