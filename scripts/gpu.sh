#!/usr/bin/env bash
# What is to be checked on a machine with a GPU, which needs python3's torch, and neither Rust nor a network.
#   scripts/gpu.sh pack       on a machine with Rust: builds and strips what the other commands need, into gpu-pack/
#   scripts/gpu.sh kernels    on the GPU: bits of the kernels that have to be fast beside the emulation's, and their speed beside a copy's
# Carry the repository there with gpu-pack/, which git ignores. Each command but pack ends within four minutes and prints its table
# last. Exit code 0: all is as it should be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACK_MIB_MAX=60

pack() {
    scripts/setup.sh --dev
    rm -rf gpu-pack
    mkdir gpu-pack
    cp target/release/kernels-on-gpu gpu-pack/
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
    LD_LIBRARY_PATH=$(library_folders) timeout 240 "gpu-pack/$1"
}

case "${1:-}" in
    pack) pack ;;
    kernels) on_gpu kernels-on-gpu ;;
    *) echo "usage: scripts/gpu.sh pack|kernels" >&2; exit 2 ;;
esac
