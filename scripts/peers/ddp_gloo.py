#!/usr/bin/env python3
"""A program for torchrun, as users write them: trains a linear layer with DistributedDataParallel over gloo on CPUs.

Owns: a check that a launcher's worker environment is what torch expects. Every rank draws other weights and other rows;
DistributedDataParallel makes the weights rank 0's and averages the gradients, so all ranks end with the same ones.
Prints one line per rank. With --fail-rank R, that rank raises in the first attempt, after the first step:

    torchrun --nproc-per-node 2 scripts/peers/ddp_gloo.py [--fail-rank R]
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

STEPS = 4


@record
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail-rank", type=int)
    arguments = parser.parse_args()
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    assert rank == int(os.environ["RANK"]) == int(os.environ["LOCAL_RANK"])
    assert world_size == int(os.environ["WORLD_SIZE"]) == int(os.environ["LOCAL_WORLD_SIZE"])
    assert dist.is_torchelastic_launched()

    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        if step == 0 and attempt == 0 and rank == arguments.fail_rank:
            raise ValueError(f"rank {rank} fails as it was told to")

    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    others = [torch.empty_like(weights) for _ in range(world_size)]
    dist.all_gather(others, weights)
    assert all(torch.equal(weights, other) for other in others)
    print(f"rank {rank} of {world_size} in attempt {attempt}: same weights", flush=True)
    # A process group that lives until the interpreter exits aborts now and then ("terminate called without an active exception"),
    # after all the work is done: what holds it goes first, and nobody leaves while another still talks.
    del model, optimizer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
