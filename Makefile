# People's habits. `make` alone lists them.

PYTHON ?= # the Python to make .venv with; otherwise the first of python3.13, python3.12, python3.11, python3 that will do
ARGS ?=   # more arguments: make test ARGS="-k callback", make bench ARGS="hanging --database sqlite"
CASES ?=  # how many for make test-fuzz
ROUNDS ?= # how many for make test-faults
SEED ?=   # and which

# Half of the tests wait for processes and clocks.
TEST_WORKERS ?= $(shell echo $$(( 2 * $$(getconf _NPROCESSORS_ONLN) )))

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(strip $(PYTHON)),python3.13 python3.12 python3.11 python3)
DEPENDENCIES := $(VENV)/.dependencies-installed
STAMP := $(VENV)/.project-installed
# Errors only: a machine's own pip configuration may have much to say.
PIP_OPTIONS := -qq --disable-pip-version-check --no-input
IMAGE := build/protos.binpb

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything in it (the others do this first)
	@echo "$(VENV) is ready"

# Each step is done again only when what it installs from has changed.
$(STAMP): $(DEPENDENCIES) pyproject.toml
	@echo "Installing the project"
	@$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEPENDENCIES): requirements.lock
	@set -eu; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=; \
	    for candidate in $(CANDIDATES); do \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "make: Python 3.11 or newer is needed to make $(VENV). Tried: $(CANDIDATES)" >&2; \
	        echo "make: name another with: make PYTHON=/path/to/python3 setup" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV); \
	fi; \
	echo "Installing the pinned dependencies (a minute or two, once)"; \
	$(BIN)/python -m pip install $(PIP_OPTIONS) --require-hashes --requirement requirements.lock; \
	touch $@

# exec: Ctrl-C and a TERM reach the server itself, and make reports nothing when it ends well.
.PHONY: run
run: $(STAMP) ## Start server, sidecar and sandbox, with one account connected; Ctrl-C stops them
	@exec $(BIN)/python -m integration_server dev

.PHONY: test
test: $(STAMP) ## Run every test (more arguments: ARGS="-k callback")
	@$(BIN)/python -m pytest --no-header -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# One after the other, since they load the machine, and each tells its rounds. A test has its own number of rounds and
# takes a new seed, unless ROUNDS and SEED say otherwise: make test-faults SEED=42 ROUNDS=5 ARGS="-k frozen"
.PHONY: test-faults
test-faults: $(STAMP) ## Run the long tests of refreshing and webhooks under faults, about an hour (ROUNDS=, SEED=, ARGS="-k killed")
	@$(BIN)/python -m pytest --no-header tests/faults --override-ini faulthandler_timeout=3600 \
	    $(if $(ROUNDS),--rounds=$(ROUNDS)) $(if $(SEED),--seed=$(SEED)) $(ARGS)

.PHONY: bench
bench: $(STAMP) ## Measure the speed of what is under load, against its bounds (ARGS="hanging": one; "--help": more)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: test-rotation
test-rotation: $(STAMP) ## Rotate 100,000 rows under load, killed 20 times, on both databases (minutes)
	@$(BIN)/python -m pytest --no-header -o faulthandler_timeout=3600 tests/faults/test_rotation.py $(ARGS)

.PHONY: test-fuzz
test-fuzz: $(STAMP) ## Send 100,000 hostile calls to a real server (other numbers: CASES=1000 SEED=1)
	@CASES=$(CASES) SEED=$(SEED) PYTHONPATH=.:generated $(BIN)/python -m tests.fuzz

.PHONY: lint
lint: $(STAMP) ## Check style, types, architecture and the contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/bandit --quiet --recursive integration_server --configfile pyproject.toml
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/generate.py --image $(IMAGE)
	$(BIN)/buf lint $(IMAGE) --config protos/buf.yaml --path integrations

.PHONY: proto
proto: $(STAMP) ## Compile protos/ into generated/
	@$(BIN)/python protos/generate.py

.PHONY: providers-doc
providers-doc: $(STAMP) ## Write docs/providers.md from what the providers declare
	@$(BIN)/python -m tools.providers_doc

.PHONY: certs
certs: $(STAMP) ## Make certificates for development in data/certs: see docs/authentication-and-authorization.md
	@$(BIN)/python tools/certificates.py

.PHONY: migrate
migrate: $(STAMP) ## Bring the database at DATABASE_URL to the newest schema
	@$(BIN)/python -m integration_server migrate

# Pins are kept where they still fit; `make lock UPGRADE=1` takes the newest. The lock names no index and no folder, so
# it installs from whatever index pip is set up to use.
.PHONY: lock
lock: ## Pin all dependencies, with hashes, into requirements.lock (UPGRADE=1: newest versions)
	@test -x $(BIN)/uv || { echo "make: run 'make setup' first: it installs uv" >&2; exit 1; }
	@$(BIN)/uv pip compile pyproject.toml --extra dev --quiet --no-config \
	    --universal --python-version 3.11 --fork-strategy fewest \
	    --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --output-file requirements.lock >/dev/null
	@echo "requirements.lock pins $$(grep -c '==' requirements.lock) packages"

.PHONY: clean
clean: ## Remove .venv, caches and what was built; ./data stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find integration_server generated tests benchmarks protos -name __pycache__ -type d -prune -exec rm -rf {} +
