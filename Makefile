# Everything by one command. Paths are relative on purpose: a clone may live in a folder with a space in its name.
PROFILE ?= laptop
PYTHON ?= python3
JOBS ?= $(if $(filter paper,$(PROFILE)),1,2)

CORES := $(shell getconf _NPROCESSORS_ONLN)
THREADS := $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))

PY := .venv/bin/python
READY := .venv/.installed
INSTALL := $(PY) -m pip install --quiet --no-compile --disable-pip-version-check --no-build-isolation --no-deps
STAMPS := .cache/stamps/$(PROFILE)
SETTINGS := lib/facetransport/companion/profiles/$(PROFILE).yaml
PROFILES := $(patsubst %.yaml,%,$(notdir $(wildcard lib/facetransport/companion/profiles/*.yaml)))
DATA := $(shell find lib -name weights -prune -o \( -name '*.csv' -o -name '*.toml' -o -name '*.tsv' \) -print)
LIBRARY := $(shell find lib -name '*.py') $(DATA) $(shell find lib/facetransport/companion/weights -name manifest.json 2>/dev/null)
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
EXECUTED := $(NOTEBOOKS:notebooks/%.ipynb=$(STAMPS)/%.stamp)
LONGEST := 06_id3pm 05_id3 07_sampling 03_diface 09_latent_directions 08_ablations 04_idiff_face
SLOWEST := $(filter $(EXECUTED),$(LONGEST:%=$(STAMPS)/%.stamp)) # begin first: none is left alone in the end

# Images of containers set it; every process, a dozen kernels and more, would then compile all its libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help figures smoke train test lab clean known-profile
.DELETE_ON_ERROR:

help:
	@echo "make figures   run every notebook: figures/$(PROFILE)/ gets pictures, tables, numbers and the executed notebooks"
	@echo "make smoke     the same at the smoke profile: minutes, numbers mean nothing"
	@echo "make train     train every network of the profile from nothing (days on 2 cores; resumes after a kill) and ship the weights"
	@echo "make test      unit tests, and every notebook at the smoke profile"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make clean     forget what was run and remove figures/smoke; the cache stays (.venv/bin/facetransport clean-cache)"
	@echo "PROFILE=laptop (default), smoke or paper; only what is stale is run again, -B runs all; PYTHON=python3 makes .venv"
	@echo "JOBS=2 (default; paper: 1) notebooks run side by side and share the cores; cells that measure all cores run alone"

# The verdict compares with what was committed, which is set aside before notebooks write over it.
figures: known-profile $(READY)
	@if $(MAKE) -q $(EXECUTED) >/dev/null 2>&1; then echo "figures/$(PROFILE) is up to date: nothing to do"; \
	else $(PY) -m facetransport verdict --keep --profile $(PROFILE) && $(MAKE) --no-print-directory -j $(JOBS) $(SLOWEST) $(EXECUTED); fi
	@$(PY) -m facetransport verdict --profile $(PROFILE)

smoke:
	@$(MAKE) --no-print-directory figures PROFILE=smoke

# One rule for each notebook. The stamp is the target, not what is committed under figures/: git keeps no times.
$(STAMPS)/%.stamp: notebooks/%.ipynb $(LIBRARY) $(SETTINGS) requirements.lock | $(READY)
	@mkdir -p $(STAMPS)
	OMP_NUM_THREADS=$(THREADS) $(PY) -m facetransport execute $< --profile $(PROFILE)
	@touch $@

# The scorecard and the start page read what the others measured.
LAST := $(STAMPS)/00_start_here.stamp $(STAMPS)/11_scorecard.stamp
$(LAST): $(filter-out $(LAST),$(EXECUTED))

train: known-profile $(READY)
	$(PY) -m facetransport train --profile $(PROFILE) $(if $(filter laptop,$(PROFILE)),--ship)

test: $(READY)
	FACETRANSPORT_PROFILE=smoke OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --nbval-lax tests notebooks

lab: $(READY)
	$(PY) -m jupyterlab notebooks

clean:
	rm -rf .cache/stamps figures/smoke .hypothesis .pytest_cache .mypy_cache .ruff_cache

# The lock names everything (pip check says so), hence --no-deps, and four at a time: downloads wait, unpacking works.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "facetransport needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(INSTALL) "$$(grep '^setuptools==' requirements.lock)"
	grep -v '^#' requirements.lock | xargs -P 4 -n 24 $(INSTALL)
	$(INSTALL) -e .
	@$(PY) -m pip --disable-pip-version-check check >/dev/null || { $(PY) -m pip check; exit 1; }
	@touch $@

known-profile:
	@test -f $(SETTINGS) || { echo "PROFILE=$(PROFILE): expected one of: $(PROFILES)"; exit 1; }

environment.yml: requirements.lock
	@{ sed -n '/^#/p' $<; printf 'name: facetransport\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; \
	sed -n '/^[^#]/s/^/      - /p' $<; } > $@
