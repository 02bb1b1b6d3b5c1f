# Two commands: `make run` shows a pod's life, `make test` runs every check. `make bench` measures.
# `make build` puts the three binaries into target/berth, and the stories' attack.

CARGO ?= cargo
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
BIN := target/berth
DEMO_BIN := target/berth-release
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Root with our environment; nothing when we are root.
KEEP := $(if $(SUDO),$(SUDO) -E)
PACKAGES := gcc libc6-dev libseccomp-dev pkg-config busybox-static docker-registry \
	apache2-utils nftables iproute2 procps containernetworking-plugins runc crun

# The shim is static and not relocatable: fewest private pages, and no loader to
# trust inside a container's namespaces.
SHIM_FLAGS := -C target-feature=+crt-static -C relocation-model=static
SHIM := target/$(HOST)/shim/berth-shim

# Tests make namespaces, mounts and cgroups: they run as root.
ifneq ($(SUDO),)
export CARGO_TARGET_$(shell echo $(HOST) | tr a-z- A-Z_)_RUNNER := sudo -E
endif

.PHONY: run test bench build release shim deps fmt clippy tests stories vm vm-cache deb package vm-package

run: deps release
	$(SUDO) env BERTH_BIN=$(CURDIR)/$(DEMO_BIN) target/release/demo

test: deps
	@sh .ci/test

# Berth beside containerd with runc and with crun: e2e/bench/README.md. BENCH: parts
# and flags. PEER_BIN: folders with other programs of the peers.
BENCH ?=
PEER_BIN ?=
PEERS := target/peers
bench: PACKAGES += iptables
bench: deps release $(if $(PEER_BIN),,$(PEERS)/usr/bin/containerd)
	$(CARGO) build --release -p e2e --bin bench
	$(KEEP) env BERTH_BIN=$(CURDIR)/$(DEMO_BIN) target/release/bench \
		--peer-bin "$(or $(PEER_BIN),$(CURDIR)/$(PEERS)/usr/bin)" $(BENCH)

# Unpacked and not installed: no service starts. Dated now, not when it was packed.
$(PEERS)/usr/bin/containerd:
	mkdir -p $(PEERS)
	cd $(PEERS) && apt-get download containerd && dpkg-deb -x containerd_*.deb . && rm containerd_*.deb
	touch $@

build: shim $(BIN)/attack
	$(CARGO) build --workspace --bins
	mkdir -p $(BIN)
	install target/debug/berthd target/debug/berth $(SHIM) $(BIN)/

# What hostile containers run, static: e2e/tests/hostile_*.rs.
$(BIN)/attack: e2e/hostile/attack.c
	mkdir -p $(BIN)
	$(CC) -static -O1 -Wall -Wextra -Werror -o $@ $<

release: shim
	$(CARGO) build --release -p berth --bin berthd --bin berth -p e2e --bin demo
	mkdir -p $(DEMO_BIN)
	install target/release/berthd target/release/berth $(SHIM) $(DEMO_BIN)/

# The Debian package, in target/debian. DEB_BIN: whose programs are in it.
DEB_BIN ?= $(DEMO_BIN)
DEB_PAGES ?= target/release/pages
DEB_ARGS ?=
deb: deps release
	$(CARGO) build --release -p e2e --bin pages
	$(MAKE) --no-print-directory package

# What is built already, packed. cargo-deb is built once, below target.
package: target/tools/bin/cargo-deb
	rm -rf target/deb
	install -D -t target/deb/bin $(DEB_BIN)/berthd $(DEB_BIN)/berth $(DEB_BIN)/berth-shim
	$(DEB_PAGES) target/deb
	target/tools/bin/cargo-deb --no-build --no-strip $(DEB_ARGS)

target/tools/bin/cargo-deb:
	$(CARGO) install --quiet --locked --root target/tools cargo-deb

shim:
	RUSTFLAGS="$(SHIM_FLAGS)" $(CARGO) build --profile shim --no-default-features \
		-p berth --bin berth-shim --target $(HOST)

# Asks the network only when a package is missing.
deps:
	@missing=$$(for p in $(PACKAGES); do \
		dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		$(SUDO) apt-get update && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	fi

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p berth --no-default-features --bin berth-shim --lib -- -D warnings

# The stories again, in a machine with cgroup v2 and systemd (all: about 6 minutes).
# VM_ARGS: see e2e/vm/stories.
vm: vm-cache build
	$(KEEP) e2e/vm/stories $(VM_ARGS)

# Kernel and disk of that machine; needs the archive of packages the first time.
vm-cache: deps
	@command -v mmdebstrap mke2fs objcopy >/dev/null || $(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends mmdebstrap e2fsprogs binutils
	@$(KEEP) e2e/vm/machine -B

# Stories by another runtime handler: HANDLER=runc or crun, STORIES= some of e2e/tests.
stories: build
	E2E_HANDLER=$(HANDLER) $(CARGO) test -p e2e --no-fail-fast $(if $(STORIES),$(addprefix --test ,$(STORIES)),--tests)

# The Debian package there: installed, upgraded with pods that run, purged.
vm-package: vm-cache build target/tools/bin/cargo-deb
	$(KEEP) e2e/vm/package

tests: build
	$(CARGO) test --workspace --no-fail-fast
