# Everything here sets itself up: Python 3.11 or newer, pip and make are enough.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON ?= python3
RUN := .venv/bin/

.PHONY: demo serve test bench docs figures release lint types contract format clean

demo: .venv/ready  ## segment the pictures in examples/ with the model that ships inside the package
	$(RUN)unimask predict examples --task panoptic --output output/demo

serve: .venv/ready  ## a page to look at results: http://127.0.0.1:8000
	$(RUN)unimask serve

test: .venv/ready  ## the whole test suite, in two processes
	$(RUN)pytest -n 2

bench: .venv/ready  ## this library beside transformers; tables and numbers go into benchmarks/results
	$(RUN)python -m benchmarks

docs: .venv/ready  ## the documentation site, into site/; a broken link or reference is an error
	$(UV) sync --locked --all-extras --group docs --quiet --compile-bytecode --no-python-downloads --python $(PYTHON)
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet

figures: .venv/ready  ## the figures of the site, drawn from the models
	$(RUN)python docs/make_figures.py

lint: .venv/ready
	$(RUN)ruff check .
	$(RUN)ruff format --check .

types: .venv/ready
	$(RUN)mypy

contract: .venv/ready  ## a file imports only from layers below its own
	$(RUN)lint-imports --no-cache

format: .venv/ready
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

clean:
	rm -rf .venv .uv output .pytest_cache .mypy_cache .ruff_cache

.venv/ready: pyproject.toml uv.lock | $(UV)
	$(UV) sync --locked --all-extras --quiet --compile-bytecode --no-python-downloads --python $(PYTHON)
	touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.9"
