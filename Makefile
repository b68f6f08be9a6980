# `make` lists the targets. `make demo` and `make test` work from a bare clone: they make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint bench bench-streams soak clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)   ## train on MNIST in batches and online, show them side by side, write report.html
	$(BIN)/millstream compare mnist --fetch --model mlp:256 --model reference --seeds 5 --seconds 120 --report report.html

test: $(READY)   ## the fast tests, two minutes
	$(BIN)/pytest -q -n 2 -m "not slow and not data"

test-all: $(READY) ## every test, the slow ones and those that fetch data too
	$(BIN)/pytest -q -n 2

lint: $(READY)   ## style, types and the direction of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps deep-river
	@touch $(PEERS)

bench: $(PEERS)  ## the measurements that the README quotes, other libraries' beside them
	$(BIN)/python benchmarks/overhead.py && $(BIN)/python benchmarks/throughput.py && $(BIN)/python benchmarks/reading.py

bench-streams: $(PEERS) ## accuracy with no rate given, beside fixed rates and other libraries; three hours, resumes
	$(BIN)/python benchmarks/streams.py --document docs/learning-rates.md

soak: $(READY)   ## ten thousand kills, a thousand power cuts, damaged files, planted bugs; some hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mfusepy
	$(BIN)/python -m soak --log soak.jsonl

check: lint      ## exactly what CI runs
	$(MAKE) test-all

clean:           ## remove the environment and all that was built
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
