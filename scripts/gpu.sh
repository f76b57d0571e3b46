#!/usr/bin/env bash
# What is to be checked on a machine with a GPU, which needs python3's torch and transformers, and neither Rust nor a network.
#   scripts/gpu.sh pack       on a machine with Rust: builds and strips what the other commands need, into gpu-pack/
#   scripts/gpu.sh kernels    on the GPU: bits of the kernels that have to be fast beside the emulation's, and their speed beside a copy's
#   scripts/gpu.sh smoke      tiny models beside transformers, a rank that is killed, deterministic runs
#   scripts/gpu.sh bench-7b [packed|deterministic]   DeepSeek-LLM-7B's shape: tokens/s, TFLOP/s, memory. Needs a GPU of 141 GB
#   scripts/gpu.sh ranks      2 and 4 ranks that share the card over NCCL: every layout beside one rank, one killed in an exchange
#   scripts/gpu.sh offload    22 of its layers, all but what computes in the host's 128 GiB, beside the same in the GPU's memory
#   scripts/gpu.sh small      optimizer states in bf16 and no masters beside fp32
#   scripts/gpu.sh fp8        products in fp8 beside bf16
#   scripts/gpu.sh lora       adapters on the 7B beside PEFT's, and on a base in nf4: tokens/s, memory. Needs peft
#   scripts/gpu.sh generate   dslaunch generate: greedy tokens, and the 7B's tokens/s at batch 1, beside transformers'
#   scripts/gpu.sh profile    where the time of one of its steps goes, by phase and kind of unit
#   scripts/gpu.sh peer-7b    the same by transformers, and the bound that this card has; liger-kernel is used where it is installed
#   scripts/gpu.sh all        kernels, smoke, bench-7b, peer-7b: ten minutes
# Carry the repository there with gpu-pack/, which git ignores. Each command but pack and all ends within four minutes, prints its
# table last and writes JSON to docs/gpu/, or to the folder that OUT names. Exit code 0: all is as it should be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACK_MIB_MAX=60

pack() {
    scripts/setup.sh --dev
    rm -rf gpu-pack
    mkdir gpu-pack
    cp target/release/{dslaunch,dslaunch-rank,kernels-on-gpu} gpu-pack/
    strip gpu-pack/*
    local mib
    mib=$(du -sm gpu-pack | cut -f1)
    [ "$mib" -le "$PACK_MIB_MAX" ] || { echo "gpu.sh: gpu-pack/ has $mib MiB, more than $PACK_MIB_MAX" >&2; exit 1; }
    echo "gpu.sh: gpu-pack/ has $mib MiB"
}

# Where python3's torch and the CUDA packages beside it keep their libraries.
library_folders() {
    python3 - <<'PYTHON'
import pathlib
import torch

torch_folder = pathlib.Path(torch.__file__).parent
print(":".join(map(str, [torch_folder / "lib", *sorted(torch_folder.parent.glob("nvidia/*/lib"))])))
PYTHON
}

on_gpu() {
    [ -d gpu-pack ] || { echo "gpu.sh: gpu-pack/ is missing: run scripts/gpu.sh pack on a machine with Rust" >&2; exit 2; }
    LD_LIBRARY_PATH=$(library_folders) timeout "${LIMIT:-240}" "$@"
}

all() {
    local failed=0
    while read -r limit command; do
        echo "== $command"
        LIMIT=$limit "$0" "$command" </dev/null || failed=1
    done <<< $'60 kernels\n150 smoke\n200 bench-7b\n180 peer-7b'
    return $failed
}

case "${1:-}" in
    pack) pack ;;
    kernels) on_gpu gpu-pack/kernels-on-gpu ;;
    smoke) on_gpu python3 scripts/peers/gpu_smoke.py ;;
    ranks) on_gpu python3 scripts/peers/gpu_ranks.py ;;
    lora) on_gpu python3 scripts/peers/lora/gpu.py ;;
    generate) on_gpu python3 scripts/peers/generate/gpu.py ;;
    profile) on_gpu python3 scripts/peers/gpu_bench.py profile ;;
    offload | small | fp8) on_gpu python3 scripts/peers/gpu_bench.py "$1" ;;
    bench-7b) on_gpu python3 scripts/peers/gpu_bench.py "${2:-dslaunch}" ;;
    peer-7b) on_gpu python3 scripts/peers/gpu_bench.py peer ;;
    all) all ;;
    *) echo "usage: scripts/gpu.sh pack|kernels|smoke|ranks|bench-7b|offload|small|fp8|lora|generate|profile|peer-7b|all" >&2; exit 2 ;;
esac
