# The commands of a checkout. `make` alone lists them.

PYTHON ?= python3
VENV = .venv
BROKER ?= memory://
ARGS ?=
JOBS ?= 2

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench chaos clean

help:
	@echo 'make demo    run a first program: a call, a streamed task, a cast, a remote error'
	@echo '             BROKER=amqp://guest:guest@localhost/ runs it on a broker instead of in memory'
	@echo 'make test    run every test against a RabbitMQ of its own (ARGS="-k codec -x" goes to pytest)'
	@echo '             in two processes, each with its RabbitMQ; JOBS=0 runs all in one'
	@echo 'make lint    check style and formatting'
	@echo 'make types   check types'
	@echo 'make bench   measure calls per second, latency, CPU and memory'
	@echo 'make chaos   break workers, links and a broker under load, and judge every call (ARGS="--help")'
	@echo 'make clean   remove what these commands made in this folder'
	@echo
	@echo 'Each installs what it needs into $(VENV) first. PYTHON=python3.12 chooses the interpreter.'

demo: $(INSTALLED)
	@$(BIN)/python examples/quickstart.py '$(BROKER)'

test: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED_DEV)
	$(BIN)/mypy

bench: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: $(INSTALLED_DEV)
	@scripts/install-rabbitmq
	@$(BIN)/python -m tests.chaos $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@scripts/make-venv '$(PYTHON)' $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo 'Installing aiorpcq into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	@echo 'Installing aiorpcq and its development tools into $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(INSTALLED) $@
