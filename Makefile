# Sets up a checkout and checks it.
#   make install      .venv with everything; quick when it is already there
#   make quickstart   the quick start of the README
#   make test         every test that this machine can run
#   make test-docs    the commands of docs/getting_started.md, on small data
#   make docs         the API reference, output/api/index.html
#   make lint         ruff check and ruff format --check
# Variables: PYTHON, the interpreter that makes the environment; VENV, its folder; PYTEST_ARGS, arguments of pytest
# (by default two worker processes); DOCS, the folder of the API reference.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2
DOCS ?= output/api

VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.lift_det_installed

.PHONY: help install quickstart test test-docs docs lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,9s/^# *//p' Makefile

install: $(INSTALLED)

$(VENV_PYTHON):
	$(PYTHON) -m venv $(VENV)

# The stamp is written last, so an interrupted installation is repeated. pip keeps what already fits in an existing
# environment.
$(INSTALLED): setup.py pyproject.toml constraints.txt tools/install_detectron2.py lift_det/requirements_check.py | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install -c constraints.txt -e '.[dev]'
	$(VENV_PYTHON) tools/install_detectron2.py
	touch $@

quickstart: install
	$(VENV_PYTHON) tools/quickstart.py

test: install
	$(VENV_PYTHON) -m pytest -q $(PYTEST_ARGS)

test-docs: install
	$(VENV_PYTHON) -m pytest -q -m docs_long tests/docs

# lift_det and its packages, without the modules inside them
docs: install
	$(VENV_PYTHON) -m pdoc --docformat google --template-directory docs/api --output-directory $(DOCS) \
		lift_det lift_det.checkpoint lift_det.layers '!lift_det[.][a-z_]+[.]'

lint: install
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

format: install
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
