# People and CI run these targets and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test test-rust test-engines test-programs test-docs test-python prove prove-rust prove-python torture mutants check check-docs check-rust check-python check-deny check-msrv book bench example package install clean

PYTHON_ENVS := $(CURDIR)/target/python
PROMISES := $(CURDIR)/target/promises
# Each set is built by itself; "" is none.
FEATURES := "" macros metrics postgres mysql sqlite sqlite-unbundled postgres,mysql postgres,sqlite mysql,sqlite \
	sqlx-postgres sqlx-mysql sqlx-sqlite
DBLOCK_FEATURES := "" postgres mysql

# That a filter leaves no test, 5, is no failure: it may be meant for those of another language.
PYTEST_FILTER = $(if $(FILTER),-k "$(FILTER)" || [ $$? = 5 ])
BENCH = BENCH_SECONDS="$(SECONDS)" BENCH_ONLY="$(ONLY)" target/release/bench
# What every test needs: the servers, and to fail where one is missing.
SERVERS = unset MAKEFLAGS MFLAGS; servers=$$(scripts/install-servers); eval "$$servers"; \
	export DBLOCK_REQUIRE=postgres,postgres18,mariadb,galera,pgbouncer,haproxy,chromium$${DBLOCK_MYSQLD:+,mysql,mysql-group}$${DBLOCK_PG12_BIN:+,postgres12}
# The engines that this machine cannot have.
UNTESTED = $$(cat target/untested 2>/dev/null || true)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# So many tests of a binary run at a time: most of them wait, for leases to end and for servers. The same goes for
# the processes of pytest, each with servers of its own.
RUST_THREADS = 10
XDIST = -n 4 --dist worksteal
# Only tests of `make prove` show the promises on these engines.
PROVED = galera mysql-group postgres-failover
space := $(subst ,, )
CARGO_TEST = cargo test --workspace --all-features

# Targets side by side: $(1) prints as it runs, what the others $(2) print comes at the end. Not by the shell's `&`,
# under which programs ignore Ctrl-C, which tests press.
SIDE_BY_SIDE = mkdir -p target; failed=0; \
	$(MAKE) --no-print-directory -k -j4 $(1) $(addsuffix -logged,$(2)) || failed=$$?; \
	cat $(patsubst %,target/%.log,$(2)); exit $$failed

test: ## every test but those of `make prove`, on real servers, installing those if need be: 15 minutes; FILTER=name runs some
	@scripts/install-servers >/dev/null
	@rm -f $(PROMISES)
	@$(call SIDE_BY_SIDE,test-programs,test-engines test-docs test-python)
	$(CHECK_PROMISES)
	@for engine in $(UNTESTED); do echo "make test: nothing was tested on $$engine, which this machine cannot have"; done

prove: ## what takes long: clusters, failovers, torture, further versions: 20 minutes; FILTER=
	@scripts/install-servers >/dev/null
	@$(call SIDE_BY_SIDE,prove-rust,prove-python)

# A part of the tests keeps a part of the promises.
CHECK_PROMISES = $(if $(FILTER),,scripts/check-promises $(PROMISES) scripts/promises.expected $(PROVED) $(UNTESTED))
RUST_TEST = $(SERVERS); export DBLOCK_PROMISES=$(PROMISES) RUST_TEST_THREADS=$(RUST_THREADS); \
	$(CARGO_TEST) --no-run; $(CARGO_TEST) --no-fail-fast

test-rust: ## the part of test that is in Rust
	@rm -f $(PROMISES)
	@$(call SIDE_BY_SIDE,test-programs,test-engines test-docs)
	$(CHECK_PROMISES)

# The slowest binary runs beside all others, which cargo runs one after another.
test-engines: ## the part of it that shows the same on each engine
	@$(RUST_TEST) --test 'e*' $(FILTER)

test-programs: ## the part of it that is in all other test binaries
	@$(RUST_TEST) --lib --bins --test '[!e]*' $(FILTER)

test-docs: ## the examples in the documentation of the code
	@$(RUST_TEST) --doc $(FILTER)

prove-rust: ## the part of prove that is in Rust: tests marked `#[ignore = "make prove"]`
	@mkdir -p target && rm -f $(PROMISES)-proved
	$(SERVERS); export DBLOCK_PROMISES=$(PROMISES)-proved; \
	$(CARGO_TEST) --tests --no-fail-fast -- --ignored $(FILTER)
ifndef FILTER
	grep -E ' ($(subst $(space),|,$(PROVED)))$$' scripts/promises.expected >$(PROMISES)-expected
	scripts/check-promises $(PROMISES)-proved $(PROMISES)-expected $(UNTESTED)
endif

# The programs that the tests run, dblock and test-servers, are built as cargo test builds them: other features would
# have cargo build them twice.
PYTEST = $(SERVERS); \
	scripts/python-env $(1); \
	$(CARGO_TEST) --no-run; \
	export DBLOCK_BIN=$(CURDIR)/target/debug/dblock DBLOCK_TESTKIT=$(CURDIR)/target/debug; \
	export DBLOCK_OLD_PYTHON=$(PYTHON_ENVS)/old/bin/python; \
	cd python

test-python: ## the part of test that is in Python, with the newest Django
	$(call PYTEST,django52 old); \
	$(PYTHON_ENVS)/django52/bin/pytest $(XDIST) -m "not prove" $(PYTEST_FILTER)

prove-python: ## the part of prove that is in Python: tests marked `prove`, and those of Django with its oldest version
	$(call PYTEST,django52 django42 old); \
	$(PYTHON_ENVS)/django52/bin/pytest $(XDIST) -m prove $(PYTEST_FILTER); \
	$(PYTHON_ENVS)/django42/bin/pytest $(XDIST) -m django $(PYTEST_FILTER)

%-logged:
	@mkdir -p target && $(MAKE) --no-print-directory $* >target/$*.log 2>&1

# DOCS=docs writes the evidence there. From the command line alone: the shell has a SECONDS of its own.
ENGINE = all
SECONDS =
SEED =
DOCS =

torture: ## many processes on a few locks while everything breaks: 15 minutes; ENGINE=, SECONDS=120, SEED=, DOCS=docs
	$(SERVERS); \
	cargo build -p torture --bins; \
	scripts/python-env; \
	export DBLOCK_TORTURE_PYTHON=$(PYTHON_ENVS)/django52/bin/python; \
	export DBLOCK_OLD_PYTHON=$(PYTHON_ENVS)/old/bin/python; \
	target/debug/torture --engine $(ENGINE) --seconds $(or $(SECONDS),120) $(if $(SEED),--seed $(SEED)) \
		$(if $(DOCS),--docs $(DOCS))

# Without the examples of the documentation, which need the library: each mutant would have it built anew. And not
# optimised, since each mutant is built but once.
mutants: ## change each rule of crates/protocol in turn: a test must fail; needs cargo-mutants, takes half an hour
	mkdir -p target
	RUSTFLAGS="--cfg mutants" cargo mutants -p database-locks-protocol --config crates/protocol/mutants.toml \
		--cargo-arg=--config=profile.dev.package.database-locks-protocol.opt-level=0 -j2 -o target $(MUTANTS)

check: check-docs check-rust check-python check-deny ## look at the code without running it: format, lints, types, each feature by itself, documentation: 8 minutes

check-docs: ## the links of the documents, and that none is missing in the table of contents
	scripts/check-links

check-rust: ## the part of it that is for Rust
	scripts/check-layers
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	for features in $(FEATURES); do \
		cargo clippy -p database-locks --no-default-features --features "$$features" -- -D warnings; \
	done
	for features in $(DBLOCK_FEATURES); do \
		cargo clippy -p dblock --no-default-features --features "$$features" -- -D warnings; \
	done
	scripts/check-resolve
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

check-python: ## the part of it that is for Python, its stubs compared with what was built
	scripts/check-python-layers
	scripts/install-servers >/dev/null
	scripts/python-env
	cd python; PATH="$(PYTHON_ENVS)/django52/bin:$$PATH"; \
	ruff check; ruff format --check . ../crates --config ruff.toml; \
	mypy --strict database_locks; \
	stubtest database_locks._core

# Without the advisories, whose database is a Git repository that some machines cannot reach.
DENY = bans licenses sources

check-deny: ## licences, sources and banned crates of the dependencies, if cargo-deny is installed
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check $(DENY); else \
		echo "make check: the dependencies' licences and sources were not checked; cargo install --locked cargo-deny"; fi

# The dependencies decide: the least that those of the published crates declare, and what sqlx declares.
MSRV = $(shell sed -nE 's/^rust-version = "([0-9.]+)"/\1/p' Cargo.toml)
MSRV_SQLX = 1.94
ENGINES = database-locks/metrics,database-locks/mysql,database-locks/postgres,database-locks/sqlite

check-msrv: ## build what is published with the oldest Rust that it is for, which rustup installs if need be
	rustup toolchain install --profile minimal --no-self-update $(MSRV) $(MSRV_SQLX)
	CARGO_TARGET_DIR=target/msrv cargo +$(MSRV) check --locked -p database-locks -p dblock --features $(ENGINES)
	CARGO_TARGET_DIR=target/msrv cargo +$(MSRV_SQLX) check --locked -p database-locks --all-features

# What cannot be had on some machine is left out, and a line says so.
bench: ## measure for some 18 minutes, and write docs/benchmarks.md; SECONDS=900 ONLY=cycle,held…
	cargo build --release -p bench -p dblock
	BENCH_CHECK=1 $(BENCH)
	scripts/install-servers >target/bench-servers || \
		echo "bench: not all servers can be installed, those that are there are measured" >&2
	scripts/bench-env
	. target/bench-servers; $(BENCH)

example: ## start a Django project with locks, on SQLite and on this machine only
	scripts/python-env
	cd python/example; $(PYTHON_ENVS)/django52/bin/python manage.py demo

package: ## make the packages, and build and test what is in them
	scripts/check-package
	scripts/check-drivers
	scripts/check-python-package

book: ## make a website of the documentation in target/book/html, with mdbook
	@scripts/book

install: ## install the command dblock into cargo's directory of programs
	cargo install --locked --path crates/dblock

clean: ## remove everything that was built or downloaded
	cargo clean
	rm -rf target
