# make train   installs what is missing, starts a local Ray head when none runs, trains configs/quickstart.yaml
# make test    installs what is missing, runs the unit tests and one small run of each real part; with ARGS, those tests
# make test-all   installs gem-llm and openenv too and runs everything, as CI does
# make openenv   installs openenv into an environment of its own, for configs/openenv.yaml and its tests
# Overrides: make train ARGS="plan.mode=uniform run.steps=40"   CONFIG=configs/gsm8k.yaml   PYTHON=python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
CONFIG ?= configs/quickstart.yaml
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
# The GPU build of vLLM pins other versions of what it shares with the CPU build, so the tested versions hold for cpu alone.
CONSTRAINT := $(if $(filter cpu,$(EXTRA)),--constraint constraints.txt)
PIP := $(BIN)/python -m pip install --quiet $(CONSTRAINT)

# On Linux PyPI has torch for CUDA only; its CPU builds are taken from where pip looks anyway, else from PyTorch's own index.
ifeq ($(EXTRA)-$(shell uname),cpu-Linux)
TORCH = $(PIP) torch==2.13.0+cpu 2>/dev/null || $(PIP) --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu || $(PIP) torch==2.13.0
else
TORCH = $(PIP) torch==2.13.0
endif

# gem-llm 0.1.0 pins versions that kray excludes, and works with kray's; its own limit on Python excludes 3.12.1 and later.
GEM := $(VENV)/.installed-gem
# A Python of its own for OpenEnv servers: openenv needs an mcp below 2, vLLM one from 2 on.
OPENENV := .venv-openenv

.PHONY: train check test test-all lint stop install openenv clean
.DEFAULT_GOAL := train

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing kray into $(VENV) with the $(EXTRA) build of vLLM: some minutes, once"
	@$(PYTHON) -c 'import sys; sys.exit("kray needs Python 3.11 or 3.12, not " + sys.version.split()[0]) if not (3, 11) <= sys.version_info < (3, 13) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(TORCH)
	@$(PIP) --editable '.[$(EXTRA),dev]'
	@$(BIN)/python -c 'import torchvision' >/dev/null 2>&1 || { \
	  echo "removing torchvision, torchaudio and torchcodec: vLLM pulls builds of them that do not fit this torch and break transformers; text models do not need them"; \
	  $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; }
	@touch $@

$(GEM): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python gem-llm==0.1.0
	@$(BIN)/python -c 'import gem.envs'
	@touch $@

openenv: $(OPENENV)/.installed

# With the Python of $(VENV), where there is one.
$(OPENENV)/.installed: constraints-openenv.txt
	@echo "installing openenv into $(OPENENV): a minute, once"
	@test -x $(OPENENV)/bin/python || $(or $(wildcard $(BIN)/python),$(PYTHON)) -m venv $(OPENENV)
	@$(OPENENV)/bin/python -m pip install --quiet --upgrade pip
	@$(OPENENV)/bin/python -m pip install --quiet --constraint constraints-openenv.txt 'openenv>=0.10,<0.11'
	@$(OPENENV)/bin/python -c 'import openenv.core.env_server'
	@touch $@

train: $(INSTALLED)
	@$(BIN)/python jobs/submit.py jobs/train.py --config $(CONFIG) $(ARGS)

check: $(INSTALLED)
	@$(BIN)/python jobs/train.py --config $(CONFIG) --check $(ARGS)

# Unit tests need neither Ray nor each other, so they share the cores; the others would be slow beside one another.
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	@$(if $(ARGS),$(PYTEST) $(ARGS),$(PYTEST) -m unit $(PARALLEL) && $(PYTEST) -m smoke)

# Installs what some tests would else be skipped without. With ARGS one half may have no test, which is pytest's exit code 5.
test-all: $(INSTALLED) $(GEM) $(OPENENV)/.installed
	@$(PYTEST) -m unit $(PARALLEL) $(ARGS); unit=$$?; $(PYTEST) -m "not unit" $(ARGS); rest=$$?; \
	for code in $$unit $$rest; do case $$code in 0|5) ;; *) exit $$code;; esac; done; test "$$unit $$rest" != "5 5"

lint: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy kray jobs

stop:
	@file="$${XDG_CACHE_HOME:-$$HOME/.cache}/kray/ray-head.pid"; \
	if [ -f "$$file" ] && ps -o args= -p "$$(cat "$$file")" | grep -q "ray start --head" && kill "$$(cat "$$file")"; then echo "Ray head stopped"; else echo "no Ray head of kray's runs"; fi; \
	rm -f "$$file"

clean:
	rm -rf $(VENV) $(OPENENV) build *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
