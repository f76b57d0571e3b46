"""A torch.distributed program for `scripts/bench.sh launch`: a first all-reduce over gloo, a line that says so, then it waits."""

import os
import signal
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if total.item() != dist.get_world_size():
    raise SystemExit(f"all_reduce gave {total.item()}")
line = f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {dist.get_rank()} {os.getpid()} {time.time_ns()}\n"
with open(os.environ["BENCH_LOG"], "a") as log:
    log.write(line)
signal.pause()
