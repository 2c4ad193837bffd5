# The commands of a checkout. `make` alone lists them.

PYTHON ?= python3
VENV = .venv
BROKER ?= memory://
ARGS ?=
JOBS ?= 2
COMPILED ?= 0

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev

# What is tested and broken is Python, or with COMPILED=1 what a wheel has; what is measured is what a wheel has.
ifeq ($(filter 0 1,$(COMPILED)),)
$(error COMPILED is 0 or 1)
endif
ifeq ($(COMPILED),1)
BUILD = scripts/install-compiler $(BIN)/python && $(BIN)/python hatch_build.py compiled
else
BUILD = $(BIN)/python hatch_build.py python
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench chaos wheel clean

help:
	@echo 'make demo    run a first program: a call, a streamed task, a cast, a remote error'
	@echo '             BROKER=amqp://guest:guest@localhost/ runs it on a broker instead of in memory'
	@echo 'make test    run every test against a RabbitMQ of its own (ARGS="-k codec -x" goes to pytest)'
	@echo '             in two processes, each with its RabbitMQ; JOBS=0 runs all in one;'
	@echo '             COMPILED=1 compiles the modules first that a wheel has compiled'
	@echo 'make lint    check style and formatting'
	@echo 'make types   check types'
	@echo 'make bench   measure calls per second, latency, CPU and memory, compiled as a wheel is'
	@echo 'make chaos   break workers, links and a broker under load, and judge every call (ARGS="--help")'
	@echo 'make wheel   build a wheel in dist/, compiled where there is a C compiler'
	@echo 'make clean   remove what these commands made in this folder'
	@echo
	@echo 'Each installs what it needs into $(VENV) first. PYTHON=python3.12 chooses the interpreter.'

demo: $(INSTALLED)
	@$(BIN)/python examples/quickstart.py '$(BROKER)'

test: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	@$(BUILD)
	AIORPCQ_COMPILE=$(COMPILED) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED_DEV)
	$(BIN)/mypy

bench: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	@trap '$(BIN)/python hatch_build.py python' EXIT; trap 'exit 130' HUP INT TERM; \
		{ scripts/install-compiler $(BIN)/python && $(BIN)/python hatch_build.py compiled; } || \
		echo 'What follows is measured as Python alone.'; \
		$(BIN)/python -m benchmarks $(ARGS)

chaos: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	@$(BUILD)
	@$(BIN)/python -m tests.chaos $(ARGS)

wheel: $(INSTALLED_DEV)
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	find aiorpcq \( -name '*.so' -o -name '*.pyd' \) -exec rm -f {} +
	rm -f aiorpcq__mypyc.*
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@scripts/make-venv '$(PYTHON)' $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo 'Installing aiorpcq into $(VENV) ...'
	@AIORPCQ_COMPILE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	@echo 'Installing aiorpcq and its development tools into $(VENV) ...'
	@AIORPCQ_COMPILE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(INSTALLED) $@
