# The commands of keelson, for people, CI and benchmarks. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Asked when a recipe runs, after `deps`: musl where the toolchain has it, else gnu (docs/decisions/0007).
TARGET = $(shell deploy/shim-target)
# The shim is one static program: no loader, no relocation, text shared by every container (docs/decisions/0002).
SHIM_FLAGS := -C target-feature=+crt-static -C relocation-model=static
BUILD_SHIM = RUSTFLAGS="$(SHIM_FLAGS)" cargo build -p keelson-shim --bin keelson-shim --target $(TARGET)
export PROTOC ?= $(shell command -v protoc)

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: deps
deps: ## Install what building needs and the machine lacks (Debian, Ubuntu)
	@deploy/install-deps build

.PHONY: build
build: deps ## Release binaries: target/release/keelson and target/release/keelson-shim
	$(BUILD_SHIM) --profile shim
	cargo build --release -p keelson
	install -m 0755 target/$(TARGET)/shim/keelson-shim target/release/keelson-shim

.PHONY: dev
dev: deps ## Debug binaries, the shim static as in production: target/node/keelson and target/node/keelson-shim
	$(BUILD_SHIM)
	cargo build -p keelson
	@mkdir -p target/node
	install -m 0755 target/debug/keelson target/$(TARGET)/debug/keelson-shim target/node/

.PHONY: run
run: build ## The main job: a node on scratch state, a first pod, its output. make run IMAGE=docker.io/library/nginx:latest
	target/release/keelson try $(IMAGE)

# `make run <image>` is the same as `make run IMAGE=<image>`.
ifeq (run,$(firstword $(MAKECMDGOALS)))
ifneq (,$(word 2,$(MAKECMDGOALS)))
IMAGE ?= $(word 2,$(MAKECMDGOALS))
$(eval .PHONY: $(subst :,\:,$(word 2,$(MAKECMDGOALS))))
endif
endif

.PHONY: test
test: ## Everything that must pass: unit, property, privileged, e2e scenarios
	@deploy/install-deps build test
	@$(MAKE) --no-print-directory dev
	@e2e/tools/run-tests

.PHONY: critest
critest: ## critest: all specs serially and four at a time, streaming over WebSocket; one run: CRITEST="--focus Streaming"
	@deploy/install-deps build test
	@$(MAKE) --no-print-directory dev
	cargo build -q -p keelson-e2e
	target/debug/keelson-e2e images
	target/debug/keelson-e2e critest $(CRITEST)

.PHONY: kubelet
kubelet: ## Build the stock kubelet from Go modules (minutes, once) and run its scenarios against a node
	@deploy/install-deps build test
	@$(MAKE) --no-print-directory dev
	e2e/tools/build-kubelet
	KEELSON_BIN_DIR=$(CURDIR)/target/node cargo test -q -p keelson-e2e --test scenarios -- --test-threads=1 kubelet::

.PHONY: check
check: ## Format, clippy with the workspace lints, licences and sources, docs
	@deploy/install-deps build check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	e2e/tools/check-rooms

.PHONY: bench-peers
bench-peers: ## Build containerd, runc and CNI plugins (Go modules) and install crun, for the benchmarks
	@e2e/tools/build-peers

.PHONY: bench
bench: build bench-peers ## H1 H3 H4 H5 H8 H10 H11 against the peers, and the cost of being looked at, interleaved: a table and JSON
	cargo build --release -p keelson-e2e
	e2e/tools/build-cri-tools >/dev/null
	target/release/keelson-e2e images busybox
	KEELSON_BIN_DIR=$(CURDIR)/target/release target/release/keelson-e2e bench $(BENCH)

.PHONY: images
images: ## Build the test images from Debian packages into the cache folder
	cargo run -q -p keelson-e2e -- images

.PHONY: clean
clean: ## Remove build output (the cache folder outside the repository stays)
	cargo clean
