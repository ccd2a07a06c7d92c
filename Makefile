.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
DATA := .data
# That of the runtime started last: `make run` and `make demo` write theirs anew.
TOKEN = $(shell ls -t $(DATA)/operator-token $(DATA)/demo/operator-token \
    $(DATA)/demo-qemu/operator-token 2>/dev/null | head -1)
PORT = $(or $(BIND_PORT),3000)
# More for pytest, such as TEST_ARGS="-k trust -x".
TEST_ARGS ?=

.PHONY: help install install-runtime lock fmt lint types layers size test-fast test test-slow \
        scenarios check run demo demo-qemu shell bench clean

help:  ## lists these
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## installs what is missing: system packages, .venv, the product, the tools
	@tools/setup.sh dev

install-runtime:
	@tools/setup.sh runtime

lock: install  ## writes requirements/ anew from pyproject.toml
	tools/lock.sh

fmt: install  ## formats, and mends what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install  ## checks format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install  ## checks types
	$(BIN)/mypy

layers: install  ## checks that imports point down
	$(BIN)/lint-imports --no-logo

size:  ## fails on a module of more than 400 lines
	tools/size.sh

test-fast: install  ## tests that need no database, no libvirt and no patience
	$(BIN)/pytest -m "not db and not slow and not libvirt" $(TEST_ARGS)

test: install  ## all tests, with coverage
	$(BIN)/pytest --cov --cov-report=term:skip-covered $(TEST_ARGS)
	$(BIN)/coverage report --fail-under=98 --format=total \
	    --include="trustfabric/domain/*,trustfabric/supervision/*"

test-slow: install  ## a Debian guest with a vTPM that attests; fetches its kernel
	tools/guest-image.sh $(DATA)/guest/guest.img
	GUEST_IMAGE=$(DATA)/guest/guest.img $(BIN)/pytest tests/e2e/test_guest_agent.py $(TEST_ARGS)

scenarios: install  ## runs the chaos matrix; writes its manifest and transcript
	$(BIN)/mcpctl scenarios run

check: lint types layers size test  ## what CI runs

run: install-runtime  ## runs the runtime on its embedded defaults
	@$(BIN)/mcpctl serve --data-dir $(DATA)

demo: install-runtime  ## runs it with a small fleet that lives the story
	@$(BIN)/mcpctl demo --data-dir $(DATA)/demo

demo-qemu: install  ## the same, its VMs real guests under QEMU, their consoles live
	@$(BIN)/mcpctl demo --qemu --data-dir $(DATA)/demo-qemu

shell: install-runtime  ## opens the operator shell on what was started last
	@[ -n "$(TOKEN)" ] || { echo "Start one first: make run, or make demo."; exit 1; }
	@$(BIN)/mcpctl $(if $(MCP_HOST_URL),,--host http://localhost:$(PORT)) \
	    --token-file $(TOKEN) shell

bench: install  ## measures every figure beside its peer
	$(BIN)/python -m benchmarks

clean:  ## removes what make made, the data of `make run` included
	@! find $(DATA) -name postmaster.pid 2>/dev/null | grep -q . || \
	    { echo "The runtime is running on $(DATA); stop it first."; exit 1; }
	rm -rf .venv $(DATA) .coverage .coverage.* coverage.json htmlcov build *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
