# `make` or `make help` shows the menu.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO        ?= go
BPF_CLANG ?= clang
PREFIX    ?= /usr/local
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
SOAK      ?= 20m
ARGS      ?=
KERNEL    ?=

# Tracing needs root; whoever is root already needs no sudo.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

C_FILES   = vmlinux.h $(wildcard bpf/*.[ch]) internal/test/rig/churn/churn.c
GENERATED = $(foreach object,bpf trampoline direct directtrampoline,internal/probe/$(object)_bpfel.go internal/probe/$(object)_bpfel.o)

# The linter has a module of its own: its hundreds of dependencies are not our users'.
GOLANGCI_LINT = $(GO) tool -modfile=internal/test/tools/go.mod golangci-lint

.PHONY: help build run check test soak test-kernels test-servers packages release test-packages generate check-generated clang-version lint fmt fuzz bench microbench install clean deps rig

help: ## this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

build: ## bin/tcptrace, one static binary; needs Go alone
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/tcptrace ./cmd/tcptrace

run: build ## build and stream every TCP state change; ARGS="-j -4" for flags
	@$(SUDO) bin/tcptrace $(ARGS)

# The fast loop. The race detector is for the packages that start goroutines; it is
# cheap enough for all.
check: lint check-generated ## lint, generated files and all tests that need neither root nor network
	TCPTRACE_TEST_KERNEL=0 $(GO) test -race -short ./...

# -p 1: the packages that trace the kernel measure it, so one at a time. -count=1:
# the test cache cannot see that the kernel or a binary in bin/ changed.
test: deps check build rig ## make check, then the kernel and oracle tests as root or with sudo
	$(GO) test -p 1 -count=1 -timeout 30m -skip '^TestSoak$$' $(if $(SUDO),-exec $(SUDO)) ./...

# Its size is the time: 4,200 connections a second, five million in 20 minutes. See
# internal/test/rig.
soak: deps build rig ## three tracers at once stay as small as they were, for SOAK=20m; prints figures
	$(GO) test -v -count=1 -timeout 0 -run '^TestSoak$$' $(if $(SUDO),-exec $(SUDO)) ./internal/test/rig -soak $(SOAK)

# Emulated, so it needs neither root nor KVM; see internal/test/kernels.
test-kernels: deps ## the kernel tests on Debian's kernels 5.10 to 7.x, also RT and locked down; KERNEL=6.1,6.12-rt for some
	$(GO) run ./internal/test/kernels -kernel "$(KERNEL)"

# Real servers, of modules of their own. To build them takes fifteen minutes of CPU and 4 GB, once
# for each version: they are kept outside of the tree.
SERVERS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tcptrace/servers

$(SERVERS)/prometheus $(SERVERS)/promtool: PACKAGE = github.com/prometheus/prometheus/cmd/$(@F)
$(SERVERS)/victoria-logs: PACKAGE = github.com/VictoriaMetrics/VictoriaLogs/app/$(@F)
$(SERVERS)/collector: PACKAGE = .
$(SERVERS)/collector: internal/test/servers/collector/go.mod internal/test/servers/collector/main.go
$(SERVERS)/prometheus $(SERVERS)/promtool $(SERVERS)/victoria-logs: internal/test/servers/go.mod

$(SERVERS)/%:
	@mkdir -p $(SERVERS)
	cd $(<D) && CGO_ENABLED=0 nice $(GO) build -trimpath -ldflags '-s -w' -o $@ $(PACKAGE)
	@touch $@ # the build leaves one alone that is the same

test-servers: build bin/churn $(addprefix $(SERVERS)/,prometheus promtool victoria-logs collector) ## a real Prometheus, Collector and VictoriaLogs, which it builds first
	$(GO) build -o bin/leaky ./internal/test/rig/leaky
	cd internal/test/servers && $(GO) vet . && $(GO) test -v -count=1 -timeout 15m $(if $(SUDO),-exec $(SUDO)) . \
		-servers $(SERVERS) -bin $(CURDIR)/bin

# A real browser: Debian's, and two packages of npm, whose versions the lock file has.
test-browser: build rig ## the page of serve in a real Chromium; screenshots in bin/pictures
	@for tool in chromium node npm; do \
		command -v $$tool >/dev/null || { echo "test-browser: $$tool is not installed: see CONTRIBUTING.md" >&2; exit 1; }; \
	done
	$(GO) build -o bin/leaky ./internal/test/rig/leaky
	cd internal/test/browser && npm ci --silent && timeout 600 $(if $(SUDO),sudo env "PATH=$$PATH") npm test --silent

# nfpm and the maker of the bills are a module of their own, as the linter is.
packages: ## deb, rpm, apk and arch packages, tarballs, checksums and SBOMs of amd64 and arm64 in dist/
	@rm -rf dist
	packaging/nfpm/build dist

release: ## the same of a commit that has a tag, and the notes of its version in dist/NOTES.md
	@tag=$$(git describe --tags --exact-match --match 'v[0-9]*') || { echo "release: this commit has no tag: git tag v1.2.3" >&2; exit 1; }; \
	[[ -z "$$(git status --porcelain)" ]] || { echo "release: there are changes that are not committed" >&2; exit 1; }; \
	notes=$$(awk -v v="$${tag#v}" '/^## / {on = index($$2, "[" v "]") == 1; next} on' CHANGELOG.md); \
	[[ -n "$$notes" ]] || { echo "release: CHANGELOG.md has no section [$${tag#v}]" >&2; exit 1; }; \
	$(MAKE) packages && printf '%s\n' "$$notes" >dist/NOTES.md

# What it needs beside is installed here, not by deps: make test does not need it.
test-packages: packages ## the packages in clean roots of Debian and rpm, twice the same bytes, lintian and rpmlint
	@packaging/nfpm/deps
	cd internal/test/packages && $(GO) vet . && $(GO) test -v -count=1 -timeout 30m $(if $(SUDO),-exec $(SUDO)) . -dist $(CURDIR)/dist

GENERATE = BPF2GO_CC=$(BPF_CLANG) $(GO) generate ./internal/probe

generate: clang-version ## compile bpf/ into internal/probe; needs clang 14, as in Debian 12
	$(GENERATE)

# Generates in a copy of the tree, so that it never touches the files that it checks.
check-generated: clang-version ## fail unless the generated files match their source
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	cp -r go.mod go.sum vmlinux.h bpf internal "$$copy"; \
	rm $(addprefix "$$copy"/,$(GENERATED)); \
	(cd "$$copy" && $(GENERATE)); \
	for f in $(GENERATED); do \
		cmp "$$f" "$$copy/$$f" || { \
			echo "check-generated: $$f does not match bpf/: run 'make generate' and commit what it writes" >&2; \
			exit 1; \
		}; \
	done

clang-version:
	@major=$$($(BPF_CLANG) --version | sed -n 's/.*version \([0-9]*\).*/\1/p;q') || true; \
	if [[ "$$major" != 14 ]]; then \
		echo "generate: $(BPF_CLANG) is version $${major:-unknown}, and only clang 14 gives the committed bytes:" \
			"install Debian 12's clang, or set BPF_CLANG=clang-14" >&2; \
		exit 1; \
	fi

# golangci-lint runs go vet and staticcheck too; .golangci.yaml says what else, and why.
lint: ## gofmt, golangci-lint, go mod tidy, clang-format, mandoc
	@for tool in clang-format mandoc; do \
		command -v $$tool >/dev/null || { echo "lint: $$tool is not installed: run 'make deps'" >&2; exit 1; }; \
	done
	@files=$$(gofmt -l .); [[ -z "$$files" ]] || { echo "not formatted, run 'make fmt': $$files" >&2; exit 1; }
	$(GOLANGCI_LINT) run ./...
	$(GO) mod tidy -diff
	clang-format --dry-run -Werror $(C_FILES)
	mandoc -T lint -W warning cmd/tcptrace/tcptrace.1

fmt: ## format the Go and the C files
	gofmt -w .
	clang-format -i $(C_FILES)

fuzz: ## run each fuzz target for FUZZTIME=10s
	@$(GO) test -list '^Fuzz' ./... | \
	awk '/^Fuzz/ {t[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, t[i]; n = 0}' | \
	while read -r pkg target; do \
		echo "== $$pkg $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
	done

# The figures of a busy machine are worth nothing; takes 12 minutes and 8 GB. See internal/test/bench.
bench: deps build bin/churn ## what a trace costs, beside bcc's tcpstates and bpftrace, which it installs
	$(GO) run $(if $(SUDO),-exec $(SUDO)) ./internal/test/bench $(ARGS)

microbench: ## run the Go benchmarks, with allocations; BENCHTIME=1s
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./...

install: build ## install the binary, the man page and the systemd unit below PREFIX=/usr/local
	install -D -m 755 bin/tcptrace $(DESTDIR)$(PREFIX)/bin/tcptrace
	install -D -m 644 cmd/tcptrace/tcptrace.1 $(DESTDIR)$(PREFIX)/share/man/man1/tcptrace.1
	install -D -m 644 packaging/systemd/tcptrace.service $(DESTDIR)$(PREFIX)/lib/systemd/system/tcptrace.service

clean: ## remove what was built
	rm -rf bin dist

deps:
	@.ci/deps

# The load generator and the oracle that the tests compare with; see internal/test/rig.
rig: bin/churn
	$(GO) build -o bin/oracle ./internal/test/rig/oracle

bin/churn: internal/test/rig/churn/churn.c
	@mkdir -p bin
	gcc -O2 -Wall -Wextra -pthread -o $@ $<
