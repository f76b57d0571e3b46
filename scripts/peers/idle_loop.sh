#!/bin/sh
# A program for `scripts/bench.sh launch`: a line that says that it runs, then it waits.
echo "$TORCHELASTIC_RESTART_COUNT $RANK $$ $(date +%s%N)" >> "$BENCH_LOG"
exec sleep 1000
