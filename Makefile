# make help lists what there is.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
ifeq ($(strip $(PYTHON)),)
$(error The book needs Python 3.11 or newer. Install it, or name it: make PYTHON=...)
endif

# Two environments: a small one for the site (no torch), the whole one for the rest.
SITE := .venv-book
FULL := .venv
SITE_PACKAGES := jupyter-book sphinx-mathjax-offline sphinx-revealjs sphinxext-opengraph \
	pybtex pillow fonttools brotli
PORT ?= 8000
JOBS ?= 2

.DELETE_ON_ERROR:
.PHONY: help book serve pdf links test lint check notebooks renumber weights repository editions benchmark clean

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(SITE)/.made: requirements.txt Makefile
	@echo "Making $(SITE), once, with $(PYTHON) ..."
	@$(PYTHON) -m venv --clear $(SITE)
	@$(SITE)/bin/python -m pip install --disable-pip-version-check -qq \
		-c requirements.txt $(SITE_PACKAGES)
	@touch $@

$(FULL)/.made: requirements.txt
	@echo "Making $(FULL), once, with $(PYTHON): some minutes, some gigabytes ..."
	@$(PYTHON) -m venv --clear $(FULL)
	@$(FULL)/bin/python -m pip install --disable-pip-version-check -qq \
		-r requirements.txt
	@$(FULL)/bin/python -m pip install --disable-pip-version-check -qq \
		--no-deps --no-build-isolation -e .
	@touch $@

book: $(SITE)/.made ## the site, from the stored outputs (no torch, no MNIST, no run)
	@$(SITE)/bin/python -m tools.site

serve: book ## the site on localhost (PORT=8000)
	@echo "http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(SITE)/bin/python -m http.server $(PORT) --bind 127.0.0.1 \
		--directory _build/html >/dev/null 2>&1

pdf: book $(FULL)/.made ## the whole book as one PDF, printed by Chromium
	@$(FULL)/bin/python -m tools.pdf

links: $(SITE)/.made ## ask every address outside the site whether it still answers
	@$(SITE)/bin/python -m tools.links

test: $(FULL)/.made lint ## lint, every notebook in fast mode, unit tests, strict site and its tests
	$(FULL)/bin/python -m pytest -q -n $(JOBS) book
	@$(FULL)/bin/python -m tools.site
	$(FULL)/bin/python -m pytest -q -n $(JOBS) aevb tests

lint: $(FULL)/.made ## ruff, over scripts and notebooks
	$(FULL)/bin/ruff check .
	$(FULL)/bin/ruff format --check .

check: $(FULL)/.made ## the rules of the chapters, one line for each complaint (CHAPTER=07)
	@$(FULL)/bin/python -m tools.rules $(CHAPTER)

notebooks: $(FULL)/.made ## run the chapters at full speed, store outputs and stamps (CHAPTER=07)
	$(FULL)/bin/python -m tools.run_notebooks $(FLAGS) $(CHAPTER)

renumber: $(FULL)/.made ## number sections, equations, figures, boxes; the mentions follow
	@$(FULL)/bin/python -m tools.renumber
	@$(FULL)/bin/python -m tools.results
	@$(FULL)/bin/python -m tools.speed
	@$(FULL)/bin/python -m tools.teaching
	@$(FULL)/bin/python -m tools.pictures
	@$(FULL)/bin/python -m tools.references

weights: $(FULL)/.made ## train a model again by its recipe, score it, pack it (NAME=vae)
	$(FULL)/bin/python -m tools.pretrain $(FLAGS) $(NAME)

repository: $(SITE)/.made ## point everything at another home: URL=https://github.com/you/fork
	@$(SITE)/bin/python -m tools.repository $(URL) $(BRANCH)

editions: $(SITE)/.made ## notebooks for a class: student (no solutions) and instructor (all open)
	@$(SITE)/bin/python -m tools.editions

benchmark: $(FULL)/.made ## speed, beside what people use instead, and the pages that show it
	@for script in benchmarks/[a-z]*.py; do \
		echo "$$script"; PYTHONPATH=.:$$PYTHONPATH $(FULL)/bin/python $$script || exit 1; done
	@$(FULL)/bin/python -m tools.speed
	@$(FULL)/bin/python -m tools.teaching

clean: ## remove what was built (the environments stay)
	rm -rf _build .pytest_cache .ruff_cache
