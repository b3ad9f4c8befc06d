# Every target but `help` and `clean` sets up .venv first, which needs Python 3.11 or 3.12, git and make.
SUPPORTED := import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
BASE_PYTHON ?= $(shell for p in python3.11 python3 python3.12 python; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
# Relative, and never a script of .venv/bin by its path, since the path of this folder may hold spaces.
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/installed
TIMES := runs/stage_times.txt

.PHONY: help repository setup demo try recipe gallery seeds studies benchmarks gpu test test-web site deps lock reliability clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

# DVC needs git: to find the project, to ignore outputs, for experiments. Better to say so before a download of gigabytes.
repository:
	@found=$$(git rev-parse --git-dir 2>&1) || { echo "here: $$found; expected a git repository, which DVC needs" && \
		echo "fix: git init && git add --all && git commit --message start (or git clone instead of an archive)" && exit 5; } >&2

$(INSTALLED): requirements.lock pyproject.toml | repository
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 with venv not found; expected python3.11 on PATH" && exit 5; }
	"$(BASE_PYTHON)" -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PYTHON) -m pip install --quiet -r requirements.lock
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(INSTALLED)

setup: $(INSTALLED) ## create .venv with the locked versions

demo: $(INSTALLED) ## run the pipeline of params.yaml, then show metrics, pictures and times
	@mkdir -p runs && rm -f $(TIMES)
	LDM_TIMES=$(TIMES) $(PYTHON) -m dvc repro
	@echo && $(PYTHON) -m docs.gallery --show
	@echo && echo "Seconds per stage that ran:" && cat $(TIMES) 2>/dev/null || echo "none: all results were up to date"

try: $(INSTALLED) ## draw PROMPT="a red star" with a model that the DVC remote has, without a training
	@$(PYTHON) -m ldm.tools.trial $(if $(PROMPT),-- "$$PROMPT")

recipe: $(INSTALLED) ## write params.yaml from NAME=tiny or another recipe (FORCE=1: over edits); without NAME, list them
	@$(PYTHON) -m ldm.tools.cli recipe $(if $(NAME),"$(NAME)") $(if $(FORCE),--force)

gallery: $(INSTALLED) ## copy pictures and numbers of the last run into docs/
	$(PYTHON) -m docs.gallery

seeds: $(INSTALLED) ## repeat the default with other training seeds (hours); scores go to docs/seeds.json and docs/results.md
	$(PYTHON) -m studies.seeds

studies: $(INSTALLED) ## measure samplers, guidance and tasks on the default model (hours); results go to docs/studies and docs/studies.md
	$(PYTHON) -m dvc repro studies/dvc.yaml
	$(PYTHON) -m studies.page

benchmarks: $(INSTALLED) ## measure speed on a machine that does nothing else (12 minutes); results go to docs/benchmarks and docs/performance.md
	$(PYTHON) -m benchmarks

gpu: $(if $(filter .venv/%,$(PYTHON)),$(INSTALLED)) ## benchmarks, the default recipe and tests on a GPU (10 minutes), or the least of them on a CPU (2)
	$(PYTHON) -m benchmarks.gpu

test: $(INSTALLED) ## run all checks that a commit must pass
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

site: $(INSTALLED) ## build the pages of docs/ and the reference as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
	@echo "site/index.html; with its search: .venv/bin/python -m http.server --directory site"

test-web: $(INSTALLED) ## try the page of `ldm web` in a real browser, Debian's Chromium
	$(PYTHON) -m pytest tests/web

reliability: $(INSTALLED) ## try every promise in full (over an hour); counts go to docs/reliability.md
	$(PYTHON) -m tests.reliability

deps: $(INSTALLED) ## write each stage's code deps and params sections into dvc.yaml
	$(PYTHON) -m tests.import_closure

lock: $(INSTALLED) ## pin the versions that .venv holds now
	{ sed -n '/^#/p' requirements.lock; $(PYTHON) -m pip freeze --all --exclude-editable --exclude pip; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## remove runs/: saved states of unfinished runs, and encoded shards kept for the next time
	rm -rf runs
	@test -z "$$LDM_RUNS" || echo "not removed, since other copies may use it too: $$LDM_RUNS (LDM_RUNS)"
