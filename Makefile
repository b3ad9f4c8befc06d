# `make demo` and `make test` do all the set-up; they need Python 3.11 and make. The other targets are one-liners on top of it.
SUPPORTED := import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
BASE_PYTHON ?= $(shell for p in python3.11 python3 python3.12 python; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
INSTALLED := .venv/installed
TIMES := runs/stage_times.txt

.PHONY: help setup demo gallery seeds test deps lock reliability clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 with venv not found; expected python3.11 on PATH" && exit 5; }
	$(BASE_PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(INSTALLED)

setup: $(INSTALLED) ## .venv with the locked versions, and no more

demo: $(INSTALLED) ## run the pipeline of params.yaml, then show metrics, pictures and times
	@mkdir -p runs && rm -f $(TIMES)
	LDM_TIMES=$(TIMES) $(BIN)/dvc repro
	@echo && $(BIN)/python docs/gallery.py --show
	@echo && echo "Seconds per stage that ran:" && cat $(TIMES) 2>/dev/null || echo "none: all results were up to date"

gallery: $(INSTALLED) ## bring pictures and numbers of the last run into README.md and docs/
	$(BIN)/python docs/gallery.py

seeds: $(INSTALLED) ## the default once more with other training seeds, hours; scores go to docs/seeds.json and README.md
	$(BIN)/python -m studies.seeds

test: $(INSTALLED) ## everything that must hold before a commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest

reliability: $(INSTALLED) ## every promise tried in full, more than an hour; counts go to docs/reliability.md
	$(BIN)/python -m tests.reliability

deps: $(INSTALLED) ## write each stage's code deps and params sections into dvc.yaml
	$(BIN)/python -m tests.import_closure

lock: $(INSTALLED) ## pin what .venv holds now
	{ sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --all --exclude-editable --exclude pip; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove runs/: saved states of unfinished runs, and encoded shards kept for the next time
	rm -rf runs
