# make run: the main job. make test: the test suite. Both make .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint

run: .venv/installed
	$(BIN)/python -m bench run digits --steps 1 2 4 8

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An old pip resolves the dependencies very slowly, hence the upgrade first. The import shows at once if torch
# and torchvision are builds that do not belong together.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	$(BIN)/python -c 'import torchvision'
	touch $@
