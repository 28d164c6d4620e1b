# People and CI run these targets and nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help test check package install clean

PROMISES := $(CURDIR)/target/promises
# Each set is built by itself; "" is none.
FEATURES := "" macros metrics sqlx postgres mysql sqlite postgres,mysql postgres,sqlite mysql,sqlite \
	postgres,sqlx mysql,sqlx sqlite,sqlx
DBLOCK_FEATURES := "" postgres mysql

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## run all tests on real servers, installing those if need be; FILTER=name runs some
	@mkdir -p target && rm -f $(PROMISES)
	pg18=$$(scripts/install-servers); \
	export DBLOCK_PG18_BIN=$$pg18 DBLOCK_PROMISES=$(PROMISES); \
	export DBLOCK_REQUIRE=postgres,postgres18,mariadb; \
	cargo build --workspace --all-features --bins; \
	cargo test --workspace --all-features $(FILTER)
# A part of the tests keeps a part of the promises.
ifndef FILTER
	scripts/check-promises $(PROMISES)
endif

check: ## look at the code without running it: format, lints, features by themselves, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	for features in $(FEATURES); do \
		cargo clippy -p database-locks --no-default-features --features "$$features" -- -D warnings; \
	done
	for features in $(DBLOCK_FEATURES); do \
		cargo clippy -p dblock --no-default-features --features "$$features" -- -D warnings; \
	done
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

package: ## make the packages, and build and test what is in them
	scripts/check-package

install: ## install the command dblock into cargo's directory of programs
	cargo install --locked --path crates/dblock

clean: ## remove everything that was built or downloaded
	cargo clean
	rm -rf target
