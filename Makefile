# Everything starts with `make`: each target first makes what it needs, from nothing but Python 3.13.

export SAM_CLI_TELEMETRY := 0
# Without bytecode, each of the many processes that tests start compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := python3.13
BIN := .venv/bin
UV_COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.13 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: help setup format lint lint-templates check check-style check-units-first check-units-others coverage audit build build-arm64 build-x86_64 test test-client test-torch test-browser test-flower test-exports test-privacy test-second test-ceph fuzz bench bench-transfers docs docs-serve demo demo-masked deploy requirements clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z0-9_% -]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; \
		do printf '  %-26s %s\n' "$$target" "$$text"; done

setup: .venv/installed ## Make the virtual environment

.venv/requirements: requirements-dev.txt
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo '$(PYTHON) with its venv module is needed: install it (python.org, pyenv, or your system)'; exit 1; }
	@echo 'Installing into .venv; takes about a minute'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

.venv/installed: .venv/requirements pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/python -m compileall -q src layers/gradshard/gradshard_core
	@touch $@

format: setup ## Format the sources and apply the fixes of ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lint: setup ## Check style, types and the templates
	@$(MAKE) --no-print-directory --jobs 2 check-style lint-templates

# cfn-lint runs on one processor, for longer than all else here.
lint-templates: setup
	$(BIN)/cfn-lint --include-experimental --regions ALL_REGIONS --template template.yaml
	$(BIN)/cfn-lint --include-experimental --regions ALL_REGIONS --template keeper/template.yaml
	$(BIN)/sam validate --lint --region us-east-1
	$(BIN)/sam validate --lint --region us-east-1 --template keeper/template.yaml

check: setup ## Check style and types, and run the quick unit tests, in a minute
	@$(MAKE) --no-print-directory --jobs 3 --output-sync check-style check-units-first check-units-others

# Clients may have Python 3.11, which lacks some of the standard library of 3.13. The pinned numpy's types
# are for 3.12 and later, so calls of numpy are not checked again.
ON_3_11 := --python-version 3.11 --disable-error-code call-overload --disable-error-code operator

# mypy runs on one processor: beside the tests it takes no time of its own.
check-style: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy $(ON_3_11) src layers/gradshard/gradshard_core

# Two processes of their own, each with about half of the work: workers of pytest-xdist would find all
# tests twice and send each result, which takes a tenth more.
FIRST_UNITS := tests/unit/rounds tests/unit/trainings tests/unit/aggregation

check-units-first: setup
	$(BIN)/pytest --quiet -m 'not slow' -p no:cacheprovider $(FIRST_UNITS)

check-units-others: setup
	$(BIN)/pytest --quiet -m 'not slow' $(FIRST_UNITS:%=--ignore=%) tests/unit

# OPTIONS are pip-audit's, such as --ignore-vuln.
audit: setup ## Check the pinned dependencies against the package index and known vulnerabilities
	$(BIN)/python audit.py $(OPTIONS)

build: setup ## Build for the architecture of samconfig.toml's [default]
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/sam build

build-arm64 build-x86_64: build-%: setup ## Build for one architecture, on any host
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/sam build --build-dir .aws-sam/$*/build --parameter-overrides Architecture=$*

# Tests mostly wait for the engine, so there are more workers than processors. Each starts an engine of its own.
# Files go to the workers in the order of tests/conftest.py.
WORKERS := 4

test: setup ## Run the unit, integration and end-to-end tests, and measure their coverage
	COVERAGE_CORE=sysmon $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=

# Names or paths of interpreters; what is not here is said and passed over.
CLIENT_PYTHONS := python3.11 python3.12 python3.13
TEST_PACKAGES := hypothesis pytest pytest-socket safetensors scikit-learn

test-client: setup ## Run the unit tests of the built wheel without extras, on Python 3.11 to 3.13
	@rm -rf dist && $(BIN)/python -m hatchling build --target wheel >/dev/null
	@tested=; for python in $(CLIENT_PYTHONS); do \
		"$$python" -c '' 2>/dev/null || { echo "$$python is not here: NOT tested"; continue; }; \
		echo "$$python"; \
		$(BIN)/uv venv --quiet --clear --python "$$python" .venv-client || exit 1; \
		$(BIN)/uv pip install --quiet --python .venv-client/bin/python dist/*.whl $(TEST_PACKAGES) || exit 1; \
		.venv-client/bin/python -m pytest -q -p no:cacheprovider tests/unit || exit 1; \
		tested="$$tested $$python"; \
	done; echo "tested with:$${tested:- none}"; test -n "$$tested"

# Plain `torch` brings gigabytes of CUDA where pip finds no other build; a CPU build does.
TORCH_PYTHON := $(PYTHON)
TORCH := torch
TORCH_TESTS := tests/unit/test_torch.py tests/unit/updates/test_tensors.py tests/unit/updates/test_conversion.py tests/docs/test_torch.py

test-torch: setup ## Run the tests that need PyTorch, in an environment of their own
	$(TORCH_PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install --quiet --disable-pip-version-check $(TORCH) . $(TEST_PACKAGES)
	.venv-torch/bin/python -c 'import torch; print("PyTorch", torch.__version__)'
	.venv-torch/bin/python -m pytest -q -p no:cacheprovider $(TORCH_TESTS)

# A Chromium that is here, the one that CHROMIUM= names, or playwright's own; SCREENSHOTS=FOLDER keeps
# what it saw.
test-browser: docs ## Test the report page and the site in headless Chromium
	$(PYTHON) -m venv .venv-browser
	.venv-browser/bin/pip install --quiet --disable-pip-version-check playwright . $(TEST_PACKAGES)
	CHROMIUM="$(CHROMIUM)" SCREENSHOTS="$(SCREENSHOTS)" \
		.venv-browser/bin/python -m pytest -q -p no:cacheprovider tests/browser

# Not into .venv, where everything is pinned.
# Not FLOWER_PYTHON, by which the benchmarks are told of a Python that has it.
FLOWER_BASE_PYTHON := $(PYTHON)
FLOWER := flwr[simulation]

test-flower: setup ## Run the tests that need Flower, in an environment of their own, with a local engine
	$(FLOWER_BASE_PYTHON) -m venv .venv-flower
	.venv-flower/bin/pip install --quiet --disable-pip-version-check '$(FLOWER)' '.[masked]' $(TEST_PACKAGES)
	.venv-flower/bin/python -c 'import flwr; print("Flower", flwr.__version__)'
	$(BIN)/python -m tests.flower .venv-flower/bin/python

# Not into .venv, where everything is pinned.
test-exports: setup ## Export a training's metrics with the real MLflow and TensorBoard, in an environment of their own
	$(PYTHON) -m venv .venv-exports
	.venv-exports/bin/pip install --quiet --disable-pip-version-check '.[mlflow,tensorboard]' $(TEST_PACKAGES)
	.venv-exports/bin/python -m pytest -q -p no:cacheprovider tests/unit/exports

# Not into .venv: it needs an older attrs than ours.
test-privacy: setup ## Run the tests that need dp-accounting, in an environment of their own
	$(PYTHON) -m venv .venv-privacy
	.venv-privacy/bin/pip install --quiet --disable-pip-version-check '.[privacy,masked]' $(TEST_PACKAGES)
	.venv-privacy/bin/python -m pytest -q -p no:cacheprovider tests/unit/client/test_privacy_accounting.py \
		tests/examples/test_privacy.py

# Not into .venv: it needs older releases than ours.
.venv-second/installed: tests/localstack/requirements.txt
	$(PYTHON) -m venv --clear .venv-second
	.venv-second/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

test-second: setup .venv-second/installed ## Run rounds on LocalStack, a second engine, in an environment of its own
	LOCALSTACK_PYTHON=.venv-second/bin/python $(BIN)/pytest --quiet tests/localstack

# Debian's packages: radosgw ceph-mon ceph-osd.
test-ceph: setup ## Check signatures and tickets against Ceph's S3 gateway, if it is installed
	CEPH_GATEWAY=radosgw $(BIN)/pytest --quiet tests/ceph

# Atheris has no wheels but for Linux on x86-64, so it is no requirement of `make setup`.
FUZZ_TARGETS := update header pair report key ticket units entries
FUZZ_RUNS := 1000000

fuzz: setup ## Fuzz the parsers of client data with FUZZ_RUNS inputs for each target
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --disable-pip-version-check atheris==3.1.0 .
	@mkdir -p .fuzz && cd .fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p $$target; echo "$$target: $(FUZZ_RUNS) inputs"; \
		PYTHONPATH=$(CURDIR):$(CURDIR)/src:$(CURDIR)/layers/gradshard ../.venv-fuzz/bin/python -m tests.fuzz $$target $$target \
			-runs=$(FUZZ_RUNS) >$$target.log 2>&1 || { tail -30 $$target.log; exit 1; }; \
		grep '^stat::' $$target.log; \
	done

# `make bench OPTIONS="--quick --json figures.json"`; see benchmarks/README.md.
bench: setup ## Measure the aggregator beside its limit and other implementations (15 to 20 minutes)
	$(BIN)/python -m benchmarks $(OPTIONS)

# obstore is no requirement of `make setup`: nothing else needs it.
bench-transfers: setup ## Measure submitting and fetching beside other clients of S3 (about 10 minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.transfers $(OPTIONS)

# -W: a link or an anchor that leads nowhere fails, as do docstrings that cannot be read.
SPHINX := $(BIN)/sphinx-build --nitpicky --fail-on-warning --keep-going --quiet --conf-dir docs

docs: setup ## Build the documentation site into site/
	@rm -rf site
	$(SPHINX) . site
	@echo 'site/index.html'

docs-serve: docs ## Show the site at http://localhost:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

demo: setup ## Train a model with the local engine, then average updates of the size of ResNet-18
	$(BIN)/python examples/digits/demo.py

demo-masked: setup ## Train a model with masked rounds, of which nobody sees a single update
	$(BIN)/python examples/digits/masked.py

deploy: setup ## Deploy to AWS; asks for every setting
	$(BIN)/gradshard deploy --guided

requirements: setup ## Pin the newest allowed versions of the dependencies
	$(UV_COMPILE) --upgrade --extra local --group dev --group docs --output-file requirements-dev.txt pyproject.toml
	$(UV_COMPILE) --upgrade --constraint requirements-dev.txt --group layer \
		--output-file layers/gradshard/requirements.txt
	$(UV_COMPILE) --upgrade --constraint requirements-dev.txt --group keeper \
		--output-file layers/keeper/requirements.txt
	$(UV_COMPILE) --upgrade --output-file tests/localstack/requirements.txt tests/localstack/requirements.in
	$(UV_COMPILE) --upgrade --output-file benchmarks/requirements.txt benchmarks/requirements.in

clean: ## Remove everything that these targets made
	rm -rf .venv .venv-client .venv-torch .venv-browser .venv-exports .venv-flower .venv-privacy .venv-second .venv-fuzz .fuzz .aws-sam .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site
	find . -name __pycache__ -prune -exec rm -rf {} +
