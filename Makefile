# make demo: install, draw a data set, train, evaluate, print where the results are.  make test: install, run the tests.
PYTHON ?= $(shell for v in python3.11 python3.12 python3.13 python3; do \
	command -v $$v >/dev/null 2>&1 && $$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$v; break; }; done)
VENV ?= .venv
# Pins the version of every package; set it empty to install the newest of each.
CONSTRAINTS ?= constraints.txt
EXTRA ?= dev
# A requirements file that is installed last, without dependencies.
AFTERWARDS ?=
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-floor test-newest test-cuda lint format clean

help:
	@echo "make demo    install, draw a small data set, train, evaluate (about 5 minutes on 2 cores, plus installation)"
	@echo "make test    install and run the test suite"
	@echo "make test-floor, make test-newest   the same with the lowest supported versions, or the newest"
	@echo "make lint    ruff and mypy"
	@echo "make format  fix and format the code with ruff"
	@echo "make clean   remove the environments and the demo's output"

$(INSTALLED): requirements.txt requirements-dev.txt $(CONSTRAINTS) $(AFTERWARDS) setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, but none is on PATH; install it, or name one: make PYTHON=/path/to/python."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade --upgrade-strategy eager) --editable '.[$(EXTRA)]'
	$(if $(AFTERWARDS),$(BIN)/python -m pip install --quiet --no-deps --requirement $(AFTERWARDS))
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m scripts.demo --output demo_output

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Each Python gets its own environment: PYTHON=python3.12 make test-newest
test-floor:
	$(MAKE) test VENV=.venv-floor-$(notdir $(PYTHON)) CONSTRAINTS=constraints-floor.txt \
		EXTRA=dev-without-milvus AFTERWARDS=requirements-floor.txt

test-newest:
	rm -f .venv-newest-$(notdir $(PYTHON))/.installed
	$(MAKE) test VENV=.venv-newest-$(notdir $(PYTHON)) CONSTRAINTS=

# On a machine with a CUDA device; VENV=... takes an environment whose torch knows it.
test-cuda: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/cuda --device cuda

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-floor-* .venv-newest-* demo_output
