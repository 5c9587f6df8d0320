.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-quick test-unit test-kernel test-interop test-clients test-lab \
	test-debian13 fuzz soak sequences adversary interrupts \
	lint format docs release-check bench bench-docs clean \
	install-system-packages

python := .venv/bin/python
SECONDS ?= 60
SEED ?= 0

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-24s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: install-system-packages .venv/.complete ## Install what is missing: Debian packages (as root) and .venv

demo: setup ## Walk through a CNI attachment on the real kernel, step by step
	@demo/walkthrough

test: setup lint test-lab ## Lint and run every test
	@$(python) -m pytest tests
	@$(MAKE) --no-print-directory fuzz SECONDS=1

test-quick: setup ## Unit tests, and those on the kernel that are not slow, side by side (minutes, as root)
	@$(python) -m pytest -q tests/unit & unit=$$!; \
		$(python) -m pytest -q -m 'not slow' tests/kernel; kernel=$$?; \
		wait $$unit && exit $$kernel

test-unit: .venv/.complete ## Tests that need no privileges
	@$(python) -m pytest tests/unit

test-kernel: setup ## Tests on the real kernel, in namespaces of their own (as root)
	@$(python) -m pytest tests/kernel

test-interop: setup ## Tests against the programs of others (as root)
	@$(python) -m pytest tests/interop

test-clients: setup ## Tests with podman, buildah and containerd as clients (as root)
	@$(python) -m pytest tests/clients

test-lab: setup ## Tests that need a fuller kernel, in an emulator
	@tools/system-packages lab
	@PYCNI_LAB=1 tools/kernel-lab $(python) -m pytest tests/lab -p no:cacheprovider -q

test-debian13: ## Unit and kernel tests, and containerd, in a root of Debian 13 (as root; makes it if missing)
	@tools/debian-13 .venv/bin/python -m pytest tests/unit tests/kernel tests/clients/test_containerd.py

fuzz: .venv/.fuzz ## Fuzz what comes in from outside, SECONDS=60 for each place
	@$(python) fuzz/run --seconds $(SECONDS)

sequences: setup ## Random sequences of operations, then seeded mistakes that must be found (an hour, as root)
	@cd tests && ../$(python) -m sequences --seed $(SEED)
	@cd tests && ../$(python) -m sequences --seed $(SEED) --mistakes --sequences 200

adversary: setup ## Hostile containers, second callers and tenants, twenty times everything (an hour, as root)
	@cd tests && ../$(python) -m adversary --seed $(SEED)

interrupts: setup ## Interrupt operations of a program at every instruction (minutes, as root)
	@PYCNI_EVERY_INSTRUCTION=1 PYCNI_TASKS=500 PYCNI_INTERRUPTS=300 PYCNI_FAILURES=5000 \
		PYCNI_CYCLES=5000 \
		$(python) -m pytest --timeout 1800 tests/kernel/test_interrupts.py \
		tests/kernel/test_cancellation.py tests/kernel/test_executables.py \
		tests/kernel/test_cli_interrupted.py tests/kernel/test_growth.py

soak: setup ## Faults and load at full length; writes docs/reliability.md (an hour, as root)
	@tools/soak/run inside --write
	@tools/soak/run outside --write
	@tools/soak/run load --write

lint: .venv/.complete ## Check format, style, types, words and the import rules
	@$(python) -m ruff format --check --quiet . || { echo "hint: make format"; false; }
	@$(python) -m ruff check --quiet .
	@$(python) -m mypy
	@.venv/bin/lint-imports --no-logo
	@tools/check-words

format: .venv/.complete ## Format the code and fix what ruff can fix
	@$(python) -m ruff check --fix --quiet . ; $(python) -m ruff format .

docs: .venv/.complete ## Write the key tables of docs/plugins from the declarations
	@$(python) tools/docs

release-check: .venv/.complete ## Go through the checklist of a release: version, changelog, packages, docs
	@$(python) tools/release-check

bench: setup ## Measure against the reference plugins, and those in PEER=DIR, as ratios
	@$(python) bench/run.py $(if $(PEER),--peer $(PEER))

bench-docs: setup ## The same with more rounds, into docs/benchmark.md
	@$(python) -m pip install -qq --disable-pip-version-check --group bench
	@$(python) bench/run.py --long --write-docs $(if $(PEER),--peer $(PEER))

clean: ## Remove .venv and everything built or cached
	rm -rf .venv .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-system-packages: ## Install the Debian packages that are missing (as root)
	@tools/system-packages run test

.venv/.complete: pyproject.toml hatch_build.py launcher/launcher.c
	@$(python) -c '' 2> /dev/null || { \
		found=$$(tools/find-python) && echo "building .venv from $$found" && \
		"$$found" -m venv --clear .venv; }
	@$(python) -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(python) -m pip install -qq --disable-pip-version-check --editable '.[cli,dhcp,firewalld]' --group dev
	@touch $@

.venv/.fuzz: .venv/.complete
	@$(python) -m pip install -qq --disable-pip-version-check --group fuzz
	@touch $@
