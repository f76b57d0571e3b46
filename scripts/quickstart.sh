#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model: sets up, makes a data set out of the Python standard library's docstrings,
# and trains a small LLaMA-architecture model on two CPU ranks, or on the GPUs that there are. Nothing but packages is downloaded.
# Further arguments go to dslaunch, for example --set train.steps=20.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
data=runs/quickstart-data
if [ ! -e "$data" ]; then
    rm -rf "$data.tmp"
    .venv/bin/python examples/quickstart/make_corpus.py --out "$data.tmp"
    mv "$data.tmp" "$data"
fi
# A run that was interrupted goes on; one that is done makes room for another.
if [ -e runs/quickstart/final ]; then rm -rf runs/quickstart; fi
# Without GPUs two ranks share the cores; with GPUs the number of ranks is theirs.
ranks=()
[ -e /proc/driver/nvidia/version ] || ranks=(--nproc 2)
target/release/dslaunch "${ranks[@]}" "$@" examples/quickstart/train.toml

cat <<'TEXT'

What was made:
  runs/quickstart-data/        the data set (prompts and completions), the tokenizer and the model's config.json
  runs/quickstart/final/       the trained model, as from_pretrained loads it
  runs/quickstart/metrics.jsonl  loss, gradient norm and speed of every logged step
  runs/quickstart/checkpoints/ where a run that is interrupted goes on: scripts/quickstart.sh again
TEXT
