# The one entrance to the project. Each target sets up what it needs first.

SHELL := /bin/bash
BIN := .venv/bin
SHELL_SCRIPTS := scripts/bench-peers scripts/criu scripts/criu-self-test scripts/host scripts/image scripts/lib.sh scripts/lock scripts/protos scripts/test scripts/venv .ci/run

.DEFAULT_GOAL := help
.PHONY: bench bench-full bench-recovery bench-replay bench-tools check clean demo dev fuzz help host image lock protos soak test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: image dev ## show it at work on a real sandbox
	$(BIN)/python scripts/demo.py

test: image dev ## all tests, against a real engine (PYTEST_ARGS='-k name')
	@scripts/test $(PYTEST_ARGS)

check: dev ## format, lint, types, import rules, generated code, crash points, packages, shell scripts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	scripts/protos --check
	$(BIN)/python scripts/check_points.py
	@scripts/lock --audit
	@if command -v shellcheck >/dev/null; then shellcheck -x -P SCRIPTDIR $(SHELL_SCRIPTS); \
	else echo 'check: shellcheck is not installed, so the shell scripts were not checked'; fi

bench: bench-tools ## measure, in at most five minutes (BENCH_ARGS='--only sizes')
	$(BIN)/python scripts/bench.py $(BENCH_ARGS)

bench-full: bench-tools ## measure all: up to 100,000 files, 1 GiB in one file, 32 copies
	$(BIN)/python scripts/bench.py --full $(BENCH_ARGS)

bench-replay: image dev ## replay recorded agent runs, with Turnkeep and without (TRACES=FOLDER)
	$(BIN)/python scripts/bench_replay.py $(BENCH_ARGS)

bench-recovery: image dev ## break replayed runs at random turns, restore, compare
	$(BIN)/python scripts/bench_recovery.py $(BENCH_ARGS)

bench-tools: image dev
	@scripts/venv --with bench
	@scripts/bench-peers

fuzz: dev ## feed what reads others' bytes with bytes, each a minute (FUZZ_ARGS='--seconds 600 tree')
	@scripts/venv --with fuzz
	$(BIN)/python scripts/fuzz.py $(FUZZ_ARGS)

dev: ## .venv with the project in editable mode and its tools
	@scripts/venv

host: ## a Docker Engine that answers and a CRIU that works, installed and started if need be
	@scripts/host

image: host ## the sandbox image of the tests, turnkeep/sandbox:test
	@scripts/image

protos: dev ## generate daemon/turnkeep/api/v1 from protos/
	@scripts/protos

soak: image dev ## an hour of random work and faults, compared with a model (SOAK_ARGS='--minutes 5')
	$(BIN)/python scripts/soak.py $(SOAK_ARGS)

lock: dev ## write requirements.lock from pyproject.toml (LOCK_ARGS=--upgrade)
	@scripts/lock $(LOCK_ARGS)

clean: ## delete what was made in this folder (not the engine, not the image)
	rm -rf .venv .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
