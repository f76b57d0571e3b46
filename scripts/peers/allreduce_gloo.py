#!/usr/bin/env python3
"""A program for torchrun on several machines: sums numbers over all ranks with gloo, step after step.

Owns: a check that a launcher's worker environment fits together across machines, and a way to lose a machine's launcher in
the middle. Prints one line per rank. With --kill-node N, the first rank of node N kills the launcher that has started it
(dslaunch is two processes, so its parent and that one's parent) with SIGKILL in the first attempt, after the first step;
with --fail-rank R, rank R kills itself likewise:

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr HOST scripts/peers/allreduce_gloo.py
"""

from __future__ import annotations

import argparse
import os
import signal

import torch
import torch.distributed as dist

STEPS = 5


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(") ", 1)[1].split()[1])


def kill_launcher() -> None:
    launcher = os.getppid()
    for pid in (parent_of(launcher), launcher):
        os.kill(pid, signal.SIGKILL)
    signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-node", type=int)
    parser.add_argument("--fail-rank", type=int)
    arguments = parser.parse_args()
    rank, world_size, local_rank, node = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
    )
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    assert (rank, world_size) == (dist.get_rank(), dist.get_world_size())
    total = torch.zeros(1, dtype=torch.int64)
    for step in range(STEPS):
        part = torch.tensor([(step + 1) * (rank + 1)])
        dist.all_reduce(part)
        assert part.item() == (step + 1) * world_size * (world_size + 1) // 2
        total += part
        if step == 0 and attempt == 0 and node == arguments.kill_node and local_rank == 0:
            kill_launcher()
        if step == 0 and attempt == 0 and rank == arguments.fail_rank:
            os.kill(os.getpid(), signal.SIGKILL)
    # Python may write a line in two parts, and ranks share the terminal.
    os.write(1, f"rank {rank} of {world_size} on node {node} in attempt {attempt}: {total.item()}\n".encode())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
