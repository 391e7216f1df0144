# Every target sets up .venv first, so that a fresh machine needs Python 3.11 (or later) and make.

PYTHON ?= python3
WORKERS ?= 2
TOPOLOGIES ?= v5e:2x2

BIN := .venv/bin
STAMP := .venv/.installed
LIBTPU := .cache/libtpu
WITH_LIBTPU := PYTHONPATH=$(LIBTPU) ALLOW_MULTIPLE_LIBTPU_LOAD=1
SHELL_SCRIPTS := .ci/run $(wildcard tpu_scripts/*.sh tpu_scripts/*/*.sh tpu_scripts/slurm/*.sbatch)

# Compiled programs are kept between runs: tests and examples are made of many small ones.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

.PHONY: help setup quickstart test slow processes smoke lint typecheck format docs report publish aot plans bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with the exact versions tested

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"kd_jax needs Python 3.11 or later; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(STAMP) ## distil, unlearn and merge in small, under three minutes on two cores
	$(BIN)/python -m experiments.quickstart

# Two workers, a core each: numerical libraries inside them must not start a thread a core too.
# worksteal keeps the tests of a file, which share compiled programs, mostly on one worker.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal

test: $(STAMP) ## run the tests but those of `slow` and `processes`; WORKERS=n for n processes
	$(PYTEST) -n $(WORKERS) -m "not multiprocess and not slow"

slow: $(STAMP) ## run the tests that take some seconds each: experiments, trainings, laws
	$(PYTEST) -n $(WORKERS) -m "slow and not multiprocess"

processes: $(STAMP) ## run the tests that start several processes of jax, one after the other
	$(PYTEST) -n 0 -m multiprocess

smoke: $(STAMP) ## run every experiment at smoke, one process a family, WORKERS at once
	@mkdir -p .cache/smoke; families=$$($(BIN)/python -m tools.smoke --families) || exit; \
	echo "$$families" | xargs -P $(WORKERS) -I{} sh -c '$(BIN)/python -m tools.smoke {} \
	    > .cache/smoke/{} 2>&1; code=$$?; cat .cache/smoke/{}; exit $$code'

lint: $(STAMP) ## style, formatting, import contracts, shell scripts, the API reference
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/python -m tools.api_reference --check

typecheck: $(STAMP) ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP) ## format the code and sort its imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write docs/api.md from the docstrings
	$(BIN)/python -m tools.api_reference

report: $(STAMP) ## write REPRODUCTIONS.md from the published results
	$(BIN)/python -m kd_jax.launch.report

publish: $(STAMP) ## publish RUN=runs/...: copy its small files to experiments/results, then report
	@test -n "$(RUN)" || { echo "name a run: make publish RUN=runs/FAMILY/MODULE/PRESET-HASH"; exit 2; }
	$(BIN)/python -m kd_jax.launch.publish "$(RUN)"

# In a folder of its own: where libtpu is installed, jax looks for a TPU at every start.
$(LIBTPU)/.installed: constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --target $(LIBTPU) --upgrade \
	    --constraint constraints.txt libtpu
	touch $@

# An experiment for each model and shape of step; the other experiments of unlearning repeat them.
PLANNED := distillation.kd_digits merging.digits_merge scaling.language_models \
    unlearning.npo_tofu unlearning.saliency_masks unlearning.latent_adversarial

aot: $(STAMP) $(LIBTPU)/.installed ## compile smoke presets, and what tests ask for, for TPUs that are not there
	$(WITH_LIBTPU) $(BIN)/python -m kd_jax.launch.plan $(PLANNED:%=experiments.%) \
	    --presets smoke --topologies $(TOPOLOGIES)
	$(WITH_LIBTPU) $(PYTEST) -n $(WORKERS) -m libtpu

plans: $(STAMP) $(LIBTPU)/.installed ## plan 1B, 7B and 70B models on large slices; writes docs/scaling.md (an hour)
	$(WITH_LIBTPU) $(BIN)/python -m tools.scaling

bench: $(STAMP) ## time ours against hand-written references; writes bench.json
	$(BIN)/python -m benchmarks

clean: ## remove .venv and every cache
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
