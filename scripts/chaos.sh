#!/usr/bin/env bash
# Sets up and plays every cell of the fault matrix: each kind of fault in each phase to each victim. Prints a table, and fails if a cell
# does. Arguments name the cells to play instead, for example "hang at snapshot".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --dev
cargo test --release --locked --workspace --test fault_matrix -- "${@:---all}"
