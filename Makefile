# make run: the main job. make test: the whole suite. Every target makes .venv first if it is missing.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
UV := build/uv/bin/uv
# Each worker of pytest keeps to one thread.
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
# Held back from `make lock`: what the shipped weights and reports were made with. Raise them by hand, with the tests.
HELD := torch==2.14.1 torchvision==0.29.1

.PHONY: run test test-quick test-lowest lint format types docs lock

run: .venv/installed
	$(BIN)/python -m bench run digits --steps 1 2 4 8

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-quick: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m 'not slow'

# The quick tests with the oldest versions that pyproject.toml allows of every direct dependency.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST) -m 'not slow'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/site

# New versions of everything but HELD, for every platform.
lock: $(UV)
	echo $(HELD) | tr ' ' '\n' > build/held.txt
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest --upgrade \
		--constraint build/held.txt --no-annotate --custom-compile-command 'make lock' --quiet -o constraints.txt

# An old pip resolves the dependencies very slowly, hence the upgrade first. The import shows at once if torch
# and torchvision are builds that do not belong together.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'import torchvision'
	touch $@

.venv-lowest/installed: pyproject.toml $(UV)
	$(UV) pip compile pyproject.toml --extra test --resolution lowest-direct --python $(PYTHON) --quiet \
		--custom-compile-command 'make test-lowest' -o build/lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest/bin/python --requirement build/lowest.txt
	$(UV) pip install --quiet --python .venv-lowest/bin/python --no-deps --editable .
	touch $@

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install -qq uv
