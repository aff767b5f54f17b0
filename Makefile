# Needs python3 (3.11 or newer), a C++17 compiler and make; the rest goes into .venv, which need not be
# activated. Another interpreter: make PYTHON=python3.12 (before .venv exists; `make distclean` removes it).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two stamps, so that a change in csrc rebuilds the extension without asking pip about every requirement
# again.
TOOLS := $(VENV)/.stamp-tools
PACKAGE := $(VENV)/.stamp-package
WHEEL_TOOLS := $(VENV)/.stamp-wheel-tools
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(wildcard csrc/*)
FORMATTED := $(filter %.cpp %.h %.hpp,$(CSRC) $(wildcard wheels/*))
WORKFLOWS := $(wildcard .github/workflows/*.yml)
FORMS := $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
SCHEMA := $(BIN)/check-jsonschema --builtin-schema
SITE := build/docs
# What is passed on to the program: make test ARGS="-k adamw -x"
ARGS ?=
# A process per processor; a file's tests stay together, as they share what is compiled, and the long files come first. Threads
# that wait must not spin: other processes want the processor. Bytecode is kept, or else every process rewrites all assertions.
PYTEST := OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest \
    -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# pytest's status 5: what ARGS selects is in the other of the two runs of `make test`.
NONE_SELECTED := [ $$? -eq 5 ]

.DEFAULT_GOAL := help
.PHONY: help demo test check coverage touch fuzz sanitize lint types bench docs gpu kernels wheel matrix format clean distclean
# A recipe that fails half-way must not leave a stamp behind.
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(PACKAGE) ## show what the package does, in the terminal
	@$(BIN)/python -m regkernels demo $(ARGS)

test: $(PACKAGE) ## run the tests, then those of the GPU kernels in Triton's interpreter (ARGS="-k name" selects)
	@$(PYTEST) $(ARGS) || $(NONE_SELECTED)
	@REGKERNELS_BACKEND=triton TRITON_INTERPRET=1 $(PYTEST) -m interpreted $(ARGS) || $(NONE_SELECTED)

check: $(PACKAGE) ## run a tenth of the tests, of every file those that the same hash of their names picks: in a minute
	@$(PYTEST) --tenth $(ARGS)

coverage: $(PACKAGE) ## run the tests, without those in Triton's interpreter, and list the lines that none of them reaches
	@$(PYTEST) --cov=regkernels --cov-report=term $(ARGS)

# Builds the extension of copies of the tree: minutes.
touch: $(PACKAGE) ## add an optimizer and a penalty to a copy, in the files that CONTRIBUTING.md lists, and test them there
	@REGKERNELS_TOUCH=1 $(BIN)/python -m pytest -n 0 tests/touch $(ARGS)

fuzz: $(PACKAGE) ## try at random what nobody has listed, for ten minutes (ARGS="--seconds 3600 -k plans")
	@$(BIN)/python -m tests.fuzz $(ARGS)

# In build/sanitize: a build of the extension for this alone, beside a copy of the package.
sanitize: $(PACKAGE) ## run what works on memory under the address and undefined-behaviour sanitizers (minutes)
	@PYTHON='$(BIN)/python' sh tests/sanitize.sh $(ARGS)

# An sdist has nothing of .github.
lint: $(TOOLS) ## check style, formatting, that imports point downwards, and what a forge reads
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(if $(FORMATTED),$(BIN)/clang-format --dry-run -Werror $(FORMATTED))
	@$(if $(WORKFLOWS),$(SCHEMA) vendor.github-workflows $(WORKFLOWS))
	@$(if $(WORKFLOWS),$(SCHEMA) custom.github-workflows-require-timeout $(WORKFLOWS))
	@$(if $(FORMS),$(SCHEMA) vendor.github-issue-forms $(FORMS))
	@$(if $(FORMS),$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml)
	@$(SCHEMA) vendor.citation-file-format CITATION.cff

types: $(TOOLS) ## check the types
	@$(BIN)/mypy

bench: $(PACKAGE) ## measure on this machine and keep a record (ARGS="--quick": in 2 minutes)
	@$(BIN)/python -m regkernels bench $(ARGS)

# Without --quiet, which would also hide warnings from --strict.
docs: $(TOOLS) ## build the documentation (ARGS=serve: show it at http://127.0.0.1:8000, rebuilt with each change)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(or $(ARGS),build --strict)
	@$(if $(ARGS),,echo "open $(SITE)/index.html; with its search: make docs ARGS=serve")

gpu: ## on a machine with a GPU: install for python3 itself (no .venv), measure and test there (ARGS="bench", "tests -k name")
	@PYTHON='$(PYTHON)' sh tests/gpu/run.sh $(ARGS)

kernels: $(PACKAGE) ## compile the GPU kernels, without a GPU, and list what they need (ARGS="sm_90 gfx942"; ARGS=--run: run their PTX on the CPU)
	@$(BIN)/python -m tests.triton.compiled $(ARGS)

# In build/matrix: a clone and an environment for each.
matrix: $(TOOLS) ## run all tests with other versions of torch, gigabytes and half an hour each (ARGS="2.14.1 2.11.0")
	@$(BIN)/python -m tests.matrix $(ARGS)

# cmake, ninja and auditwheel's patchelf are looked up on the PATH.
wheel: $(WHEEL_TOOLS) ## build wheels for x86-64 and aarch64 into dist/, and try them (minutes; ARGS=x86_64: that one)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m wheels.build $(ARGS)

format: $(TOOLS) ## rewrite the sources the way `make lint` wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(if $(FORMATTED),$(BIN)/clang-format -i $(FORMATTED))

clean: ## remove build products and caches, keep .venv
	@rm -rf build dist *.egg-info regkernels/*.so regkernels/_build_failure.txt $(PACKAGE)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf $(VENV)

$(BIN)/python:
	@command -v '$(PYTHON)' > /dev/null || \
	    { echo "'$(PYTHON)' not found: install Python 3.11 or newer, or name one: make PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "'$(PYTHON)' is $$('$(PYTHON)' -V 2>&1); 3.11 or newer is needed: make PYTHON=..." >&2; exit 1; }
	@echo "creating $(VENV) with $$('$(PYTHON)' -V 2>&1)"
	@'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "no virtual environment could be made (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(TOOLS): requirements-dev.txt | $(BIN)/python
	@echo "installing requirements-dev.txt into $(VENV) (torch is large; the first time takes minutes)"
	@$(PIP) install --quiet -r requirements-dev.txt
	@touch $@

$(WHEEL_TOOLS): wheels/requirements.txt $(TOOLS)
	@echo "installing wheels/requirements.txt into $(VENV) (a compiler for all processors: 400 MB)"
	@$(PIP) install --quiet -r wheels/requirements.txt
	@touch $@

# pip hides a successful build's output and with it the compiler's warnings, hence the log. Type checkers and editors find the package
# in the mode "compat" only: the other one installs a finder, which they do not run.
$(PACKAGE): $(TOOLS) pyproject.toml setup.py CMakeLists.txt $(CSRC)
	@echo "building the extension"
	@mkdir -p build
	@REGKERNELS_REQUIRE_EXTENSION=1 $(PIP) install --verbose --no-build-isolation --no-deps \
	    --config-settings editable_mode=compat -e . \
	    > build/install.log 2>&1 || { cat build/install.log >&2; exit 1; }
	@grep -A 3 'csrc/.*warning:' build/install.log || true
	@touch $@
