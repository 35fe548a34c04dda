# make demo: install into .venv, run the built-in capture through all stages, say where the results are.
# make test: install into the same .venv and run the tests.
# Both need Python 3.11 or 3.12 and nothing else; another one: make demo PYTHON=/path/to/python3.12
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=

.PHONY: help demo test install install-test clean

help:
	@sed -n 's/^# //p' Makefile | head -3

demo: install
	$(BIN)/snakemake --cores all
	@$(BIN)/instant-nk summary results/demo

test: install-test
	$(BIN)/python -m pytest

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml requirements.txt
	@.ci/make_venv $(VENV) $(PYTHON)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf results
