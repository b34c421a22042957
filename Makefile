# Everything a newcomer or a contributor runs. A fresh machine needs Python 3.11+ (with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := protos inference_core edge_node cloud_service toolchain examples benchmarks deploy tests
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-joint test-benchmarks faults torture bench-toolchain bench-joint bench-serving lint format protos lock clean
.DEFAULT_GOAL := help

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */|/' | awk -F'|' '{printf "make %-16s %s\n", $$1, $$2}'

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing what is pinned into $(VENV): a minute or two"
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## run edge and cloud, play images, stop the cloud in the middle, print one table
	$(BIN)/tandem demo

test: $(READY)  ## run the tests of everything alone
	$(BIN)/python -m pytest --ignore=tests/benchmarks --ignore=tests/faults --ignore=tests/joint

test-joint: $(READY)  ## run the tests of both services together, as processes
	$(BIN)/python -m pytest tests/joint

test-benchmarks: $(READY)  ## run the tests of what measures
	$(BIN)/python -m pytest tests/benchmarks

faults: $(READY)  ## inject every fault a few times, with and without the protection, and print one table
	$(BIN)/python -m pytest tests/faults --timeout=400 --size=ci $(PYTEST)

torture: $(READY)  ## the same with large counts, for hours; in parts with PYTEST="-k kill", into build/faults.md
	mkdir -p build
	$(BIN)/python -m pytest tests/faults --timeout=0 --size=torture --faults-table=build/faults.md $(PYTEST)

bench-toolchain: $(READY)  ## measure what the toolchain makes; TANDEM_CIFAR10 names the folder with test.zip
	$(BIN)/python -m benchmarks.toolchain --out docs/figures-toolchain.md

bench-serving: $(READY)  ## measure the edge beside ONNX Runtime and other servers; TANDEM_CIFAR10 as above
	$(BIN)/python -m benchmarks.serving --out docs/benchmarks.md

bench-joint: $(READY)  ## measure joint inference over emulated links; TANDEM_CIFAR10 names the folder with test.zip
	$(BIN)/python -m benchmarks.joint

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

format: $(READY)  ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(READY)  ## make the committed stubs from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/open_inference.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/fleet.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. protos/model_file.proto

# With hashes, for every platform, and without the address of any package index.
LOCK := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:  ## pin every dependency anew: services, then everything but PyTorch
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/pip install --quiet uv
	.cache/uv/bin/uv $(LOCK) --extra dev --output-file requirements-dev.lock pyproject.toml
	.cache/uv/bin/uv $(LOCK) --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml
	.cache/uv/bin/uv $(LOCK) --output-file tests/conformance/requirements.lock tests/conformance/requirements.in

clean:  ## remove what was made here
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
