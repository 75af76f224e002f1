# `make demo` and `make test` do all their own set-up in .venv; nothing but CPython >= 3.11, pip and make is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := pip --quiet --disable-pip-version-check
LOCK   := build/lock
# What belongs to torch is left out of constraints.txt: machines with a GPU need another torch, and it brings its own.
TORCHS := torch|torchvision|triton|nvidia-.*|cuda-.*|sympy|mpmath|networkx|setuptools

.PHONY: demo starter test test-slow bench lint install lock clean

install: $(READY)

# torch and torchvision go in together and first, so that their operators match; all else in the versions that were tested.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) install torch torchvision
	$(BIN)/$(PIP) install --constraint constraints.txt --editable '.[test]'
	touch $@

# Renews constraints.txt: the newest versions that pyproject.toml allows, from an environment of their own. Run `make test` after it.
lock:
	rm -rf $(LOCK)
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/$(PIP) install torch torchvision
	$(LOCK)/bin/$(PIP) install '.[test]'
	echo '# The versions that were tested, written by `make lock`; without torch and what it brings.' > $(LOCK)/constraints.txt
	$(LOCK)/bin/$(PIP) freeze --exclude img2img | grep -E '^[A-Za-z0-9._-]+==' | grep -viE '^($(TORCHS))==' >> $(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt constraints.txt
	rm -rf $(LOCK)

demo: $(READY)
	$(BIN)/python pipelines/image_to_image.py experiment=demo

# Trains the bundle that comes with img2img, for hours, from the images in DATA; after an interruption the same command goes on.
starter: $(READY)
	$(if $(DATA),,$(error make starter DATA=FOLDER: expected the folder with photos/, ccp/, camvid/, styles/ and weights/))
	$(BIN)/python pipelines/image_to_image.py experiment=starter data_root=$(DATA) launcher=ray
	$(BIN)/img2img share save runs/starter runs/starter/starter --overwrite --license other --notes bundles/terms.md
	rm -rf bundles/starter   # no command changes what comes with img2img
	mv runs/starter/starter bundles/starter

test: $(READY) lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The short forms of all benchmarks, under ten minutes; it fails when a ratio is worse than its goal, see benchmarks/common.py.
bench: $(READY)
	$(BIN)/python benchmarks/common.py

# The documentation as a site in build/docs; a warning, such as a link that leads nowhere, is an error.
.PHONY: docs
docs: $(READY)
	$(BIN)/$(PIP) install --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --strict --clean

clean:
	rm -rf $(VENV) build *.egg-info
