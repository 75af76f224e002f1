# `make demo` and `make test` do all their own set-up in .venv; nothing but CPython >= 3.11, pip and make is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-slow lint install clean

install: $(READY)

# torch and torchvision go in together and first, so that their operators match.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/python pipelines/image_to_image.py experiment=demo

test: $(READY) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
