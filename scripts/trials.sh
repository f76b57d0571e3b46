#!/usr/bin/env bash
# Plays many random trials of one promise; scripts/test.sh plays a few of each with fixed seeds.
#   scripts/trials.sh NAME[:FILTER] [COUNT [SEED]]
# NAME is a file or folder of tests/tests, FILTER a part of its tests' names. COUNT is 200 if not said, SEED a fresh one; both are printed, and what fails names its trial.
#   scripts/trials.sh stream [SIZE_MB [STEPS [SEED]]]
# Trains on a source of SIZE_MB megabytes (20000 if not said), made in a temporary folder, as it is prepared: for STEPS steps (4000), and prints time, memory and disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = stream ]; then
    scripts/setup.sh --dev
    exec .venv/bin/python scripts/peers/data/stream_trial.py "${2:-20000}" "${3:-4000}" ${4:+"$4"}
fi
name=${1:-}
name=${name%%:*}
if [ -z "$name" ] || { [ ! -e "tests/tests/$name.rs" ] && [ ! -e "tests/tests/$name/main.rs" ]; }; then
    echo "usage: scripts/trials.sh NAME[:FILTER] [COUNT [SEED]]; NAME[:FILTER] is one of:" >&2
    grep -lr 'Trials::or_else' tests/tests | sed 's|^tests/tests/||; s|\.rs$||; s|/|:|' >&2
    exit 2
fi
filter=()
case $1 in *:*) filter=("${1#*:}") ;; esac
scripts/setup.sh --dev
export TRIALS=${2:-200} SEED=${3:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
exec cargo test --release --locked -p tests --test "$name" "${filter[@]}" -- --nocapture --test-threads=1
