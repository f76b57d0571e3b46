#!/usr/bin/env bash
# Makes a clone ready: libtorch 2.11 from PyPI's torch in .venv, and target/release/dslaunch and dslaunch-rank.
# Again costs seconds. --dev adds what tests and benchmarks compare with (transformers and its friends), ranks whose GPU is emulated,
# and, as root where there is apt-get, Slurm, for tests that start one of their own.
# A libtorch 2.11 of your own is respected: set LIBTORCH to its folder, or LIBTORCH_USE_PYTORCH=1 for python3's torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.11.0
# The two NVIDIA libraries that libtorch_cpu.so of this torch asks for even on a machine without a GPU.
TORCH_CPU_NEEDS=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
TOKENIZERS=0.23.3
TRL=1.16.0
AXOLOTL=0.19.0
NEEDED_GIB=8

dev=false
for argument in "$@"; do
    case "$argument" in
        --dev) dev=true ;;
        *) echo "setup: unknown argument $argument (usage: scripts/setup.sh [--dev])" >&2; exit 2 ;;
    esac
done

die() { echo "setup: $*" >&2; exit 1; }

check_prerequisites() {
    for tool in awk df head ldd readlink sort; do
        command -v "$tool" >/dev/null || die "$tool is missing: install coreutils, gawk and libc-bin, or your distribution's packages of those tools"
    done
    command -v cargo >/dev/null && command -v rustc >/dev/null || die "cargo is missing: install Rust 1.89 or newer (rustup.rs, or your distribution's package)"
    local rust
    rust=$(rustc --version | awk '{print $2}')
    [ "$(printf '%s\n' 1.89.0 "${rust%%-*}" | sort -V | head -n 1)" = 1.89.0 ] || die "rustc $rust is too old: install Rust 1.89 or newer (rustup update)"
    command -v c++ >/dev/null && command -v cc >/dev/null || die "no C++ compiler (c++ and cc): install g++ (Debian and Ubuntu: apt-get install g++)"
    command -v python3 >/dev/null || die "python3 is missing: install Python 3.10 or newer (Debian and Ubuntu: apt-get install python3 python3-venv)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$(python3 --version) is too old: install Python 3.10 or newer"
    python3 -c 'import venv, ensurepip' 2>/dev/null || has_pip || die "python3 cannot make virtual environments: install python3-venv"
}

check_disk() {
    local free_gib
    free_gib=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "$free_gib" -ge "$NEEDED_GIB" ] || die "only $free_gib GiB free here: libtorch and the build need $NEEDED_GIB GiB"
}

# Not .venv/bin/pip: that script names its interpreter by a path that a clone which was moved no longer has.
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }

has_pip() { .venv/bin/python -c 'import pip' 2>/dev/null; }

# Whether the virtual environment holds exactly this release of a package.
has() { compgen -G ".venv/lib/python3*/site-packages/${1//-/_}-$2.dist-info" >/dev/null; }

venv() {
    has_pip && return
    check_disk
    python3 -m venv .venv || die "python3 -m venv failed: install python3-venv (Debian and Ubuntu: apt-get install python3-venv)"
}

lacks_libraries() { ldd .venv/libtorch/lib/libtorch_cpu.so | grep -q 'not found'; }

# All of torch, which a GPU and torch's own Python need, or only what libtorch needs on a CPU: a quarter of the size.
install_torch() {
    venv
    if $dev || [ -e /proc/driver/nvidia/version ]; then
        has torch "$TORCH" && has transformers "$(requirement transformers)" && return
        check_disk
        echo "setup: installing torch $TORCH with everything it needs"
        pip install "torch==$TORCH"
    elif ! has torch "$TORCH"; then
        check_disk
        echo "setup: installing libtorch $TORCH"
        pip install --no-deps "torch==$TORCH" "${TORCH_CPU_NEEDS[@]}"
    fi
}

link_libtorch() {
    local torch
    torch=$(cd .venv && ls -d lib/python3*/site-packages/torch) || die ".venv holds no torch: remove .venv and run again"
    [ "$(readlink .venv/libtorch || true)" = "$torch" ] || ln -sfn "$torch" .venv/libtorch
    if lacks_libraries; then
        echo "setup: this torch needs more libraries, installing all of them"
        pip install "torch==$TORCH"
    fi
}

requirement() { sed -n "s/^$1==//p" scripts/requirements-dev.txt; }

install_dev() {
    while IFS='=' read -r name _ version; do
        has "$name" "$version" || { pip install -r scripts/requirements-dev.txt; break; }
    done < <(grep == scripts/requirements-dev.txt)
    # Only for the chat templates that they ship.
    has trl "$TRL" || pip install --no-deps "trl==$TRL"
    has axolotl "$AXOLOTL" || pip install --no-deps "axolotl==$AXOLOTL"
    scripts/imports.sh --fetch .venv/imports
}

# Nothing fatal: the tests under Slurm are skipped where it is not there. RUNLEVEL=1: no service is started.
install_slurm() {
    for daemon in slurmctld slurmd munged; do
        [ -x "/usr/sbin/$daemon" ] || { local missing=$daemon; break; }
    done
    [ -n "${missing:-}" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: $missing is missing: tests under Slurm will be skipped (as root on Debian: apt-get install slurm-wlm munge)"
        return 0
    fi
    echo "setup: installing slurm-wlm and munge"
    apt() { DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 timeout 300 apt-get -qq "$@" >/dev/null 2>&1; }
    apt install -y slurm-wlm munge || { apt update && apt install -y slurm-wlm munge; } \
        || echo "setup: slurm-wlm and munge cannot be installed: tests under Slurm will be skipped" >&2
}

check_prerequisites
if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || die "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so"
    echo "setup: using libtorch in $LIBTORCH"
    venv
elif [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
    python3 -c 'import torch' 2>/dev/null || die "LIBTORCH_USE_PYTORCH is set, but python3 has no torch: install torch==$TORCH or unset it"
    found=$(python3 -c 'import torch; print(torch.__version__.split("+")[0])')
    [ "$found" = "$TORCH" ] || die "python3's torch is $found: torch==$TORCH is needed"
    echo "setup: using python3's torch $found"
    venv
else
    install_torch
    link_libtorch
fi
if $dev; then install_dev; install_slurm; fi
has tokenizers "$TOKENIZERS" || pip install --no-deps "tokenizers==$TOKENIZERS"

# In one call: cargo unites the features of what it builds together, and would build much twice.
packages=(-p launcher -p rank)
if $dev; then packages+=(-p emulation -p emulated-nvml -p emulated-nccl -p io-faults); fi
cargo build --release --locked --quiet "${packages[@]}"
echo "setup: target/release/dslaunch and target/release/dslaunch-rank are ready"
