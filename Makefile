# demo   see memory experts at work (makes .venv and installs first)
# test   lint, then the whole test suite
# lint   ruff, mypy and the floors of the house (import-linter)
# laws   the ten laws alone, compiled as everybody does
# bench  every script of benchmarks/
# colab  run every notebook of colab/
# docs   build the documentation site into outputs/docs
# clean  remove .venv and caches; outputs/ is yours and stays
#
# `make test-lowest` runs the suite on the oldest versions that setup.py allows.
# Nothing is installed again until setup.py changes, so no network is needed after the first time.

VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
# Neighbours stay in one process, which shares what they compile and their fixtures.
PYTEST_SPREAD := -n auto --dist worksteal
# Laws that hold bit for bit are tested as everybody compiles; the rest compiles faster, see
# tests/conftest.py.
EXACT := tests/laws_test.py
PYTEST_ARGS ?=
# $(call run_tests,FILES). Chosen tests may all be in one of the two runs; 5 says there was none.
run_tests = $(BIN)/python -m pytest $(PYTEST_SPREAD) $(PYTEST_ARGS) $(1) \
  $(if $(PYTEST_ARGS),|| test $$? -eq 5)
# Python compiles what is imported when it is, and not now all there is. It has to keep that, or
# every process that the tests start compiles jax anew: 2.8 s each.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# $(call make_venv,FOLDER): with the first of PYTHON that will do.
define make_venv
@for python in $(PYTHON); do \
  if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
  then echo "Making $(1) with $$($$python --version)"; exec $$python -m venv --clear $(1); fi; \
done; \
echo >&2 'wmpoe needs Python 3.11 or newer with its venv module, and none of these is one: $(PYTHON)'; \
echo >&2 'Install it (Debian and Ubuntu: apt install python3-venv), or name yours: make PYTHON=/path/to/python3.12 ...'; \
exit 1
endef

.PHONY: demo test lint laws bench colab docs clean test-lowest

demo: $(VENV)/installed-demo
	$(BIN)/python -m wmpoe demo

# Lint has work for one core, and the laws leave some of the others idle at their end.
test: $(VENV)/installed-test
	@$(MAKE) --no-print-directory -j 2 lint laws
	WMPOE_FAST_COMPILE=1 $(call run_tests,$(addprefix --ignore=,$(EXACT)))

laws: $(VENV)/installed-test
	$(call run_tests,$(EXACT))

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-test
	@set -e; for script in benchmarks/*.py; do \
	  echo "== $$script"; $(BIN)/python $$script; done

colab: $(VENV)/installed-colab
	$(BIN)/python colab/run.py

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest $(PYTEST_SPREAD) $(PYTEST_ARGS)

# The stamps: an interrupted venv or install leaves none behind and is begun anew.
$(VENV)/made:
	$(call make_venv,$(VENV))
	@touch $@

$(VENV)/installed-demo: setup.py | $(VENV)/made
	@echo 'Installing wmpoe and what the demo needs into $(VENV): a minute or two'
	@$(BIN)/python $(PIP_INSTALL) -e '.[demo,play]'
	@touch $@

$(VENV)/installed-colab: setup.py | $(VENV)/made
	@echo 'Installing wmpoe and what the notebooks need into $(VENV): a minute or two'
	@$(BIN)/python $(PIP_INSTALL) -e '.[demo,colab]'
	@touch $@

$(VENV)/installed-docs: setup.py | $(VENV)/made
	@echo 'Installing wmpoe and what its documentation site needs into $(VENV): a minute or two'
	@$(BIN)/python $(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/installed-test: setup.py | $(VENV)/made
	@echo 'Installing wmpoe and what its tests need into $(VENV): a minute or two'
	@$(BIN)/python $(PIP_INSTALL) -e '.[demo,play,test,lint]'
	@touch $@ $(VENV)/installed-demo

$(LOWEST)/made:
	$(call make_venv,$(LOWEST))
	@touch $@

$(LOWEST)/installed: setup.py | $(LOWEST)/made
	grep -oE "'[A-Za-z_-]+(\[[a-z0-9,]+\])?>=[0-9.]+'" setup.py \
	  | sed -E "s/'|\[[^]]*\]//g; s/>=/==/" > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python $(PIP_INSTALL) -c $(LOWEST)/lowest.txt -e '.[demo,test]'
	@touch $@
