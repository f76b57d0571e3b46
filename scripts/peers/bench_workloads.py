"""The jobs that the benchmarks of training run on both sides: models, data, and how each side is told to train on them.

Owns: the workloads, the settings that both sides share, each side's command line, and where its steps are read from. It measures
nothing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from make_tokens import IGNORED, full_row

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "bench"
DSLAUNCH = ROOT / "target" / "release" / "dslaunch"

NUM_RANKS = 2
WARMUP_STEPS = 5  # not counted in tokens/s: allocators and caches settle
SEED = 42
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM, SCHEDULE_WARMUP_STEPS, MIN_LR_RATIO = 1e-3, 0.1, 1.0, 3, 0.1

Row = dict[str, list[int]]


class BenchError(Exception):
    """Something that makes measuring pointless."""


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    about: str
    model: dict[str, int]
    seq_len: int
    micro_batch_size: int
    accumulation: int
    has_targets: bool

    @property
    def rows_per_step(self) -> int:
        return self.micro_batch_size * self.accumulation * NUM_RANKS

    @property
    def dir(self) -> Path:
        return WORK / self.name


@dataclasses.dataclass(frozen=True)
class System:
    """dslaunch on one layout, or a peer: another trainer with one of its strategies."""

    name: str
    sets: tuple[str, ...] = ()  # dslaunch's `--set`s
    strategy: str | None = None  # a peer's, as train_transformers.py names it
    options: tuple[str, ...] = ()  # more of a peer's options
    programs: Path = DSLAUNCH.parent  # dslaunch and dslaunch-rank, ours or an earlier build's

    @property
    def is_peer(self) -> bool:
        return self.strategy is not None


# The sizes that examples/quickstart/make_corpus.py writes.
QUICKSTART_ATTENTION = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
QUICKSTART_MODEL = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688, **QUICKSTART_ATTENTION}
WIDE_ATTENTION = {"num_hidden_layers": 6, "num_attention_heads": 12, "num_key_value_heads": 4}
WIDE_MODEL = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, **WIDE_ATTENTION}
# DeepSeek-LLM-7B's proportions at a sixteenth of its width: the head costs as much as two blocks, the vocabulary is 25 times as wide.
NARROW_ATTENTION = {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4}
NARROW_MODEL = {"vocab_size": 6400, "hidden_size": 256, "intermediate_size": 688, **NARROW_ATTENTION}
WORKLOADS = {
    workload.name: workload
    for workload in [
        Workload("full", "rows of 256 random tokens, all with labels", QUICKSTART_MODEL, 256, 4, 2, has_targets=True),
        Workload("instruct", "uneven rows, prompts without labels: docstrings", QUICKSTART_MODEL, 256, 8, 2, has_targets=True),
        Workload("wide", "rows of 512 random tokens, all with labels", WIDE_MODEL, 512, 2, 2, has_targets=False),
        Workload("layouts", "rows of 256 random tokens, all with labels", NARROW_MODEL, 256, 2, 4, has_targets=True),
    ]
}


def make_model(workload: Workload) -> None:
    """Writes config.json and random weights. Runs in a process of its own: torch must not live in the one that measures."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    config = LlamaConfig(**workload.model, max_position_embeddings=workload.seq_len, rms_norm_eps=1e-6)
    LlamaForCausalLM(config).save_pretrained(workload.dir / "model")


def random_rows(workload: Workload, steps: int) -> list[Row]:
    rng = random.Random(SEED)
    return [full_row(rng, workload.model["vocab_size"], workload.seq_len) for _ in range(steps * workload.rows_per_step)]


def instruction_rows(workload: Workload) -> list[Row]:
    """The quickstart's pairs, tokenised: bos, prompt, completion, eos, of which the prompt has no labels."""
    from tokenizers import Tokenizer

    corpus = workload.dir / "corpus"
    maker = ROOT / "examples" / "quickstart" / "make_corpus.py"
    made = subprocess.run([sys.executable, maker, "--out", corpus], capture_output=True, text=True)
    if made.returncode != 0:
        raise BenchError(f"make_corpus.py failed: {made.stderr}")
    tokenizer = Tokenizer.from_file(str(corpus / "model" / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|eos|>")
    rows = []
    for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        prompt = tokenizer.encode(pair["prompt"]).ids  # begins with bos
        completion = [*tokenizer.encode(pair["completion"], add_special_tokens=False).ids, eos]
        if len(prompt) + len(completion) <= workload.seq_len:
            rows.append({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
    return rows


def prepare(workload: Workload, steps: int) -> list[Row]:
    """Writes the workload's model, data and train.toml, and returns the rows."""
    shutil.rmtree(workload.dir, ignore_errors=True)
    workload.dir.mkdir(parents=True)
    maker = multiprocessing.get_context("spawn").Process(target=make_model, args=(workload,))
    maker.start()
    rows = instruction_rows(workload) if workload.name == "instruct" else random_rows(workload, steps)
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    (workload.dir / "tokens.jsonl").write_text("".join(lines))
    (workload.dir / "train.toml").write_text(train_toml(workload))
    maker.join()
    if maker.exitcode != 0:
        raise BenchError(f"making the model of {workload.name} failed")
    return rows


def tokens_by_step(workload: Workload, rows: list[Row], steps: int) -> list[int]:
    size = workload.rows_per_step
    return [sum(len(rows[i % len(rows)]["input_ids"]) for i in range(step * size, (step + 1) * size)) for step in range(steps)]


def train_toml(workload: Workload) -> str:
    """What is not here is a default of dslaunch, ZeRO's stage included. Steps and folder are left to the command line."""
    values = {
        "model.path": str(workload.dir / "model"),
        "model.init": "pretrained",
        "model.dtype": "fp32",
        "data.train": [str(workload.dir / "tokens.jsonl")],
        "data.format": "tokens",
        "data.seq_len": workload.seq_len,
        "data.packing": False,
        "data.shuffle": False,
        "train.micro_batch_size": workload.micro_batch_size,
        "train.global_batch_size": workload.rows_per_step,
        "train.max_grad_norm": MAX_GRAD_NORM,
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "schedule.kind": "cosine",
        "schedule.warmup_steps": SCHEDULE_WARMUP_STEPS,
        "schedule.min_lr_ratio": MIN_LR_RATIO,
        "checkpoint.every_steps": 10**9,
        "restart.max_restarts": 0,
        "log.every_steps": 1,
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())  # these are TOML too


def command(system: System, workload: Workload, steps: int) -> list[str]:
    out = workload.dir / system.name
    if not system.is_peer:
        sets = [f"train.steps={steps}", f"job.output_dir={out}", *system.sets]
        return [
            str(system.programs / DSLAUNCH.name),
            "--nproc",
            str(NUM_RANKS),
            *(part for value in sets for part in ("--set", value)),
            str(workload.dir / "train.toml"),
        ]
    options = {
        "strategy": system.strategy,
        "model": workload.dir / "model",
        "init": "pretrained",
        "data": workload.dir / "tokens.jsonl",
        "out": out / "metrics.jsonl",
        "steps": steps,
        "micro-batch-size": workload.micro_batch_size,
        "accumulation": workload.accumulation,
        "seq-len": workload.seq_len,
        "lr": LEARNING_RATE,
        "weight-decay": WEIGHT_DECAY,
        "max-grad-norm": MAX_GRAD_NORM,
        "warmup-steps": SCHEDULE_WARMUP_STEPS,
        "min-lr-ratio": MIN_LR_RATIO,
    }
    trainer = ROOT / "scripts" / "peers" / "train_transformers.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS), str(trainer)]
    return torchrun + [part for name, value in options.items() for part in (f"--{name}", str(value))] + list(system.options)


def first_step_line(system: System) -> re.Pattern[str]:
    return re.compile(r'\{"step": 1,' if system.is_peer else r"step 1/")


def read_steps(system: System, workload: Workload, steps: int) -> list[dict[str, Any]]:
    lines = (workload.dir / system.name / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise BenchError(f"{workload.name}: {system.name} reported {len(rows)} steps instead of {steps}")
    return rows


def steady_seconds(system: System, rows: list[dict[str, Any]]) -> float:
    """From the end of step WARMUP_STEPS to the end of the last one."""
    if not system.is_peer:  # with every step logged, a row's clock starts where the last row's stopped
        return sum(row["step_seconds"] for row in rows[WARMUP_STEPS:])
    return rows[-1]["unix_time"] - rows[WARMUP_STEPS - 1]["unix_time"]
