# make demo: install, draw a data set, train, evaluate, show where the results lie.  make test: install, run the suite.
PYTHON ?= $(shell for v in python3.11 python3.12 python3.13 python3; do \
	command -v $$v >/dev/null 2>&1 && $$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { command -v $$v; break; }; done)
VENV ?= .venv
# The exact versions to install; empty takes the newest of everything.
CONSTRAINTS ?= constraints.txt
EXTRA ?= dev
# A file of what is installed last, whatever it requires.
AFTERWARDS ?=
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-floor test-newest lint format clean

help:
	@echo "make demo    install, draw a small data set, train, evaluate (about 5 minutes after installation, 2 cores)"
	@echo "make test    install and run the test suite"
	@echo "make test-floor, make test-newest   the same with the lowest versions that are allowed, with the newest of all"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the files"
	@echo "make clean   remove the environment and what the demo wrote"

$(INSTALLED): requirements.txt requirements-dev.txt $(CONSTRAINTS) $(AFTERWARDS) setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found on PATH."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade --upgrade-strategy eager) --editable '.[$(EXTRA)]'
	$(if $(AFTERWARDS),$(BIN)/python -m pip install --quiet --no-deps --requirement $(AFTERWARDS))
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m scripts.demo --output demo_output

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Environments of their own, one for each Python: PYTHON=python3.12 make test-newest
test-floor:
	$(MAKE) test VENV=.venv-floor-$(notdir $(PYTHON)) CONSTRAINTS=constraints-floor.txt \
		EXTRA=dev-without-milvus AFTERWARDS=requirements-floor.txt

test-newest:
	rm -f .venv-newest-$(notdir $(PYTHON))/.installed
	$(MAKE) test VENV=.venv-newest-$(notdir $(PYTHON)) CONSTRAINTS=

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-floor-* .venv-newest-* demo_output
