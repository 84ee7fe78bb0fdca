# Set-up and daily commands. Later runs install nothing: a stamp in .venv says what is there already.

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := python3.11 python3.12 python3.13 python3
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# make bench-NAME measures one row of benchmarks/RESULTS.md; python -m benchmarks --help lists the names.
bench-%: $(VENV)/.installed
	$(BIN)/python -m benchmarks $*

.PHONY: help demo test check
.NOTPARALLEL:

help:
	@echo "make demo    set-up and the main job: qrobust demo"
	@echo "make test    set-up and the tests"
	@echo "make bench-NAME    set-up and one benchmark, as in make bench-mnist-2x100-int8"
	@echo "make check   set-up, then format, lint and types"
	@echo "Python 3.11 or newer is found by itself; another one: make PYTHON=/path/to/python3 demo"

demo: $(VENV)/.installed
	$(BIN)/qrobust demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --maxprocesses 4

check: $(VENV)/.installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A stamp is written after its install, never before, so an interrupted install is made again. What one install brings
# along counts for the others: the package is in each of them, and the type checker needs what the tests import.
$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-check: pyproject.toml | $(VENV)/.created
	$(INSTALL) --editable '.[test,check]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

# An environment that is there and has a working pip is kept; half of one is made again.
$(VENV)/.created:
	@found=""; if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),$(CANDIDATES)); do \
	    if "$$python" -c '$(RECENT)' 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "no Python 3.11 or newer among: $(or $(PYTHON),$(CANDIDATES)); install one, or name it with make PYTHON=..." >&2; \
	    exit 1; \
	  fi; \
	  echo "$$found -m venv $(VENV)"; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@touch $@
