#!/usr/bin/env python3
"""Trains with transformers in one process: the oracle that parity tests compare dslaunch with.

Owns: what "the single-process run" means. Rows come in order (shuffle = false, packing = false): step s takes rows
s * R .. s * R + R - 1, modulo the rows of the data set. The loss is the sum of token cross-entropies over the step divided by
its number of shifted labels, in fp32. Gradients accumulate row by row, each row alone and without padding: no mask and no pad
token can touch the result. Clipping and AdamW are torch's; weight decay spares the one-dimensional parameters, which in this
model family are exactly the norms and the biases. Learning rates come from schedules.py.

With --trained only the parameters whose name contains one of its words are trained; the others are frozen. With --adapter what
PEFT trains of the adapter in that folder is trained, and OUT/final/ is an adapter's folder too; with --dropout beside it, with
dslaunch's masks for --seed. With --quantize the frozen
weights are what they are once they have been in few bits.

With --dtype bfloat16 the model computes in bf16 while masters, gradient sums and optimizer state are fp32. The final model is
saved in the dtype of the source checkpoint.

Writes OUT/metrics.jsonl (step from 1, loss, grad_norm before clipping, learning_rate) and OUT/final/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, TextIO

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoConfig, LlamaForCausalLM
from transformers.utils import logging

import schedules
from lora import dequantized, dropout

IGNORED = -100
Row = dict[str, torch.Tensor]


def read_rows(path: Path) -> list[Row]:
    """Returns `input_ids` and `labels`, both `[1, T]` int64; labels default to input_ids."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [
        {"input_ids": torch.tensor([row["input_ids"]]), "labels": torch.tensor([row.get("labels", row["input_ids"])])}
        for row in rows
    ]


def num_labels(row: Row) -> int:
    return int((row["labels"][:, 1:] != IGNORED).sum())


def loss_sum(model: LlamaForCausalLM, row: Row) -> torch.Tensor:
    """The row's summed cross-entropy, fp32, without a division."""
    logits = model(input_ids=row["input_ids"], use_cache=False).logits[0, :-1].float()  # [T - 1, V]
    return F.cross_entropy(logits, row["labels"][0, 1:], ignore_index=IGNORED, reduction="sum")


class Reference:
    """A model in its compute dtype, the fp32 masters that AdamW updates, and the optimizer over them."""

    def __init__(self, args: argparse.Namespace) -> None:
        config = AutoConfig.from_pretrained(args.model)
        self.source_dtype: torch.dtype = config.dtype or torch.float32
        # The masters live in a model of their own, so that saving them is save_pretrained. In fp32 it is the one that computes.
        self.master = self._load(args, torch.float32)
        self.compute = self.master if args.dtype == "float32" else self._load(args, getattr(torch, args.dtype))
        params = list(self.master.parameters())  # a tied weight appears once
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": args.weight_decay},
            {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.row = dropout.install(self.compute, args.seed, args.dropout) if args.dropout else None
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=tuple(args.betas), eps=args.eps, foreach=False)

    @staticmethod
    def _load(args: argparse.Namespace, dtype: torch.dtype) -> LlamaForCausalLM:
        model = LlamaForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation=args.attention)
        if args.quantize:
            dequantized.dequantize(model, args.quantize)
        if args.adapter:
            return PeftModel.from_pretrained(model, args.adapter, is_trainable=True).train()
        for name, param in model.named_parameters():
            param.requires_grad_(not args.trained or any(part in name for part in args.trained))
        return model.train()

    def backward(self, position: int, row: Row, label_count: int) -> float:
        """Adds the row's gradient to the masters' and returns its loss sum. `position`: of the row in the run."""
        if self.row:
            self.row.position = position
        loss = loss_sum(self.compute, row)
        (loss / max(1, label_count)).backward()
        if self.compute is not self.master:
            for master, param in zip(self.master.parameters(), self.compute.parameters(), strict=True):
                if param.requires_grad:
                    master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
                    param.grad = None
        return loss.item()

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clips, steps, clears the gradients, and returns the norm before clipping. `max_grad_norm` 0 does not clip."""
        grad_norm = torch.nn.utils.clip_grad_norm_(self.master.parameters(), max_grad_norm or math.inf, foreach=False)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.compute is not self.master:
            with torch.no_grad():
                for master, param in zip(self.master.parameters(), self.compute.parameters(), strict=True):
                    param.copy_(master)
        return grad_norm.item()

    @torch.no_grad()
    def evaluate(self, rows: list[Row]) -> float:
        self.compute.eval()
        loss = sum(loss_sum(self.compute, row).item() for row in rows) / max(1, sum(map(num_labels, rows)))
        self.compute.train()
        return loss

    def save(self, out_dir: Path) -> None:
        is_adapter = isinstance(self.master, PeftModel)
        (self.master if is_adapter else self.master.to(self.source_dtype)).save_pretrained(out_dir)


def train(args: argparse.Namespace) -> None:
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    rows = read_rows(args.data)
    factor = schedules.factor_fn(args.schedule, args.steps, args.warmup_steps, args.min_lr_ratio)
    reference = Reference(args)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "metrics.jsonl").open("w") as metrics:
        for step in range(args.steps):
            positions = range(step * args.rows_per_step, (step + 1) * args.rows_per_step)
            batch = [rows[position % len(rows)] for position in positions]
            label_count = sum(map(num_labels, batch))
            total = sum(reference.backward(*row, label_count) for row in zip(positions, batch))
            learning_rate = args.lr * factor(step)
            grad_norm = reference.update(learning_rate, args.max_grad_norm)
            write_row(metrics, {
                "step": step + 1,
                "loss": total / max(1, label_count),
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
            })
        if args.validation:
            write_row(metrics, {"step": args.steps, "eval_loss": reference.evaluate(read_rows(args.validation))})
    reference.save(args.out / "final")


def write_row(out: TextIO, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="other modes: --jobs FILE, --print-schedules")
    result.add_argument("--model", type=Path, required=True)
    result.add_argument("--data", type=Path, required=True, help="JSONL in the tokens format")
    result.add_argument("--out", type=Path, required=True)
    result.add_argument("--steps", type=int, default=6)
    result.add_argument("--rows-per-step", type=int, required=True, help="the global batch size")
    result.add_argument("--lr", type=float, default=1e-3)
    result.add_argument("--betas", type=float, nargs=2, default=[0.9, 0.95])
    result.add_argument("--eps", type=float, default=1e-8)
    result.add_argument("--weight-decay", type=float, default=0.1)
    result.add_argument("--max-grad-norm", type=float, default=1.0)
    result.add_argument("--schedule", choices=schedules.KINDS, default="cosine")
    result.add_argument("--warmup-steps", type=int, default=2)
    result.add_argument("--min-lr-ratio", type=float, default=0.1)
    result.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    result.add_argument("--trained", nargs="+", help="parts of the names of what is trained; without it, everything")
    result.add_argument("--adapter", type=Path, help="the folder of a PEFT adapter, which is trained alone")
    result.add_argument("--quantize", choices=["int8", "nf4"], help="the bits that frozen projections have been in")
    result.add_argument("--dropout", type=float, default=0.0, help="the share that the adapter leaves out of what it reads")
    result.add_argument("--seed", type=int, default=42, help="the job's, of what is left out")
    result.add_argument("--validation", type=Path)
    result.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    result.add_argument("--threads", type=int, default=1)
    return result


def job_arguments(job: dict[str, Any]) -> list[str]:
    """Spells one object of a jobs file as a command line; keys may use - or _, and null leaves the default."""
    argv = []
    for key, value in job.items():
        if value is not None:
            argv.append("--" + key.replace("_", "-"))
            argv.extend(map(str, value if isinstance(value, list) else [value]))
    return argv


def main(argv: list[str]) -> None:
    if argv == ["--print-schedules"]:
        print(json.dumps(schedules.golden(), indent=1))
    elif argv[:1] == ["--jobs"] and len(argv) == 2:
        # All jobs are parsed before the first one runs: a typing error in the last must not cost the time of the others.
        for args in [parser().parse_args(job_arguments(job)) for job in json.loads(Path(argv[1]).read_text())]:
            train(args)
    else:
        train(parser().parse_args(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
