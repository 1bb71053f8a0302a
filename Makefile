# The verbs. `make` alone teaches them.
#
# Profiles: tests and the demonstration run the development build, whose dependencies are optimised and whose own
# code is not: it is what the unit tests need anyway, so that everything is compiled once, and its overflow checks
# and debug assertions belong in a test. The bench runs the release build, since a number about anything else
# says nothing to an operator.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export KEEP
# A failure's message says where; the backtrace of every error value would bury it.
export RUST_LIB_BACKTRACE ?= 0

LOCKED := --locked
BINARIES := weave-agent weave-cni weave-netns
HAVE_NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

# binary:Debian package. Only what is missing is installed.
TOOLS := cc:gcc make:make ip:iproute2 nft:nftables iptables-restore:iptables tcpdump:tcpdump ping:iputils-ping \
         conntrack:conntrack ethtool:ethtool strace:strace /usr/lib/cni/bridge:containernetworking-plugins \
         containerd:containerd runc:runc podman:podman busybox:busybox-static nsenter:util-linux tc:iproute2 \
         openssl:openssl curl:curl ipset:ipset dnsmasq:dnsmasq-base systemd-analyze:systemd

.PHONY: help demo demo-clean test test-unit test-netns k8s-test k8s-ci k8s image lint bench bench-instructions bench-tools tools build clean

help: ## this text
	@echo "weave: an overlay network for containers"
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo KEEP=1            leave the demonstration up to look around"
	@echo "  make test-netns ONLY=guard  only the namespace tests whose names contain 'guard'"
	@echo "  make k8s-test ONLY=reclaim  only the tests on a real Kubernetes whose names contain 'reclaim'"
	@echo "  make k8s KEEP=1             leave a cluster up, with weave on it, until Enter is pressed"
	@echo "  make bench PARTS=cni        only a part: dataplane tunnels cni rest handmade"

demo: tools ## three nodes and six pods in network namespaces, and two accidents (root)
	@cargo build $(LOCKED) --workspace --bins
	@target/debug/demo

demo-clean: ## remove what KEEP=1 left up
	@cargo build $(LOCKED) --workspace --bins
	@target/debug/demo --clean

test: test-unit test-netns ## every test: unit, property, documentation, namespaces (root)

test-unit: tools ## the tests that need no namespaces
	cargo build $(LOCKED) --workspace --bins --tests
ifdef HAVE_NEXTEST
	cargo nextest run $(LOCKED) --workspace
else
	cargo test $(LOCKED) --workspace --lib --bins
endif
	cargo test $(LOCKED) --workspace --doc

ONLY ?=

test-netns: tools ## the namespace tests, one after the other (root)
	cargo build $(LOCKED) --workspace --bins --tests
ifdef HAVE_NEXTEST
	cargo nextest run $(LOCKED) --workspace --profile netns $(ONLY)
else
	cargo test $(LOCKED) --workspace --exclude weave-k8s --test '*' -- --test-threads=1 $(ONLY)
endif

k8s-test: tools ## the tests on a real Kubernetes of three nodes; builds it once, outside of the clone (root)
	cargo build $(LOCKED) -p weave-agent -p weave-cni
	cargo build $(LOCKED) -p weave-k8s --tests
	tests/k8s/build-kubernetes.sh
ifdef HAVE_NEXTEST
	cargo nextest run $(LOCKED) -p weave-k8s --profile k8s $(ONLY)
else
	cargo test $(LOCKED) -p weave-k8s --test '*' -- --test-threads=1 $(ONLY)
endif

# Nodes Ready, Service, rolling update, reclaim.
k8s-ci:
	$(MAKE) k8s-test ONLY="one_apply rolling_update deleted_node"

k8s: tools ## a cluster of three nodes with weave on it; KEEP=1 leaves it up for exploring (root)
	cargo build $(LOCKED) -p weave-agent -p weave-cni -p weave-k8s --bins
	tests/k8s/build-kubernetes.sh
	@target/debug/k8s

# The plugin runs on the host, whose C library may be another: it brings its own.
IMAGE_TARGET := $(shell uname -m)-unknown-linux-gnu
IMAGE := target/weave-image.tar

image: ## the container image, offline, from the release binaries: target/weave-image.tar
	cargo build $(LOCKED) --release -p weave-agent
	RUSTFLAGS="-C target-feature=+crt-static" cargo build $(LOCKED) --release -p weave-cni --target $(IMAGE_TARGET)
	@rm -rf target/image && mkdir -p target/image
	@cp target/release/weave target/$(IMAGE_TARGET)/release/weave-net target/image/
	@deploy/image/build.sh target/image $(IMAGE)

lint: ## formatting, clippy and documentation, warnings forbidden
	cargo fmt --all --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc $(LOCKED) --workspace --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	 else echo "cargo-deny is not installed: licences and sources are not checked"; fi

PARTS ?=
ROUNDS ?= 7

bench: tools ## ours beside hand-made references: a table, and target/bench.json (root)
	cargo build $(LOCKED) --release $(addprefix -p ,$(BINARIES))
	PATH="$(BENCH_TOOLS)/bin:$$PATH" target/release/bench --rounds $(ROUNDS) $(PARTS)

bench-instructions: ## what a packet of a tunnel costs in instructions, counted by valgrind, against budgets
	@command -v valgrind >/dev/null || { echo "please install: valgrind" >&2; exit 1; }
	cargo bench $(LOCKED) -p weave-sleeve --bench instructions

# Other people's tunnels are built outside the clone, once.
BENCH_TOOLS ?= $(HOME)/.cache/weave-bench

bench-tools: ## what the bench's tunnels are compared with: boringtun, wireguard-go (root)
	cargo install --locked --root $(BENCH_TOOLS) boringtun-cli@0.7.1
	apt-get install -y --no-install-recommends wireguard-go wireguard-tools

build: ## the release binaries
	cargo build $(LOCKED) --release $(addprefix -p ,$(BINARIES))

tools: ## install the programs that are missing (Debian and Ubuntu, root)
	@missing=""; \
	for tool in $(TOOLS); do \
	  command -v "$${tool%%:*}" >/dev/null || PATH="$$PATH:/usr/sbin:/sbin" command -v "$${tool%%:*}" >/dev/null || missing+=" $${tool##*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "please install:$$missing" >&2; exit 1; }; \
	  [ "$$(id -u)" = 0 ] || { echo "missing:$$missing; run as root once (sudo make tools) to install them" >&2; exit 1; }; \
	  echo "installing:$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -qq update </dev/null; \
	  apt-get -qq install -y --no-install-recommends $$missing </dev/null >/dev/null; \
	fi
	@if [ "$$(id -u)" = 0 ]; then \
	  for module in br_netfilter vxlan veth nf_tables; do modprobe -q "$$module" 2>/dev/null || true; done; \
	fi
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }

clean: ## remove what was built
	cargo clean
