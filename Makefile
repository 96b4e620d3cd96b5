# What lecafe's developers and CI run. `make demo` and `make test` do all set-up
# themselves on Debian or Ubuntu with Go.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS     := -s -w -X github.com/lecafe/lecafe/internal/version.Version=$(VERSION)
GO_BUILD    := go build -ldflags '$(LDFLAGS)'
DISTRO      ?= debian-12 debian-13

# The same for builds and tests, so that the large EC2 package is compiled
# once for both.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath

.DEFAULT_GOAL := build

.PHONY: build
build: ## static binaries into bin/
	mkdir -p bin
	$(GO_BUILD) -o bin/ ./cmd/lecafe ./cmd/lecafe-agent ./cmd/lecafe-builder
	cd packer && go build -ldflags '-s -w' -o ../bin/packer-plugin-lecafe .

.PHONY: setup
setup: ## packages that the lab and the checks need
	scripts/setup

.PHONY: demo
demo: setup ## bake, boot, report and watch on the local lab
	scripts/demo ready
	$(MAKE) build
	scripts/demo

.PHONY: test
test: setup build ## the whole suite, real boots included
	scripts/test

.PHONY: e2e
e2e: setup build ## real boots alone
	LECAFE_BIN=$(CURDIR)/bin go test -count=1 -timeout 40m -v ./test/e2e/...

.PHONY: check
check: setup ## format, vet, staticcheck, race tests, tidy and generate diffs, vulnerabilities, shellcheck, units
	scripts/check

.PHONY: drill
drill: setup build ## every way to fail that lecafe drill knows, and payloads of others, on real boots of each DISTRO
	bin/lecafe drill $(addprefix --distro ,$(DISTRO)) --payloads drill/foreign.yaml examples/lecafe-app/recipe.yaml

.PHONY: bench
bench: build ## benchmarks; the last line is one JSON object of name to number
	scripts/bench

.PHONY: bench-packer
bench-packer: setup build ## lecafe beside the real Packer, in real time: about 20 minutes
	table=$$(mktemp); trap 'rm -f "$$table"' EXIT; \
	LECAFE_BIN=$(CURDIR)/bin LECAFE_SIDE_BY_SIDE=$$table go test -vet=off -count=1 -timeout 60m -run '^TestSideBySide$$' ./test/packer; \
	cat "$$table"

# Both end with the line that sums them up.
.PHONY: loss
loss: ## 200 kills of the orders service: nothing acknowledged is lost
	summary=$$(mktemp); trap 'rm -f "$$summary"' EXIT; \
	LECAFE_LOSS_KILLS=$${LECAFE_LOSS_KILLS:-200} LECAFE_LOSS_SUMMARY=$$summary go test -vet=off -count=1 -timeout 40m ./test/loss; \
	cat "$$summary"

.PHONY: crash
crash: ## a bake killed before and after each of its calls leaves nothing
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	go test -vet=off -count=1 -timeout 20m -run '^TestKilledAnywhere$$' -v ./bake | tee "$$log" | grep -E '^(---|FAIL|ok)'; \
	grep '^kill points' "$$log"

.PHONY: clean
clean:
	rm -rf bin

.PHONY: help
help:
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12
