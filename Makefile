# make demo        train a tiny generator, synthesize under guidance, write a report
# make worth       measure what synthetic images are worth to a segmentor: make worth DATA=folder [OUT=folder] [WORTH_ARGS='...']
# make test        run all tests, as many at once as there are cores
# make test-fast   those that a developer waits for: not the slow ones, no training processes, no browser
# make docs        build the documentation: docs/_build/index.html
# make faults      break everything off, fill disks, damage files: the long form of tests/faults, with a table of what was survived
# make gpu-check   test and time mmsynth on a GPU, within ten minutes: make gpu-check [GPU_ARGS='--device cuda:1']
# Each first creates .venv with the exact versions of requirements/pins.txt; later calls start at once.

PYTHON ?= python3
PYTEST_ARGS ?=
# Options of the demo, passed on where set: make demo GENERATOR=todsynth DATA=folder SMOKE=1 SEED=0 OUT=folder DEMO_ARGS='...'
DEMO_ARGS ?=
WORTH_ARGS ?=
GPU_ARGS ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check --quiet
TORCH := $(shell sed -n 's/^torch==/torch==/p' requirements/pins.txt)
# The stamp's name changes, and with it the installation, when the pins, the build, the Python or the place changes.
INSTALLED := $(VENV)/.installed-$(shell { cat requirements/pins.txt setup.py pyproject.toml; \
	$(PYTHON) -V; pwd; } 2>&1 | cksum | cut -d ' ' -f 1)

demo_options := $(if $(GENERATOR),--generator '$(GENERATOR)') $(if $(DATA),--data '$(DATA)') $(if $(filter-out 0,$(SMOKE)),--smoke) \
	$(if $(SEED),--seeds $(SEED)) $(if $(OUT),--out-dir '$(OUT)')

.PHONY: help demo worth test test-fast docs faults gpu-check clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(INSTALLED)
	@$(VENV_PYTHON) projects/demo $(strip $(demo_options) $(DEMO_ARGS))

worth: $(INSTALLED)
	@$(if $(DATA),,$(error make worth needs DATA=folder with images/, masks/ and meta.json))
	@$(VENV_PYTHON) tools/analysis_tools/worth.py projects/demo/configs/worth.py --data '$(DATA)' \
	    --out-dir '$(or $(OUT),work_dirs/worth)' $(WORTH_ARGS)

# One file is one worker's, so that what its tests share is made once; PYTEST_ARGS='-n 0' runs in one process.
test: $(INSTALLED)
	@$(VENV_PYTHON) -m pytest tests -q -n auto --dist loadfile $(PYTEST_ARGS)

test-fast: $(INSTALLED)
	@$(VENV_PYTHON) -m pytest tests -q -n auto --dist loadfile -m 'not slow and not process and not browser' $(PYTEST_ARGS)

docs: $(INSTALLED)
	@$(VENV_PYTHON) -m sphinx -W --keep-going -q docs/en docs/_build
	@echo 'open docs/_build/index.html'

# As root also full and read-only disks, which are mounted for it.
faults: $(INSTALLED)
	@MMSYNTH_FAULTS=long $(VENV_PYTHON) -m pytest tests/faults -q -n auto --dist loadfile $(PYTEST_ARGS)

# With the torch of requirements/pins.txt; where that build sees no card, run the tool in an environment of your own.
gpu-check: $(INSTALLED)
	@$(VENV_PYTHON) tools/dev/gpu_check.py $(GPU_ARGS)

clean:
	rm -rf $(VENV) build docs/_build mmsynth.egg-info

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo 'mmsynth needs Python 3.10 or newer, and `$(PYTHON)` is not: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo '`$(PYTHON)` cannot create environments: apt-get install python3-venv' >&2; exit 1; }
	@echo 'installing into $(VENV) (first time only)'
	@$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	@echo 'installing $(TORCH), the largest part: 1 of 3 (first time only)'
	@$(PIP) install '$(TORCH)'
	@echo 'installing requirements/pins.txt: 2 of 3 (first time only)'
	@$(PIP) install -r requirements/pins.txt
	@echo 'installing mmsynth itself: 3 of 3 (first time only)'
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(VENV_PYTHON) -c 'import cv2' || { \
	    echo 'OpenCV misses a library of the system: apt-get install libgl1 libglib2.0-0 libxcb1' >&2; exit 1; }
	@$(VENV_PYTHON) -c 'import mmsynth'
	@touch $@
