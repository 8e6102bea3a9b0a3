# Apiary needs Go and make to build, and npm's configuration to fetch an engine. `make` lists the targets.

SHELL       := /bin/sh
GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X main.version=$(VERSION)
GOBUILD     := CGO_ENABLED=0 $(GO) build -trimpath
TOOL        := $(GO) tool -modfile=.ci/tools/go.mod
LLAMA       := workers/llama/bundle/apiary-llama
SOURCES     := $(shell find . -name '*.go' -not -path './.git/*') go.mod go.sum config.hcl $(wildcard vendors/builtin/models/*)

# The race detector needs a C compiler; everything else builds without one.
ifeq ($(origin CC),default)
CC          := $(shell command -v gcc || command -v clang || command -v cc)
endif

# By default a program under the race detector waits a second at its end.
export GORACE := atexit_sleep_ms=0
export GOTOOLCHAIN := local
# The compiler of AssemblyScript that test-parts fetches, for the tests of plugins.
ifndef ASC
export ASC = $(shell ls -d "$${XDG_CACHE_HOME:-$$HOME/.cache}"/apiary-test/assemblyscript-*/node_modules/.bin/asc "$$HOME"/Library/Caches/apiary-test/assemblyscript-*/node_modules/.bin/asc 2>/dev/null | head -n 1)
endif

.DEFAULT_GOAL := help
.PHONY: help build build-all run test test-parts test-net fmt vet staticcheck deadcode lint proto bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: bin/apiary ## build bin/apiary, with the native worker inside it

# Dynamically linked although cgo is off: the engine's libraries are loaded at run time, which needs libc and libffi.
$(LLAMA): $(SOURCES)
	@$(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./workers/llama/cmd/apiary-llama

bin/apiary: $(LLAMA) $(SOURCES)
	@start=$$(date +%s); $(GOBUILD) -tags embedllama -ldflags '$(LDFLAGS)' -o $@ . && \
		echo "built bin/apiary $(VERSION) in $$(( $$(date +%s) - start )) s" >&2

# Another platform's program, for `apiary hive install`. Its native worker is put in by an overlay, so that the one of this platform stays.
bin/apiary-linux-%: $(SOURCES)
	@mkdir -p bin/cross
	@GOOS=linux GOARCH=$* $(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/cross/apiary-llama-$* ./workers/llama/cmd/apiary-llama
	@printf '{"Replace":{"%s":"%s"}}\n' '$(CURDIR)/$(LLAMA)' '$(CURDIR)/bin/cross/apiary-llama-$*' >bin/cross/overlay-$*.json
	@GOOS=linux GOARCH=$* $(GOBUILD) -tags embedllama -overlay=bin/cross/overlay-$*.json -ldflags '$(LDFLAGS)' -o $@ .
	@echo "built $@ $(VERSION)" >&2

build-all: build bin/apiary-linux-amd64 bin/apiary-linux-arm64 ## build for all platforms that hives run on, for `apiary hive install`

run: build ## build, start an agent in the background when none runs, and tell a story
	@bin/apiary run

test: test-parts lint ## run everything: format, vet, staticcheck, dead code, layers, tests, end-to-end scripts
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')); \
		if [ -n "$$unformatted" ]; then echo "gofmt would change: $$unformatted"; exit 1; fi
ifeq ($(CC),)
	@echo "no C compiler found: the tests run without the race detector"
	CGO_ENABLED=0 $(GO) test -timeout 15m ./...
else
	CGO_ENABLED=1 $(GO) test -race -timeout 15m ./...
endif

test-parts: ## fetch the real engine and model that tests use, once, into the cache folder
	@.ci/test-parts

test-net: ## test several machines, as network namespaces: needs root
	@.ci/test-net

fmt: ## format the sources
	gofmt -w $$(find . -name '*.go' -not -path './.git/*')

vet: ## run go vet, also for macOS, which must compile
	$(GO) vet ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...

staticcheck: ## run staticcheck
	$(TOOL) staticcheck ./...

deadcode: ## list functions that no executable reaches
	@out=$$($(TOOL) deadcode -tags embedllama . ./workers/llama/cmd/apiary-llama ./examples/plugin-go ./examples/provisioner-go); if [ -n "$$out" ]; then echo "$$out"; exit 1; fi

proto: ## generate the code of the plugin contract from plugins/proto
	@mkdir -p bin/tools
	@cd .ci/tools && $(GO) build -o ../../bin/tools/ ./protogen google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	@PATH="$(CURDIR)/bin/tools:$$PATH" protogen plugins/proto protoc-gen-go protoc-gen-go-grpc
	@$(GO) test -count=1 -run TestNothingBreaks ./plugins/proto -args add >/dev/null

lint: vet staticcheck deadcode ## vet, staticcheck and deadcode

bench: build ## measure the relay, the plugins and the worker against their peers
	@.ci/bench

clean: ## remove what was built
	rm -rf bin $(LLAMA)
