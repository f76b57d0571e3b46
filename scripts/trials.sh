#!/usr/bin/env bash
# Plays many random trials of one promise; scripts/test.sh plays a few of each with fixed seeds.
#   scripts/trials.sh NAME [COUNT [SEED]]
# NAME is a file of tests/tests. COUNT is 200 if not said, SEED a fresh one; both are printed, and what fails names its trial.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 1 ] || [ ! -e "tests/tests/$1.rs" ]; then
    echo "usage: scripts/trials.sh NAME [COUNT [SEED]]; NAME is one of:" >&2
    grep -l 'Trials::or_else' tests/tests/*.rs | sed 's|.*/||; s|\.rs$||' >&2
    exit 2
fi
scripts/setup.sh --dev
export TRIALS=${2:-200} SEED=${3:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
exec cargo test --release --locked -p tests --test "$1" -- --nocapture --test-threads=1
