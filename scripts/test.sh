#!/usr/bin/env bash
# Sets up and runs every test. Arguments go to `cargo test`, for example --test parity.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --dev
cargo test --release --locked --workspace "$@"
