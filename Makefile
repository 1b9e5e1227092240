# What people and CI run. "make help" lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

FUZZTIME ?= 30s
BENCH    ?= .
spectral := tools/node/node_modules/.bin/spectral
clients  := internal/e2e/clients
# Modules of their own, whose dependencies are none of the programs'.
nested   := clients/go examples/durabletask deploy
inside    = @set -e; for dir in $(1); do echo "in $$dir"; (cd $$dir && $(2)); done
# A copy of the Go vulnerability database, for machines that cannot reach it. Where there is one, make check looks into it:
# that takes ten seconds and needs no network.
VULNDB   ?= $(lastword $(sort $(wildcard ../shared/data/go-vulndb-*.tar.gz)))

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: build
build: ## static binaries of both programs into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/ ./cmd/...

.PHONY: check
check: modules vet lint imports generated documents $(if $(VULNDB),vuln) ## everything that needs no running: before every commit

.PHONY: vet
vet:
	$(call inside,. $(nested),go vet ./...)

.PHONY: lint
lint: .tools/golangci-lint
	.tools/golangci-lint config verify
	$(call inside,. $(nested),'$(CURDIR)/.tools/golangci-lint' run)

.PHONY: fmt
fmt: .tools/golangci-lint ## format all Go code
	$(call inside,. $(nested),'$(CURDIR)/.tools/golangci-lint' fmt)

.PHONY: imports
imports: ## who may import whom, and the other rules of the tree
	go test -count=1 ./internal

.PHONY: generated
generated: ## generated documents are up to date
	go test -count=1 ./docs

.PHONY: documents
documents: $(spectral) ## the OpenAPI and AsyncAPI documents obey their rules
	! grep -n '"resolved"' tools/node/package-lock.json # no hosts: see .npmrc
	$(spectral) lint --ruleset tools/node/spectral.yaml --fail-severity hint schemas/openapi.yaml schemas/asyncapi.yaml

.PHONY: generate
generate: ## write the generated documents
	go test ./docs -update

.PHONY: tidy
tidy: ## go mod tidy, in all modules
	$(call inside,. $(nested) tools,go mod tidy)

.PHONY: modules
modules: ## go.mod and go.sum are complete, minimal and unharmed
	go mod verify
	$(call inside,. $(nested) tools,go mod tidy -diff)

.PHONY: test
test: .tools/gotestsum test-needs $(clients)/node_modules/.package-lock.json ## all tests with the race detector; installs what they need
	tools/test.sh
	$(call inside,$(filter-out deploy,$(nested)),'$(CURDIR)/tools/test.sh')
	cd deploy && ../.tools/gotestsum --format pkgname-and-test-fails -- -timeout 10m ./...

.PHONY: test-needs
test-needs:
	tools/install-test-needs.sh

# Clients that others wrote, at the versions that the lock has. It names no hosts: see .npmrc.
$(clients)/node_modules/.package-lock.json: $(clients)/package-lock.json $(clients)/package.json | test-needs
	@command -v npm >/dev/null || { echo 'npm is not installed (apt-get install nodejs npm): the tests with foreign clients need it' >&2; exit 1; }
	! grep -n '"resolved"' $<
	cd $(clients) && npm ci --no-progress
	@touch $@

.PHONY: bench
bench: ## all benchmarks (BENCH=regexp)
	go test -run='^$$' -bench='$(BENCH)' -benchmem ./...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) tools/fuzz.sh

.PHONY: vuln
vuln: .tools/govulncheck ## known vulnerabilities in code that is reached
	VULNDB='$(VULNDB)' tools/vuln.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .tools tools/node/node_modules $(clients)/node_modules

# Tools are built from the versions in tools/go.mod, once.
golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
gotestsum     := gotest.tools/gotestsum
govulncheck   := golang.org/x/vuln/cmd/govulncheck
benchstat     := golang.org/x/perf/cmd/benchstat

.tools/%: tools/go.mod tools/go.sum
	@echo "building $* (once; takes up to a few minutes)"
	cd tools && GOBIN='$(CURDIR)/.tools' go install $($*)
	@touch $@

# Those that are not in Go: the versions in tools/node/package-lock.json.
$(spectral): tools/node/package.json tools/node/package-lock.json tools/node/.npmrc
	tools/install-check-needs.sh
	@echo "installing $(@F) (once; takes half a minute)"
	cd tools/node && npm ci --no-progress
	@touch $@
