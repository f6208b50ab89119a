# Two commands for a new user: `make run` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test faults lint clean

run: .venv/installed
	$(BIN)/stepsearch run search_spaces/digits.yaml --workers 2 --resume

test: .venv/installed-test
	RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

faults: .venv/installed-test
	STEPSEARCH_FAULTS=full RAY_AUTH_MODE=disabled OMP_NUM_THREADS=1 \
		$(BIN)/pytest tests/faults -n 2 --dist loadfile -o timeout=7200 --durations=10

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@ .venv/installed

clean:
	rm -rf .venv
