# make demo         seven optimizers on handwritten digits: a table, and a picture in out/
# make experiments  all experiments of the Adam paper in their quick form, into out/quick
# make notebooks    run all notebooks again, in place, two at a time
# make bench        speed beside optax (and torch: EXTRA=torch); ARGS=--quick only shows that it runs
# make test         all tests; make test-fast without the slow group
# make docs         the documentation as a site, into out/docs; a warning is an error
# make setup        .venv with all that tests and checks need, and nothing run: see CONTRIBUTING.md
# make check        format, lint, types, and the contents of the built wheel
# make tpu          libtpu into .tpu, 484 MB under Google Cloud's terms, so only if you ask for it. With it bench and
#                   test also compile for eight TPU chips that are not there, and count what is in the programs
# Each sets up .venv by itself. It needs python3 (3.11 or newer) and a package index.
# Tests a second time are quicker with a folder for what is compiled: JAX_COMPILATION_CACHE_DIR=~/.cache/adamfx
# Add packages to the environment of test or bench with EXTRA, e.g. make test EXTRA=torch.

PYTHON ?= python3
VENV ?= .venv
EXTRA ?=
ARGS ?=
LIBTPU ?= libtpu
BIN := $(VENV)/bin
CONSTRAINTS ?=
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: demo experiments notebooks bench docs tpu setup test test-fast check format clean

demo: $(VENV)/.demo
	$(BIN)/python -m adamfx.experiments run digits

experiments: $(VENV)/.demo
	$(BIN)/python -m adamfx.experiments all --quick --out out/quick

notebooks: $(VENV)/.notebooks
	printf '%s\n' notebooks/*.ipynb | xargs -n 1 -P 2 $(BIN)/python notebooks/execute.py

bench: $(VENV)/.bench
	$(if $(EXTRA),$(BIN)/python -m pip install -q $(EXTRA))
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python docs/build.py

# Not into .venv: there every process of JAX would look for a TPU.
tpu: .tpu/libtpu/libtpu.so

.tpu/libtpu/libtpu.so: | $(VENV)/.venv
	$(BIN)/python -m pip install -q --no-deps --upgrade --target .tpu '$(LIBTPU)'

setup: $(VENV)/.check

test: $(VENV)/.test
	$(if $(EXTRA),$(BIN)/python -m pip install -q $(EXTRA))
	$(PYTEST)

test-fast: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python tests/check_wheel.py

format: $(VENV)/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "adamfx needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V);" \
	       "run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

INSTALL = $(BIN)/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

$(VENV)/.demo: $(VENV)/.venv pyproject.toml
	$(INSTALL) -e '.[experiments]'
	touch $@

$(VENV)/.notebooks: $(VENV)/.venv pyproject.toml
	$(INSTALL) -e '.[notebooks]'
	touch $@

$(VENV)/.bench: $(VENV)/.venv pyproject.toml
	$(INSTALL) -e '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/.venv pyproject.toml
	$(INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml
	$(INSTALL) -e '.[bench,notebooks,test]'
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(INSTALL) -e '.[bench,notebooks,test,check]'
	touch $@

clean:
	rm -rf $(VENV) .tpu build dist out .pytest_cache .hypothesis .ruff_cache
