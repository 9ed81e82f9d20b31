# make demo   an environment, then the whole pipeline on the pictures that params.yaml names
# make test   lint, types, import contracts and tests
# make fix    mend what ruff can mend, and format
# make dist   the wheel and the sdist, in dist/
# make lock   requirements.lock anew, from pyproject.toml (with uv)
# make test-minimum   the tests with the lowest versions that pyproject.toml admits, in .venv-minimum (with uv)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DVC_NO_ANALYTICS := 1
# Every stage is a process that imports torch, which is slow without byte code. Python writes what is used.
export PYTHONDONTWRITEBYTECODE :=
# As many tests at once as there are cores; `make test PYTEST=` runs them one after the other.
PYTEST := --numprocesses auto --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test fix dist lock test-minimum clean

demo: $(VENV)/installed
	$(BIN)/dvc repro
	@$(BIN)/headstart leaderboard

test: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PYTEST)

fix: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: Python 3.11, 3.12 or 3.13 is needed; choose one with make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/installed-test: requirements-test.lock $(VENV)/installed
	$(PIP) --require-hashes -r requirements-test.lock
	touch $@

dist: $(VENV)/installed
	$(BIN)/hatchling build

test-minimum:
	uv venv --quiet --clear --python $(PYTHON) $(VENV)-minimum
	uv pip install --quiet --python $(VENV)-minimum --resolution lowest-direct -e '.[train,test]'
	$(VENV)-minimum/bin/pytest $(PYTEST)

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --extra train --extra build pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --extra test --constraint requirements.lock pyproject.toml -o requirements-test.lock

clean:
	rm -rf $(VENV) $(VENV)-minimum dist .mypy_cache .ruff_cache .pytest_cache
