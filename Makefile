# `make demo` and `make test` do everything, from nothing: each makes .venv and installs into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/demo

.PHONY: install demo test slurm-test lint clean

install: $(VENV)/.installed

# constraints.txt pins every package, so that an install next year is the one that was tested
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The whole path: scenes -> shards -> pretraining (2 processes, ZeRO-2) -> fine-tuning -> test -> a page.
demo: install
	rm -rf demo $(RUNS)
	$(BIN)/itm shards demo --out demo
	$(BIN)/itm train configs/demo_pretrain.yaml run.dir=$(RUNS)/pretrain --processes 2
	$(BIN)/itm train configs/demo_finetune.yaml run.dir=$(RUNS)/finetune --processes 2
	$(BIN)/itm eval $(RUNS)/finetune --data demo/test --out $(RUNS)/test.json
	$(BIN)/itm report $(RUNS)/pretrain $(RUNS)/finetune --data demo/test --out $(RUNS)/report.html

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slurm'

# On a Slurm of three nodes that is started for it (root, Debian's packages) and removed again, however this ends.
# Where it cannot be started the tests are skipped, and the last lines say why.
slurm-test: install
	$(BIN)/python -m pytest -m slurm tests/slurm $(PYTEST_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo runs build *.egg-info
