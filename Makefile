# Everything here needs Python >= 3.11 and nothing else: `make demo` first.
# Variables: PYTHON (which Python makes .venv), ARGS (for `pipeline dev`), PYTEST_ARGS,
# BENCH, CHAOS_S, CHAOS_JOBS, CHAOS_LIST_INPUT (on, off), CHAOS_SEED, CHAOS_ARGS (see benchmarks/CHAOS.md).

BIN := .venv/bin
.PHONY: setup demo dev test test-slow test-browser test-rabbitmq test-node test-alerts bench stateful chaos chaos-lost fuzz lint format clean
.DEFAULT_GOAL := demo
unexport PYTHONDONTWRITEBYTECODE  # images set it; each of the tests' processes would compile all of ours anew

setup: .venv/.run  ## the virtual environment, with what runs the product on this machine
	@echo '.venv is ready'

.venv/.run: pyproject.toml requirements.txt
	@PYTHON='$(PYTHON)' .ci/setup run

.venv/.dev: pyproject.toml requirements.txt
	@PYTHON='$(PYTHON)' .ci/setup dev

.venv/.bench: pyproject.toml requirements.txt
	@PYTHON='$(PYTHON)' .ci/setup bench

.venv/.browser: pyproject.toml requirements.txt
	@PYTHON='$(PYTHON)' .ci/setup browser

demo: .venv/.run  ## a dozen jobs through all of it
	@$(BIN)/python -m pipeline demo

dev: .venv/.run  ## all of it, kept running; data and keys in .dev
	@$(BIN)/python -m pipeline dev --data .dev $(ARGS)

test: .venv/.bench  ## three at a time: they wait more than they work
	$(BIN)/python -m pytest -n 3 --dist loadgroup $(PYTEST_ARGS)

test-slow: .venv/.dev  ## what takes too long to wait for after every change
	FUZZ_EXAMPLES=10 $(BIN)/python -m pytest -m 'slow and not long' $(PYTEST_ARGS)

test-browser: .venv/.browser  ## the dashboard in Debian's Chromium; leaves pictures of its pages in .screenshots
	@command -v chromium >/dev/null || .ci/install chromium fonts-dejavu-core
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

test-rabbitmq: .venv/.dev  ## the same product on RabbitMQ; wants Debian's rabbitmq-server
	@test -x /usr/lib/rabbitmq/bin/rabbitmq-server || .ci/install rabbitmq-server
	$(BIN)/python -m pytest -m rabbitmq $(PYTEST_ARGS)

test-node: .venv/.dev  ## the README's JavaScript; wants Node.js 18 or newer
	@command -v node >/dev/null || .ci/install nodejs
	$(BIN)/python -m pytest -m node $(PYTEST_ARGS)

test-alerts: .venv/.dev  ## each alert in its trouble, and none in a quiet night; wants Prometheus's promtool
	@command -v promtool >/dev/null || .ci/install prometheus
	$(BIN)/python -m pytest -m promtool $(PYTEST_ARGS)

CHAOS_S ?= 600
CHAOS_JOBS ?= 10000
CHAOS_LIST_INPUT ?= on
chaos: .venv/.dev  ## every trouble at once, then the judgement; the table is saved in .chaos
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_S) --jobs $(CHAOS_JOBS) --list-input $(CHAOS_LIST_INPUT) \
		--seed '$(CHAOS_SEED)' $(CHAOS_ARGS)

chaos-lost: .venv/.dev  ## 200 jobs at a provider that loses a third of its answers
	$(BIN)/python -m tests.chaos --lost --seed '$(CHAOS_SEED)' $(CHAOS_ARGS)

BENCH ?= --save .bench
bench: .venv/.bench  ## two hours of measuring: BENCH='receiver latency --times 7' for a part of it
	$(BIN)/python -m pipeline bench $(BENCH)

stateful: .venv/.dev  ## a long search for an order of events that breaks a promise
	STATEFUL_EXAMPLES=$${STATEFUL_EXAMPLES:-2000} STATEFUL_STEPS=$${STATEFUL_STEPS:-60} \
		$(BIN)/python -m pytest -n 2 -m "long or not long" tests/test_stateful.py

fuzz: .venv/.dev  ## a long search for a request that the API answers in a way nobody is told of
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-300} FUZZ_SEED=$${FUZZ_SEED:-$$$$} \
		$(BIN)/python -m pytest --timeout 3600 tests/test_openapi_fuzz.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .dev .bench .chaos .screenshots build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
