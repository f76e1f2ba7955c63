# Heddle. `make help` lists what there is.
SHELL := /bin/bash
LDFLAGS := -s -w
# The race detector needs a C compiler; where there is none the tests run without it, and say so.
HAVE_CC := $(shell command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 && echo yes)
RACE := $(if $(HAVE_CC),-race)
TOOLS := .cache/tools
export PATH := $(CURDIR)/$(TOOLS):$(PATH)

.PHONY: help build demo test check bench fuzz generate clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

build: ## the binaries, into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o bin/ ./cmd/heddle ./cmd/heddle-proxy ./examples/shop/cmd/shop

demo: build ## a whole mesh on this machine, with an example: bin/heddle up
	bin/heddle up examples/shop

test: ## every test; ends with Go's summary
	@$(if $(RACE),,echo "NOTE: no C compiler found: the tests run WITHOUT the race detector (install gcc to have it)")
	GORACE=atexit_sleep_ms=0 go test $(RACE) ./...

check: ## formatting, vet, generated files in step
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	go vet ./...
	ci/generated

generate: ## everything that is generated: protobuf, policy types, JSON Schema, definitions, the vendored schema, the reference
	go build -C tools -o $(CURDIR)/$(TOOLS)/ github.com/bufbuild/buf/cmd/buf google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc cuelang.org/go/cmd/cue
	cd schema/proxyapi && buf generate
	go run ./schema/v1alpha1/regen
	cd ci && cue cmd generate
	rm -rf cmd/heddle/scaffold && cp -R policy-repo-template cmd/heddle/scaffold && rm -r cmd/heddle/scaffold/cue.mod/pkg
	go run ./internal/refgen

bench: build ## the figures of docs/performance.md
	go run ./internal/meshbench

fuzz: ## a million executions of every fuzz target
	ci/fuzz 1000000

clean: ## what building and running left here
	rm -rf bin .cache .heddle
