# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
ALL ?= .venv-all

.PHONY: demo test test-all check format bench systems clean

demo: $(INSTALLED)
	$(BIN)/maskloom demo --out demo

test: $(INSTALLED)
	$(BIN)/pytest

# Also the tests that need Ray or an S3 server, which `make test` leaves out; in an environment of their own.
test-all: $(ALL)/.installed
	$(ALL)/bin/pytest -rs

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/ensemble_prediction.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/startup.py

# Every published system at smoke scale, into runs/systems/; DATA=DIR takes photos from there, else they are generated.
systems: $(INSTALLED)
	$(BIN)/python benchmarks/systems.py $(if $(DATA),--data "$(DATA)")

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,pretrained]"
	touch $@

$(ALL)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ALL)
	$(ALL)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[all-tests]"
	touch $@

clean:
	rm -rf $(VENV) $(ALL) demo
