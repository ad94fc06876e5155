# Work on the collection. `make help` lists the targets; each can be called again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# The distribution's, whichever comes first in PATH: it is optimised, and the same everywhere.
export PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Python keeps what it compiled, in one place: some environments forbid that, and then each ansible-playbook compiles Ansible.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode
unexport PYTHONDONTWRITEBYTECODE
# How Docker is reached ("docker" or "sudo docker"): testbed/setup.sh finds out.
export DOCKER = $(shell cat .cache/docker-command 2>/dev/null || echo docker)
# For tools that start others of the virtual environment by name.
WITH_VENV := PATH="$(BIN):$$PATH"

# Scenarios of `make test`, in this order. The first makes the fleet that the others use. The next four find it as that left it, and
# leave it so; the others bring it a catalog of their own. gpu_host and airgap have fleets of their own, and that one makes room for them.
SCENARIOS := default gateway models distribution anywhere engines rollout gpu_host airgap
SCENARIOS_LONG := $(filter-out gpu_host airgap,$(SCENARIOS)) lifecycle airgap gpu_host
export MOLECULE_GLOB := molecule/*/molecule.yml
# What failed in a scenario, in few words: said once more at the very end, where a log is read first.
FAILURES := .testbed/molecule/failures.txt
# What Ansible printed in molecule's own steps (create, check, converge, idempotence).
PLAYS_LOG := $(CURDIR)/.testbed/molecule/plays.log

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup setup-tests setup-bench
setup: ## Install what this machine lacks: packages, and Docker only where there is none
	@testbed/setup.sh
setup-tests: setup
	@testbed/setup.sh --tests
setup-bench: setup
	@testbed/setup.sh --bench

.PHONY: venv
venv: $(VENV)/.installed ## Make the virtual environment .venv
$(VENV)/.installed: testbed/requirements.txt | setup
	@echo "  virtual environment: installing testbed/requirements.txt"
	@$(VENV)/bin/python -c '' 2>/dev/null || rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --no-compile --disable-pip-version-check --progress-bar off -r testbed/requirements.txt 2>&1 \
	    | tee $(VENV)/pip.log | sed -Eun 's/^ *(Downloading .*MB\)|Installing).*/  virtual environment: \1/p' \
	    || { tail -20 $(VENV)/pip.log; exit 1; }
	@mkdir -p $(VENV)/collections/ansible_collections/localfirst
	@ln -sfn ../../../.. $(VENV)/collections/ansible_collections/localfirst/llm_fleet
	@touch $@
	@echo "  virtual environment: done"

.PHONY: images images-tests images-bench
images: setup ## Build the testbed's images that are missing or whose recipe changed
	@$(PYTHON) testbed/images.py
images-tests: setup
	@$(PYTHON) testbed/images.py debian12 debian13 llamacpp llamacpp-flaky ollama sources debian12-gpu debian13-gpu mirror dcgm-exporter tgi sglang
images-bench: setup
	@$(PYTHON) testbed/images.py debian12-warm llamacpp upstream

.PHONY: demo demo-rollout demo-upgrade demo-down
demo: setup ## Start a fleet on this machine and ask it a question (DISTRIBUTION=p2p: nodes bring files to each other)
	@echo "▸ Images and virtual environment"
	@$(MAKE) -j2 venv images
	@$(BIN)/python testbed/demo.py
demo-rollout: setup ## Roll a new version out on that fleet, and show what clients see; once more, and it goes back
	@$(MAKE) -j2 venv images
	@$(BIN)/python testbed/demo_rollout.py
demo-upgrade: setup ## Bring that fleet's nodes another driver, and show what clients see; once more, and it goes back
	@$(MAKE) -j2 venv images
	@$(BIN)/python testbed/demo_upgrade.py
demo-down: ## Remove all that the demo made
	@$(PYTHON) testbed/fleet.py down --name llm-fleet-demo
	@rm -rf .demo .cache/facts

.PHONY: lint sanity unit molecule
lint: venv setup-tests ## Check style: ansible-lint (profile production), yamllint, ruff, shellcheck
	$(BIN)/ruff check .
	$(BIN)/yamllint --strict .
	shellcheck .ci/run testbed/*.sh testbed/images/*/*.sh testbed/doubles/*/*.sh
	$(WITH_VENV) ansible-lint --offline
sanity: venv ## Run ansible-test sanity on a copy of the collection
	@testbed/sanity.sh
unit: venv setup-tests ## Run the unit tests, on all cores (ARGS="-k name" for some of them, "-n0 --pdb" with a debugger)
	$(BIN)/pytest tests/unit --numprocesses auto --dist worksteal $(ARGS)
molecule: venv images-tests ## Run molecule: SCENARIO=x, or those of `make test`; KEEP=1 leaves the fleet
	@mkdir -p $(dir $(FAILURES)); \
	status=0; rm -f $(FAILURES); for scenario in $(or $(SCENARIO),$(SCENARIOS)); do \
	    echo "▸ molecule: $$scenario"; rm -f $(PLAYS_LOG); begun=$$SECONDS; \
	    if [ $$scenario = gpu_host ] || [ $$scenario = airgap ]; then $(BIN)/python testbed/fleet.py down --inventory molecule/inventory; fi; \
	    $(WITH_VENV) molecule reset --scenario-name $$scenario >/dev/null 2>&1 || true; \
	    $(WITH_VENV) ANSIBLE_LOG_PATH=$(PLAYS_LOG) molecule test $(if $(KEEP),--destroy never) --scenario-name $$scenario || { status=$$?; break; }; \
	    echo "  molecule $$scenario: $$((SECONDS - begun)) s"; \
	done; \
	if [ $$status != 0 ]; then testbed/last_failures.sh $(PLAYS_LOG) >> $(FAILURES); fi; \
	if [ -z "$(KEEP)" ]; then $(MAKE) fleets-down; fi; \
	cat $(FAILURES) 2>/dev/null || true; exit $$status
.PHONY: fleets-down
fleets-down:
	@for inventory in molecule/inventory molecule/gpu_host/inventory molecule/airgap/inventory molecule/airgap/outside; do $(BIN)/python testbed/fleet.py down --inventory $$inventory; done

.PHONY: test checks test-long bench bench-store bench-distribution bench-rollout
# What needs no fleet runs while images are built and the first scenario makes one, which waits a lot; what it said is shown after that.
CHECKS_LOG := .cache/checks.log
test: venv setup-tests ## Everything that a change must pass
	@begun=$$SECONDS; echo "▸ lint, sanity, unit: in $(CHECKS_LOG), beside the first scenario"; \
	$(MAKE) checks > $(CHECKS_LOG) 2>&1 & checks=$$!; \
	status=0; $(MAKE) molecule SCENARIO=$(firstword $(SCENARIOS)) KEEP=1 || status=$$?; \
	wait $$checks || status=$$?; cat $(CHECKS_LOG); \
	if [ $$status != 0 ]; then $(MAKE) fleets-down; cat $(FAILURES) 2>/dev/null || true; exit $$status; fi; \
	$(MAKE) molecule SCENARIO="$(wordlist 2,99,$(SCENARIOS))"; echo "  make test: $$((SECONDS - begun)) s"
checks: ## lint, sanity and unit, one after the other
	@for target in lint sanity unit; do \
	    echo "▸ $$target"; begun=$$SECONDS; $(MAKE) $$target; echo "  make $$target: $$((SECONDS - begun)) s"; \
	done
test-long: ## All of `make test`, the scenarios that take their time, and properties tried with new examples
	@LLM_FLEET_LONG=1 $(MAKE) checks
	@LLM_FLEET_LONG=1 $(MAKE) molecule SCENARIO="$(SCENARIOS_LONG)"
bench: venv images-bench setup-bench ## Measure what the gateway, a run without changes, and the store cost; figures go to .bench/
	$(BIN)/python tests/bench/site.py
	$(BIN)/python tests/bench/gateway.py
	$(BIN)/python tests/bench/store.py
bench-store: venv ## Measure only what verifying and staging cost: beside openssl, and beside the bytes that differ
	$(BIN)/python tests/bench/store.py
bench-distribution: venv setup-bench ## Measure only how long a model takes to N hosts, over HTTP and with peers; needs root (ARGS="--hosts 1 4")
	$(if $(filter 0,$(shell id -u)),,sudo) $(BIN)/python tests/bench/distribution.py $(ARGS)
bench-rollout: venv images-bench ## Measure only rollouts: what clients notice, what it costs beside loading, how soon a bad release is gone
	$(BIN)/python tests/bench/rollout.py

.PHONY: clean
clean: ## Remove all fleets of this checkout, the images, .venv and caches
	@$(PYTHON) testbed/fleet.py down --all
	@$(PYTHON) testbed/images.py --remove
	rm -rf .venv .cache .demo .testbed .bench .ansible .pytest_cache .ruff_cache .hypothesis tests/output
	find plugins roles tests testbed molecule -name __pycache__ -prune -exec rm -rf {} +
