#!/usr/bin/env bash
# Whether two builds compute the same: trains the quickstart model for 12 steps on every kind of layout with the programs of both,
# and compares losses, gradient norms and final weights to the bit.
#   scripts/same_bits.sh OLD NEW [--only TEXT]
# OLD and NEW are folders that hold dslaunch and dslaunch-rank, for example a copy of an earlier commit's and target/release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ -e .venv/libtorch ] || scripts/setup.sh
[ -e runs/quickstart-data ] || .venv/bin/python examples/quickstart/make_corpus.py --out runs/quickstart-data
exec .venv/bin/python scripts/peers/same_bits.py "$@"
