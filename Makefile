# Commands for contributors. Arguments for pytest: make test ARGS="-k store"
.PHONY: help test lint docs benchmark matrix prices

python := .venv/bin/python

help:       ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

test:       ## lint, types and the whole suite, as in CI; makes .venv first
	python3 tests $(ARGS)

lint: $(python)  ## fix what can be fixed, and report the rest
	$(python) -m ruff check --fix . && $(python) -m ruff format . && $(python) -m mypy

docs: $(python)  ## the site, into site/; a broken link is an error
	$(python) -m mkdocs build --strict

benchmark: $(python)  ## the benchmarks whose figures the docs quote
	$(python) -m tests.benchmarks $(ARGS)

matrix:     ## the suite on each Python here, with the oldest and newest dependencies; needs uv
	python3 -m tests.matrix $(ARGS)

$(python): pyproject.toml
	python3 -c "import sys; sys.path.insert(0, '.ci'); import bootstrap; bootstrap.python()"
	@touch $@

prices: $(python)  ## update prices, limits and tokenizers from the newest allowed litellm
	$(python) -m pip install --quiet --upgrade 'litellm>=1.90,!=1.107.0,<2' && $(python) -m ondine_core.providers.model_data
