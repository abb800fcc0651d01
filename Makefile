# `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
FAMILY ?= sdxl
VENV := .venv
BIN := $(VENV)/bin
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: demo test test-all serve lint format lock clean

# Tiny products gain nothing from a second thread, and lose much once anything else runs.
demo: export OMP_NUM_THREADS ?= 1
demo: $(VENV)/installed  ## Train a LoRA on the package's own images and tiny base: FAMILY=sdxl|sd35|flux
	$(BIN)/python -m flows.train_lora configs/demo-$(FAMILY).yaml

test: $(VENV)/installed-dev  ## All but the slow ones, two at a time; needs no GPU
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist worksteal --durations 25

test-all: $(VENV)/installed-dev  ## Kills at random moments and whole services, too
	$(BIN)/python -m pytest

serve: $(VENV)/installed  ## Prefect's server, deployments and a worker, until Ctrl-C
	$(BIN)/eridiff serve

lint: $(VENV)/installed-dev  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed-dev  ## Rewrite in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## Pin what pip finds for pyproject.toml now
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet torch==$(shell sed -n 's/^torch==//p' requirements.lock) .
	$(VENV)-lock/bin/pip freeze --exclude eridiff | sed 's/+cpu$$//' > requirements.lock
	$(VENV)-lock/bin/pip install --quiet '.[dev]'
	$(VENV)-lock/bin/pip freeze --exclude eridiff | sed 's/+cpu$$//' \
		| grep --invert-match --line-regexp --fixed-strings --file requirements.lock > requirements-dev.lock
	rm -rf $(VENV)-lock build

clean:  ## Remove the environment and caches; data/ and runs/ stay
	rm -rf $(VENV) .prefect .pytest_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python requirements.lock pyproject.toml
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	$(BIN)/pip install --quiet --requirement requirements-dev.lock
	touch $@
