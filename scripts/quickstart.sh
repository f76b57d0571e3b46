#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model: sets up, makes a data set out of the Python standard library's docstrings,
# and trains a small LLaMA-architecture model on two CPU ranks. Nothing but packages is downloaded.
# Further arguments go to dslaunch, for example --set train.steps=20.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
if [ ! -e runs/quickstart-data/validation.jsonl ]; then
    .venv/bin/python examples/quickstart/make_corpus.py --out runs/quickstart-data
fi
target/release/dslaunch --nproc 2 --set checkpoint.resume=never "$@" examples/quickstart/train.toml

cat <<'TEXT'

What was made:
  runs/quickstart-data/        the data set (prompts and completions), the tokenizer and the model's config.json
  runs/quickstart/final/       the trained model, as from_pretrained loads it
  runs/quickstart/metrics.jsonl  loss, gradient norm and speed of every logged step
  runs/quickstart/checkpoints/ where a run that is interrupted goes on
TEXT
