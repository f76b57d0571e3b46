#!/usr/bin/env python3
"""Trains with transformers and torch's or DeepSpeed's parallelism on CPUs: the peer that benchmarks compare dslaunch with.

Owns: what a competent user would write today. DistributedDataParallel, FSDP2 (`fully_shard` on each layer and the root), or
DeepSpeed's ZeRO 3, over gloo; no gradient traffic before the last micro-batch of a step where the strategy can put it off; torch's
fused AdamW and clip_grad_norm_ (or DeepSpeed's clipping); the loss divided by the number of labels of the whole global batch. Row
order is dslaunch's with shuffle = false and packing = false. Run by torchrun:

    torchrun --nproc-per-node 2 scripts/peers/train_transformers.py --strategy ddp --model DIR --data tokens.jsonl ...

Rank 0 writes to --out: one row per step with step (from 1), loss, grad_norm, learning_rate, step_seconds, tokens_per_second
(label tokens, as dslaunch counts them) and unix_time; once {"first_step_unix_time"}, when the first step has ended; last
{"peak_rss_bytes_sum", "peak_rss_bytes_max", "peak_rss_bytes"} over the ranks.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TextIO

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, get_cosine_with_min_lr_schedule_with_warmup
from transformers.utils import logging

IGNORED = -100
Row = dict[str, list[int]]
Batch = dict[str, torch.Tensor]


def read_rows(path: Path, seq_len: int) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    longest = max(len(row["input_ids"]) for row in rows)
    if longest > seq_len:
        raise ValueError(f"{path}: a row has {longest} tokens, but --seq-len is {seq_len}")
    return rows


def collate(rows: list[Row]) -> Batch:
    """Returns `[M, T]` tensors, padded on the right where lengths differ, with an attention mask only then."""
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)

    def padded(key: str, value: int) -> torch.Tensor:
        tokens = [row.get(key, row["input_ids"]) for row in rows]
        return torch.tensor([row + [value] * (longest - len(row)) for row in tokens])

    batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED)}
    if min(lengths) < longest:
        batch["attention_mask"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return batch


def num_labels(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORED).sum())


class DataParallel:
    """torch's two strategies behind one interface: the wrapped model, when gradients are reduced, and in which dtype it computes."""

    def __init__(self, args: argparse.Namespace, model: torch.nn.Module) -> None:
        self.is_ddp = args.strategy == "ddp"
        self.is_bf16 = args.dtype == "bfloat16"
        if self.is_ddp:
            self.model: Any = DistributedDataParallel(model, gradient_as_bucket_view=True)
            return
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if self.is_bf16 else MixedPrecisionPolicy()
        for module in [*model.model.layers, model]:
            fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=not args.no_reshard)
        self.model = model

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        """Encloses one forward and backward pass; only the last of a step reduces gradients."""
        if self.is_ddp:
            return nullcontext() if is_last else self.model.no_sync()
        self.model.set_requires_gradient_sync(is_last)
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.is_ddp and self.is_bf16)


def load_model(args: argparse.Namespace) -> torch.nn.Module:
    """Parameters are fp32 in either --dtype: bf16 is what they compute in."""
    if args.init == "pretrained":
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    torch.manual_seed(args.seed)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model), dtype=torch.float32)


def make_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.AdamW:
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]
    choice = {args.adamw: True} if args.adamw != "plain" else {"foreach": False}
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), eps=1e-8, **choice)


def make_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return get_cosine_with_min_lr_schedule_with_warmup(optimizer, args.warmup_steps, args.steps, min_lr_rate=args.min_lr_ratio)


class TorchStep:
    """One optimizer step with torch's own parallelism."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.parallel = DataParallel(args, load_model(args).train())
        self.params = list(self.parallel.model.parameters())
        self.optimizer = make_optimizer(args, self.parallel.model)
        self.schedule = make_schedule(args, self.optimizer)

    def run(self, batches: list[Batch], label_count: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """Returns this rank's share of the loss, the gradient norm and the learning rate."""
        loss = torch.zeros(())
        for i, batch in enumerate(batches):
            with self.parallel.micro_batch(i == len(batches) - 1):
                with self.parallel.autocast():
                    part = self.parallel.model(**batch, use_cache=False, num_items_in_batch=label_count).loss
                # Both strategies average gradients over the ranks; this loss is already a share of the global mean.
                (part * dist.get_world_size()).backward()
            loss += part.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.params, self.args.max_grad_norm)
        if not self.parallel.is_ddp:
            grad_norm = grad_norm.full_tensor()
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss, grad_norm.item(), learning_rate


class DeepSpeedStep:
    """One optimizer step with DeepSpeed's ZeRO 3, with the sizes that Accelerate fills in for "auto"."""

    def __init__(self, args: argparse.Namespace) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # ninja, with which DeepSpeed compiles its shared-memory collectives at the first start, lies beside this interpreter.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        import deepspeed

        self.args = args
        model = load_model(args).train()
        hidden = model.config.hidden_size
        config = {
            "train_micro_batch_size_per_gpu": args.micro_batch_size,
            "gradient_accumulation_steps": args.accumulation,
            "gradient_clipping": args.max_grad_norm,
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": 3,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "reduce_bucket_size": hidden * hidden,
                "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
                "stage3_param_persistence_threshold": 10 * hidden,
            },
        }
        self.engine, _, _, self.schedule = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(args, model),
            lr_scheduler=lambda optimizer: make_schedule(args, optimizer),
            config=config,
        )

    def run(self, batches: list[Batch], label_count: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        """As TorchStep.run."""
        loss = torch.zeros(())
        learning_rate = self.schedule.get_last_lr()[0]
        for batch in batches:
            part = self.engine(**batch, use_cache=False, num_items_in_batch=label_count).loss
            # DeepSpeed averages over ranks and micro-batches; this loss is already a share of the global mean.
            self.engine.backward(part * (dist.get_world_size() * len(batches)))
            self.engine.step()
            loss += part.detach()
        return loss, float(self.engine.get_global_grad_norm()), learning_rate


class Trainer:
    """Everything that lives as long as the run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.rows = read_rows(args.data, args.seq_len)
        self.one_step = DeepSpeedStep(args) if args.strategy == "deepspeed" else TorchStep(args)

    def micro_batches(self, step: int) -> list[Batch]:
        args, batches = self.args, []
        for accumulation in range(args.accumulation):
            first = ((step * args.accumulation + accumulation) * self.world_size + self.rank) * args.micro_batch_size
            batches.append(collate([self.rows[(first + i) % len(self.rows)] for i in range(args.micro_batch_size)]))
        return batches

    def step(self, step: int) -> dict[str, Any]:
        began = time.perf_counter()
        batches = self.micro_batches(step)
        label_count = torch.tensor(sum(map(num_labels, batches)))
        dist.all_reduce(label_count)
        loss, grad_norm, learning_rate = self.one_step.run(batches, label_count)
        dist.all_reduce(loss)
        seconds = time.perf_counter() - began
        return {
            "step": step + 1,
            "loss": loss.item(),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "step_seconds": seconds,
            "tokens_per_second": label_count.item() / seconds,
            "unix_time": time.time(),
        }


def peak_rss() -> dict[str, Any]:
    """Collective: every rank calls it, and all get every rank's peak."""
    peaks: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # Linux counts KiB
    return {"peak_rss_bytes_sum": sum(peaks), "peak_rss_bytes_max": max(peaks), "peak_rss_bytes": peaks}


def run(args: argparse.Namespace, out: TextIO | None) -> None:
    def report(row: dict[str, Any]) -> None:
        if out is not None:
            line = json.dumps(row)
            print(line, flush=True)
            out.write(line + "\n")
            out.flush()

    trainer = Trainer(args)
    for step in range(args.steps):
        row = trainer.step(step)
        report(row)
        if step == 0:
            report({"first_step_unix_time": row["unix_time"]})
    report(peak_rss())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strategy", choices=["ddp", "fsdp2", "deepspeed"], required=True)
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json, and weights for --init pretrained")
    parser.add_argument("--init", choices=["random", "pretrained"], default="random")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--data", type=Path, required=True, help="JSONL in the tokens format")
    parser.add_argument("--out", type=Path, required=True, help="metrics.jsonl")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--min-lr-ratio", type=float, default=0.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="what forward and backward compute in")
    parser.add_argument("--adamw", choices=["fused", "foreach", "plain"], default="fused")
    parser.add_argument("--no-reshard", action="store_true", help="fsdp2: keep parameters gathered until backward (ZeRO-2)")
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w") as out:
            run(args, out)
    else:
        run(args, None)
    # FSDP2's state sits in reference cycles and holds process groups. One that lives until the interpreter exits aborts about one
    # run in ten ("terminate called without an active exception"), after all the work is done.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
