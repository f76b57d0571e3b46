#!/usr/bin/env bash
# Has the operating system refuse something in every place where dslaunch asks it for something, once in each: a file that cannot
# be written, made or renamed, a process or a thread that cannot be started, a peer that is gone. Says what becomes of the job.
#   scripts/io_faults.sh [COUNT [SEED]]
# Without COUNT every place is played. scripts/test.sh plays some.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec scripts/trials.sh io_faults "${1:-1000000}" "${2:-1}"
