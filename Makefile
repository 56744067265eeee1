# One command each; `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables

GO ?= go
PYTHON ?= python3
TOOL := $(GO) tool -modfile=.ci/tools.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 10s
BENCH ?= .
KEEP ?=
CI ?=

# The Envoy of tests and the demo. ENVOY=/path/to/envoy uses yours instead.
ENVOY_VERSION := 1.40.0
ENVOY ?= $(CURDIR)/.venv/envoy-$(ENVOY_VERSION)

# The Python of tests that talk to Python programs: tokenizers, libzmq.
# PEERS=/path/to/python uses one that has the packages of .ci/requirements.txt.
PEERS ?= $(CURDIR)/.venv/python

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: build
build: ## build bin/warmpath and bin/enginesim
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/warmpath ./cmd/enginesim

.PHONY: demo
demo: build envoy ## three engines, a real Envoy, three strategies, one table (KEEP=1 leaves it running)
	$(GO) run ./benchmarks demo $(if $(KEEP),--keep) --warmpath bin/warmpath --enginesim bin/enginesim --envoy '$(ENVOY)'

# Allocation tests mean something only without the race detector; races are
# found only with it, and it needs a C compiler.
.PHONY: test
test: export WARMPATH_TEST_ENVOY := $(ENVOY)
test: export WARMPATH_TEST_PYTHON := $(PEERS)
test: envoy peers ## run all tests, plainly and again with the race detector
	@echo '== tests'
	$(GO) test -shuffle=on -timeout 15m ./...
	@if command -v "$$($(GO) env CC)" >/dev/null; then \
		echo '== tests with the race detector'; \
		set -x; CGO_ENABLED=1 $(GO) test -race -shuffle=on -timeout 20m ./...; \
	elif [[ '$(CI)' == true ]]; then \
		echo 'no C compiler, which the race detector needs, and CI=true asks for it; install gcc' >&2; exit 1; \
	else \
		echo '== NOT tested with the race detector: it needs a C compiler, install gcc'; \
	fi

.PHONY: lint
lint: ## check format, vet, staticcheck
	@bad="$$($(TOOL) gofumpt -d .)" || [[ -n "$$bad" ]]; if [[ -n "$$bad" ]]; then \
		echo "$$bad"; echo 'not formatted; run: make format' >&2; exit 1; fi
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

.PHONY: format
format: ## format all Go files
	$(TOOL) gofumpt -w .

.PHONY: bench
bench: ## run the benchmarks (BENCH=regexp)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (10s)
	@for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime '$(FUZZTIME)' "$$pkg"; \
		done; \
	done

.PHONY: mutants
mutants: ## plant bugs in the index, one at a time, and demand that its tests find each
	$(GO) test -tags mutants -run Mutants -timeout 30m ./kvindex

.PHONY: envoy
envoy: $(ENVOY) ## install Envoy below .venv, unless ENVOY=/path is given
	@echo 'Envoy: $(ENVOY)'

ifeq ($(origin ENVOY),file)
$(ENVOY): .ci/install-envoy
	PYTHON='$(PYTHON)' .ci/install-envoy '$(ENVOY_VERSION)' '$@'
else
$(ENVOY):
	@echo 'ENVOY=$(ENVOY): no such file; give the path of an envoy binary' >&2; exit 1
endif

.PHONY: peers
peers: $(PEERS) ## install the Python peers of the tests below .venv, unless PEERS=/path is given
	@echo 'Python peers: $(PEERS)'

ifeq ($(origin PEERS),file)
$(PEERS): .ci/install-peers .ci/requirements.txt
	PYTHON='$(PYTHON)' .ci/install-peers '$@'
else
$(PEERS):
	@echo 'PEERS=$(PEERS): no such file; give the path of a Python' >&2; exit 1
endif

.PHONY: clean
clean: ## remove what was built and installed here
	rm -rf bin .venv .tmp
