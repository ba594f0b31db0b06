# Every target works on a fresh machine: it makes the virtual environment, installs what it needs, and runs.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=
PIP    ?= -qq --disable-pip-version-check

BIN = $(VENV)/bin
# One process runs all tests of a file, which share what they have quantized and lowered.
# One thread per process: JOBS test processes do not fight over the cores, and small networks are faster so.
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help venv demo test test-gpu lint types doctest notebooks docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

venv: $(VENV)/.installed-test $(VENV)/.installed-notebooks $(VENV)/.installed-docs $(VENV)/.installed-dev  ## install everything for development

demo: $(VENV)/.installed-demo  ## train, decide, lower and check a small network; results in demo-output
	$(ONE_THREAD) $(BIN)/probq demo --out demo-output $(ARGS)

test: $(VENV)/.installed-test  ## run the tests (JOBS=2 processes; ARGS="-k word" for some of them)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-gpu: $(VENV)/.installed-test  ## run the tests of devices on a GPU, where there is one
	$(ONE_THREAD) $(BIN)/python -m pytest -n 0 -rs tests/gpu $(ARGS)

doctest: $(VENV)/.installed-test  ## run the examples in the docstrings
	$(ONE_THREAD) $(BIN)/python -m pytest --doctest-modules probq $(ARGS)

lint: $(VENV)/.installed-dev  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test $(VENV)/.installed-dev  ## check the types
	$(BIN)/mypy

notebooks: $(VENV)/.installed-notebooks  ## execute every notebook (ARGS=--write stores the outputs)
	$(ONE_THREAD) $(BIN)/python notebooks/run.py $(ARGS)

docs: $(VENV)/.installed-docs  ## build the manual into build/docs/html; a warning is an error
	$(ONE_THREAD) $(BIN)/python -m sphinx -E -a -W --keep-going -q -d build/docs/doctrees $(ARGS) docs build/docs/html
	@echo "the manual: build/docs/html/index.html"

wheel: $(VENV)/.installed-dev  ## build the wheel into dist, install it in a new environment and try it there
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python tests/check_wheel.py dist constraints.txt

clean:  ## remove everything made here except the virtual environment
	rm -rf build dist demo-output docs/notebooks/*.ipynb *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find probq tests notebooks benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "probq needs Python 3.11 or newer, and there is no '$(PYTHON)' here. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "probq needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamp of an extra: installed since the last change of what is to be installed.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing probq[$*] into $(VENV); the first time takes a minute or two"
	$(BIN)/python -m pip install $(PIP) -c constraints.txt -e '.[$*]'
	@touch $@
