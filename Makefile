# faceapp: `make` prints what there is. Everything lives in .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
DEVELOPS := $(VENV)/.develops
CHECKOV := $(VENV)/checkov
CHECKS := $(CHECKOV)/.checks
# The files name every package, with the hashes of its files, so nothing is resolved; and what builds a package that comes
# as source is pinned and installed first, so no build fetches tools of its own.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517

# Fixtures of a module are made once, so its tests stay together.
IN_PARALLEL = -n $(or $(JOBS),2) --dist loadfile
# Two cores are busy with four: half of the time a test waits for SQS, or for a process to start.
FOUR_IN_PARALLEL = -n $(or $(JOBS),4) --dist loadfile
WHOLE_SYSTEM := tests/system/test_local_up.py::test_from_a_folder_of_photos_to_names_and_back_after_a_restart

.DEFAULT_GOAL := help
.PHONY: help up samples check test test-all test-faults fuzz bench bench-scaler accuracy clean
.DELETE_ON_ERROR:

help: ## print this
	@echo "make up         run everything on this machine (PEOPLE=DIR enrols DIR/<name>/<photo>.jpg; COURSE=ID: docs/course.md)"
	@echo "make samples    fetch the sample photos again, where they went missing"
	@echo "make check      format, lint, types, import directions, security, templates"
	@echo "make test       whether it works here, in a few minutes (ARGS='-k name' for some, JOBS=2 at a time)"
	@echo "make test-all   all tests but the slow ones of faults"
	@echo "make test-faults  every fault: parts killed, hung, cut off, under load (FAULT_TABLE=FILE writes the table)"
	@echo "make fuzz       broken photos, files, messages and requests, EXAMPLES=20000 of each kind"
	@echo "make bench      the benchmarks' tables"
	@echo "make bench-scaler  the scaling policies beside others' and a lower bound (ARGS='--seed 1' for the same again)"
	@echo "make accuracy   recognition rates on labelled photos (FACES=DIR)"
	@echo "make clean      remove .venv and every cache"

up: $(RUNS)
	@$(BIN)/faceapp up $(if $(PEOPLE),--people '$(PEOPLE)') $(if $(COURSE),--course '$(COURSE)')

samples: $(RUNS)
	@$(BIN)/python tools/samples.py

check: $(DEVELOPS) $(CHECKS)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --configfile pyproject.toml --quiet --recursive celery_sqs faceapp tools
	$(BIN)/python tools/audit.py requirements.in requirements-dev.in
	$(BIN)/cfn-lint deploy/*.yaml
	$(CHECKOV)/bin/python -m checkov.main --framework cloudformation --directory deploy --compact --quiet --skip-download

test: $(DEVELOPS)
	$(BIN)/pytest tests/unit tests/integration $(WHOLE_SYSTEM) -m 'not slow' $(FOUR_IN_PARALLEL) $(ARGS)

test-all: $(DEVELOPS)
	$(BIN)/pytest -m 'not slow_fault' $(IN_PARALLEL) $(ARGS)

test-faults: $(DEVELOPS)
	$(BIN)/pytest tests/faults $(ARGS)

fuzz: $(DEVELOPS)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/pytest -m fuzz --timeout 0 --hypothesis-show-statistics $(ARGS)

bench: $(DEVELOPS)
	$(BIN)/python -m benchmarks

bench-scaler: $(DEVELOPS)
	$(BIN)/python -m benchmarks.scaler $(ARGS)

accuracy: $(DEVELOPS)
	@test -n '$(FACES)' || { echo "Say where the labelled photos are: make accuracy FACES=DIR" >&2; exit 2; }
	$(BIN)/python -m benchmarks.accuracy --faces '$(FACES)'

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is as old as the last installation, so that a changed requirement installs again and nothing else does.
# A torch that is in $(VENV) already, such as another build of the same version, stays: pip takes it as it is.
$(RUNS): requirements-build.txt requirements.txt requirements-cuda.txt pyproject.toml | $(BIN)/pip
	$(BIN)/python $(INSTALL) -r requirements-build.txt
	$(BIN)/python tools/install_torch.py
	$(BIN)/python $(INSTALL) -r requirements.txt
	$(BIN)/python $(INSTALL) --editable .
	@$(BIN)/python tools/samples.py || echo "Everything else is installed: 'make samples' tries this again."
	@touch $@

$(DEVELOPS): requirements-dev.txt $(RUNS)
	$(BIN)/python $(INSTALL) -r requirements-dev.txt
	@touch $@

# It is large and pins much of what we pin to something else, so it has an environment of its own.
$(CHECKS): requirements-build.txt requirements-checkov.txt | $(BIN)/pip
	$(BIN)/python -m venv $(CHECKOV)
	$(CHECKOV)/bin/python $(INSTALL) -r requirements-build.txt
	$(CHECKOV)/bin/python $(INSTALL) -r requirements-checkov.txt
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "faceapp needs Python 3.11 or newer, and $$($(PYTHON) --version) is older: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt install python3-venv)." >&2; \
		exit 2; }
	@echo "Making $(VENV) and installing into it: this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
