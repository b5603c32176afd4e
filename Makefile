# `make help` lists the commands. Everything lives in .venv and target; nothing else is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One cargo profile for all tests (see Cargo.toml), so that the dependencies are compiled once.
PROFILE := fast
MODELS := target/test-models
# What ruff looks at.
SOURCES := python tests/python tests/clients examples scripts benches docs notebooks

.DEFAULT_GOAL := help
.PHONY: help dspy-rs bench bench-check bench-models bench-shapes bench-kernels bench-peers demo wheels test-wheels test test-rust test-python test-newest-dspy clients notebooks test-notebooks ray loom fuzz check format lint stubs docs check-cuda develop models clean

help: ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: ## Run examples/quickstart.py on an installed wheel; built first if there is none (WHEEL=file or INDEX=address names one)
	@WHEEL="$(WHEEL)" INDEX="$(INDEX)" $(PYTHON) scripts/demo.py

# The tools and the test dependencies, pinned to what CI runs.
$(VENV)/.ready: scripts/requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-dev.txt
	touch $@

develop: $(VENV)/.ready ## Build the module into .venv, quickly
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --quiet --profile $(PROFILE)

models: develop ## Fetch the two small models that the tests use (once, into the cache)
	$(BIN)/python scripts/test_models.py $(MODELS)

test: test-rust test-python ## All tests, in Rust and in Python

test-rust: models
	TALLOW_TEST_MODELS=$(abspath $(MODELS)) cargo test --profile $(PROFILE) --quiet --features stream

test-python: models
	TALLOW_TEST_MODELS=$(abspath $(MODELS)) $(BIN)/python -m pytest

test-newest-dspy: models ## The tests of the DSPy side on DSPy's newest release, if that is not the pinned one
	TALLOW_TEST_MODELS=$(abspath $(MODELS)) $(BIN)/python scripts/newest_dspy.py

clients: models ## Real clients (OpenAI, DSPy, LiteLLM, LangChain, ...) against `tallow serve` (ARGS="openai dspy" chooses)
	TALLOW_TEST_MODELS=$(abspath $(MODELS)) $(BIN)/python scripts/clients.py $(ARGS)

test-notebooks: models ## Run the notebooks, and compare what they show with what is committed
	$(BIN)/python scripts/notebooks.py $(ARGS)

notebooks: models ## Run the notebooks and keep what they show (ARGS=04 chooses)
	$(BIN)/python scripts/notebooks.py --write $(ARGS)

# Ray has many requirements of its own, so it lies in an environment before .venv.
RAY := target/ray

$(RAY)/.ready: scripts/requirements-ray.txt $(VENV)/.ready
	test -x $(RAY)/bin/python || $(BIN)/python -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-ray.txt
	echo "import site; site.addsitedir('$$($(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth
	touch $@

ray: models $(RAY)/.ready ## The tests on Ray, and its examples (some minutes; not in `make check`)
	TALLOW_TEST_MODELS=$(abspath $(MODELS)) $(RAY)/bin/python -m pytest -m ray tests/python/test_ray.py

loom: ## The worker pool's dispatch in every order of its steps (half a minute, once loom is built)
	CARGO_TARGET_DIR=$(abspath target/loom) cargo test --release --quiet --manifest-path tests/loom/Cargo.toml

fuzz: ## libFuzzer over the readers of files, a million inputs each (ARGS="gguf 100000" chooses; needs a C++ compiler)
	$(PYTHON) scripts/fuzz.py $(ARGS)

check: format lint stubs docs check-cuda test test-newest-dspy test-notebooks ## What CI runs

format: $(VENV)/.ready ## Formatting, checked (fix it with `cargo fmt` and `ruff format`)
	cargo fmt --check
	$(BIN)/ruff format --check $(SOURCES)

lint: $(VENV)/.ready ## Clippy without warnings, with and without Python; ruff
	cargo clippy --profile $(PROFILE) --quiet --all-targets --features stream -- -D warnings
	cargo clippy --profile $(PROFILE) --quiet --features python -- -D warnings
	cargo clippy --profile $(PROFILE) --quiet --no-default-features -- -D warnings
	$(BIN)/ruff check $(SOURCES)

stubs: develop ## The type stubs against the built module
	$(BIN)/python -m mypy.stubtest tallow._core --ignore-disjoint-bases
	$(BIN)/python -m mypy python/tallow

docs: develop ## The documentation, strictly, into target/docs
	rm -rf target/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs target/docs

check-cuda: ## Type-check the CUDA build with a stand-in compiler
	PATH=$(abspath scripts/stub-cuda):$$PATH CUDA_COMPUTE_CAP=80 CUDA_HOME=$(abspath target/stub-cuda) \
		cargo check --profile $(PROFILE) --quiet --features cuda

bench: models bench-models ## Time tallow beside the installed peers; writes benches/RESULTS.md, results.json, results.svg and targets.json
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --quiet --release
	$(BIN)/python benches/compare.py $(ARGS)
	$(MAKE) bench-shapes

bench-check: models bench-models ## Take the figures of the table of targets, and say which are 5 % below the last landed ones (ARGS='--rounds 3')
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --quiet --release
	$(BIN)/python benches/compare.py --targets --into target/bench $(ARGS)
	$(BIN)/python benches/targets.py

# Large models of random weights, brought to Q4_K_M by llama.cpp (`make bench-peers PEERS=llama.cpp`); without it there are none.
LARGE := smollm2-1.7b qwen3-0.6b

bench-models: models ## Make the large models of `make bench` (needs 5 GB on the way, 1.5 GB stay)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "gguf>=0.19"
	mkdir -p target/shapes
	for name in $(LARGE); do \
		test -f target/shapes/$$name-q4_k_m.gguf && continue; \
		test -x target/peers/llama.cpp/bin/python || { echo "$$name: llama.cpp is not installed"; continue; }; \
		case $$name in smollm2*) tokenizer="--tokenizer $$(ls $(MODELS)/SmolLM2*)";; *) tokenizer=;; esac; \
		$(BIN)/python benches/shapes.py $$name target/shapes/$$name.f16 $$tokenizer && \
		target/peers/llama.cpp/bin/python benches/peers/quantize.py target/shapes/$$name.f16 \
			target/shapes/$$name-q4_k_m.gguf || exit 1; \
		rm target/shapes/$$name.f16; \
	done

SHAPES := qwen3.5-0.8b lfm2-350m granite-4-h-350m olmoe-1b-7b-4-layers gpt-oss-20b-2-layers

bench-shapes: models ## The same beside llama.cpp, on random weights in the shapes of further families (SHAPES='lfm2-350m' chooses)
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --quiet --release
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "gguf>=0.19"
	mkdir -p target/shapes
	for name in $(SHAPES); do \
		test -f target/shapes/$$name.gguf || $(BIN)/python benches/shapes.py $$name target/shapes/$$name.gguf || exit 1; \
	done
	$(BIN)/python benches/compare.py --only tallow,llama.cpp --sizes 1,8,32 --depths none \
		$(foreach name,$(SHAPES),--model target/shapes/$(name).gguf) $(ARGS)
	$(BIN)/python benches/memory.py $(foreach name,$(SHAPES),target/shapes/$(name).gguf)

bench-kernels: ## Time single kernels by criterion (ARGS='"product Q4_K"' chooses)
	cargo bench --bench kernels -- $(ARGS)

bench-peers: ## Install the benchmark's peers into target/peers, each into an environment of its own
	$(PYTHON) benches/peers/install.py $(PEERS)

# The compilers and auditors of wheels, apart from what the tests need.
WHEEL_TOOLS := target/packaging/tools

$(WHEEL_TOOLS)/.ready: scripts/requirements-wheels.txt
	test -x $(WHEEL_TOOLS)/bin/python || $(PYTHON) -m venv $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-wheels.txt
	touch $@

wheels: $(WHEEL_TOOLS)/.ready ## Build this machine's wheels and the sdist into dist/ and check them (docs/packaging.md; ARGS='build abi3' chooses)
	$(WHEEL_TOOLS)/bin/python scripts/wheels.py $(ARGS)

test-wheels: ## Install the wheels in dist/ into fresh environments of every Python found, and use them (ARGS='--python python3.12' chooses)
	$(PYTHON) scripts/test_wheel.py $(ARGS)

dspy-rs: ## Run a dspy-rs program on a model in its own process (ARGS=MODEL chooses; the first time it compiles 370 packages)
	CARGO_TARGET_DIR=$(abspath target/dspy-rs) cargo run --quiet --manifest-path examples/dspy-rs/Cargo.toml -- $(ARGS)

clean: ## Remove what was built
	rm -rf target $(VENV)
