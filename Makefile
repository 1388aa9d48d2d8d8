# Everything runs in .venv, which `make setup` builds from the lock file. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-all check bench bench-convert bench-runtime rivals arm64 deb clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/edgeops demo

check: setup
	scripts/check

test: setup check
	scripts/test

test-all: setup check
	scripts/test --all

bench: setup
	$(BIN)/python -m benchmarks

bench-convert: setup
	$(BIN)/python -m benchmarks.converter

bench-runtime: setup
	$(BIN)/python -m benchmarks.runtime

rivals:
	PYTHON=$(PYTHON) scripts/rivals

# Both need root; qemu and debootstrap are installed on the way. What they make is in build.
arm64: setup
	$(BIN)/python scripts/arm64

deb: setup
	$(BIN)/python scripts/deb --check

clean:
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
