# Two commands do everything: `make demo` and `make test`. Each makes its virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast coverage lint docs docs-serve package bench clean

# One process for each core, each with one thread; a file's tests stay together, for the runs they share.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadfile

demo: $(VENV)/.installed
	$(BIN)/dbpkit demo --out runs/demo

test: $(VENV)/.installed-dev
	$(PYTEST)

# Branch coverage follows every line of Python, which makes files that read and draw four times as slow.
coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

# What to run between two edits: without what takes more than a few seconds.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow and not browser and not long'

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The documentation site, in site/; a link that leads nowhere fails.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Wheel and sdist into dist/, and the wheel tried on every Python that is installed.
package: $(VENV)/.installed-dev
	mkdir -p dist
	$(BIN)/python .ci/package.py dist

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build dist site src/*.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
