# Everything here sets itself up: Python 3.11 or newer, pip and make are enough.
PYTHON ?= $(if $(filter Windows_NT,$(OS)),python,python3)
BIN := $(if $(filter Windows_NT,$(OS)),Scripts,bin)  # Windows keeps programs elsewhere
RUN := .venv/$(strip $(BIN))/
OWN_UV := .uv/$(strip $(BIN))/uv$(if $(filter Windows_NT,$(OS)),.exe)
UV := $(shell command -v uv 2>/dev/null || echo $(OWN_UV))

.PHONY: demo serve test bench docs figures release lint types contract format clean

demo: .venv/ready  ## segment nuclei and a street with the two models that ship inside the package
	$(RUN)unimask predict examples/nuclei_1.png --task panoptic --output output/demo
	$(RUN)unimask predict examples/street/cambridge.jpg --weights street --task semantic --output output/demo

serve: .venv/ready  ## a page to look at results: http://127.0.0.1:8000
	$(RUN)unimask serve

test: .venv/ready  ## the whole test suite, in two processes
	$(RUN)pytest -n 2

bench: .venv/ready  ## this library beside transformers; tables and numbers go into benchmarks/results
	$(RUN)python -m benchmarks

docs: .venv/ready  ## the documentation site, into site/; a broken link or reference is an error
	$(UV) sync --locked --all-extras --no-extra fiftyone --group docs --quiet --compile-bytecode --no-python-downloads --python $(PYTHON)
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet

figures: .venv/ready  ## the figures of the site, drawn from the models
	$(RUN)python docs/make_figures.py

release: .venv/ready  ## wheel and sdist in dist/; the wheel is installed in an empty environment and predicts
	rm -rf dist output/release
	$(UV) build --quiet --out-dir dist
	$(UV) venv --quiet --clear --no-python-downloads --python $(PYTHON) output/release/venv
	$(UV) pip install --quiet --python output/release/venv dist/*.whl
	cd output/release && for bin in venv/bin venv/Scripts; do \
	    if [ -d $$bin ]; then $$bin/unimask --version && $$bin/unimask predict ../../examples/nuclei_1.png --output found; fi; done
	test -s output/release/found/nuclei_1.json
	ls -l dist

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
	$(UV) sync --locked --all-extras --no-extra fiftyone --quiet --compile-bytecode --no-python-downloads --python $(PYTHON)
	touch $@

.uv/bin/uv .uv/Scripts/uv.exe:
	$(PYTHON) -m venv .uv
	$(dir $@)pip install --quiet --disable-pip-version-check "uv>=0.9"
