#!/usr/bin/env bash
# What every commit passes: format, lints, tests, documentation. Warnings are errors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --dev
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
cargo test --release --locked --workspace
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --document-private-items
if ! command -v cargo-deny > /dev/null; then
    echo "SKIPPED cargo deny: it is not installed (cargo install cargo-deny --locked); deny.toml was not checked" >&2
    exit 0
fi
cargo deny --locked check licenses bans sources
# Its list of vulnerabilities is fetched.
if ! cargo deny --locked fetch > /dev/null 2>&1; then
    echo "SKIPPED cargo deny check advisories: the list of vulnerabilities cannot be fetched here" >&2
    exit 0
fi
cargo deny --locked check advisories
