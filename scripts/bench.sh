#!/usr/bin/env bash
# Benchmarks. `train` compares dslaunch's tokens/s, time to the first step and peak memory with torchrun and transformers, and fails
# below its targets. Its options: scripts/bench.sh train --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" != train ]; then
    echo "usage: scripts/bench.sh train [options]" >&2
    exit 2
fi
shift
scripts/setup.sh --dev
exec .venv/bin/python scripts/peers/bench_train.py "$@"
