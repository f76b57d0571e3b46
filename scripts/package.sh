#!/usr/bin/env bash
# Packages the programs for machines without a compiler: a wheel that pip installs beside torch, and an archive to unpack.
# Usage: scripts/package.sh [FOLDER]   (default: target/package)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
exec .venv/bin/python scripts/package/build.py "${1:-target/package}"
