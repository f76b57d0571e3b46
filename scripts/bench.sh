#!/usr/bin/env bash
# Benchmarks that fail below their targets. `train` compares dslaunch's tokens/s, time to the first step and peak memory with
# torchrun and transformers; `engine` compares every layout of the engine with FSDP2 and DeepSpeed; `launch` measures the launcher
# beside torchrun; these take --before DIR: dslaunch against the programs of an earlier build instead of peers. `prepare` measures the
# preparation of data beside the tokenizers library.
# `train --beside` measures two jobs at once on the same cores instead. Options: scripts/bench.sh train --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    train | engine | launch | prepare) name=$1 ;;
    *) echo "usage: scripts/bench.sh train|engine|launch|prepare [options]" >&2; exit 2 ;;
esac
shift
scripts/setup.sh --dev
# DeepSpeed is built with the torch that is installed, not with one of its own.
if [ "$name" = engine ] && [[ " $* " != *" --before"* ]] && ! .venv/bin/python -c 'import importlib.metadata; importlib.metadata.version("deepspeed")' 2>/dev/null; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check wheel==0.48.0
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r scripts/requirements-bench.txt
fi
if [ "$name" = launch ]; then
    cargo build --release --locked --workspace --examples
    [ -e runs/quickstart-data ] || .venv/bin/python examples/quickstart/make_corpus.py --out runs/quickstart-data
fi
if [ "${1:-}" = --beside ]; then
    shift
    [ -e runs/quickstart-data ] || .venv/bin/python examples/quickstart/make_corpus.py --out runs/quickstart-data
    exec .venv/bin/python scripts/bench_beside.py "$@"
fi
[ "$name" != prepare ] || exec .venv/bin/python scripts/peers/data/prepare_beside_tokenizers.py "$@"
exec .venv/bin/python "scripts/peers/bench_$name.py" "$@"
