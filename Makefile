# make demo    install, then simulate the bundled world's held-out recording    (about a minute after installing)
# make test    install with every extra, then run the tests
# make check   format, lint, types and layers
#
# PYTHON=python3.12        the interpreter that creates .venv
# TORCH_INDEX=URL          install PyTorch from this index first (a CPU-only or another CUDA build)
# CONSTRAINTS=             do not pin PyTorch
# WORKERS=2                processes that share the tests

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TORCH_INDEX ?=
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test check format clean

demo: .venv/.core
	$(BIN)/kinema demo

test: .venv/.all
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: .venv/.all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stamps make a second call start at once; a change of dependencies installs again.
$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing kinema into .venv (PyTorch alone is a download of 200 MB, with CUDA of 2 GB and more) ..."
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) --editable .
	@touch $@

.venv/.all: pyproject.toml $(CONSTRAINTS) .venv/.core
	@echo "Installing the extras and the tools of development ..."
	$(PIP) --editable ".[all]"
	@touch $@

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
