#!/usr/bin/env python3
"""Checks on a GPU that dslaunch trains like transformers, that a rank that dies costs nothing, and that deterministic runs have the same bits.

20 steps of the tests' tiny models, in fp32 and bf16, beside transformers on this machine's CPU; fp32 within 1e-4, bf16 within 2e-3 of its
losses. Models of every kind, rows of one length and packed ones. Ends well inside four minutes; prints a table last, writes JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_run import Failed, Run, card, write

PEERS = Path(__file__).resolve().parent
STEPS, LEARNING_RATE = 20, 5e-4
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-3}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
MODELS = ["mha", "gqa", "tied", "biased"]


def python(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(PEERS / script), *arguments], check=True, stdout=subprocess.DEVNULL)


def toml(model: Path, data: Path, packing: bool) -> str:
    return f"""
[model]
path = {json.dumps(str(model))}
device = "cuda"
[data]
train = {json.dumps(str(data))}
seq_len = 64
packing = {str(packing).lower()}
shuffle = false
[train]
steps = {STEPS}
micro_batch_size = 2
global_batch_size = 4
[optimizer]
learning_rate = {LEARNING_RATE}
weight_decay = 0.1
[schedule]
warmup_steps = 2
min_lr_ratio = 0.1
[log]
every_steps = 1
"""


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.rows()]


def worst(found: list[float], expected: list[float]) -> float:
    if len(found) != len(expected):
        raise Failed(f"{len(found)} steps, not {len(expected)}")
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def weights(run: Run) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run.run_dir / "final").glob("*.safetensors")))


def prepare(folder: Path, models: list[str]) -> None:
    """Makes the tests' models, and rows of one length and of several for some of them."""
    python("make_model.py", str(folder), "--variant", "all")
    for name in models:
        vocab = json.loads((folder / name / "config.json").read_text())["vocab_size"]
        for kind, more in [("even", []), ("uneven", ["--uneven"])]:
            data = str(folder / f"{name}-{kind}.jsonl")
            python("make_tokens.py", data, "--rows", "22", "--vocab", str(vocab), "--seq-len", "64", *more)


class Table:
    """Checks, as they go: printed, and written to the file of `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.card = card()

    def add(self, what: str, check: Any) -> None:
        began = time.monotonic()
        try:
            text, passed = check()
        except (Failed, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
            text, passed = str(error), False
        self.rows.append({"what": what, "result": text, "passed": passed, "seconds": round(time.monotonic() - began, 1)})
        print(f"{'PASS' if passed else 'FAIL'}  {what}: {text if passed else text[-3000:]}", flush=True)
        # As it goes: whoever is stopped leaves what was found.
        write(self.name, {"card": self.card, "checks": self.rows})

    def end(self) -> int:
        """Prints the table. Returns the exit code."""
        print()
        for row in self.rows:
            print(f"  {'PASS' if row['passed'] else 'FAIL'}  {row['seconds']:6.1f} s  {row['what']}: {row['result'].splitlines()[0]}")
        return 0 if all(row["passed"] for row in self.rows) else 1


def main() -> int:
    table = Table("smoke")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = []
        prepare(folder, MODELS)
        for name in MODELS:
            for kind in ["even", "uneven"]:
                data = str(folder / f"{name}-{kind}.jsonl")
                for dtype in DTYPES:
                    out = folder / f"{name}-{kind}-{dtype}-reference"
                    jobs.append({"model": str(folder / name), "data": data, "out": str(out), "steps": STEPS, "lr": LEARNING_RATE, "rows_per_step": 4, "dtype": dtype, "threads": 8})
        (folder / "jobs.json").write_text(json.dumps(jobs))
        python("hf_reference.py", "--jobs", str(folder / "jobs.json"))

        def like_transformers(name: str, kind: str, dtype: str) -> tuple[str, bool]:
            sets = [f'model.dtype="{DTYPES[dtype]}"']
            run = Run(folder / f"{name}-{kind}-{dtype}", toml(folder / name, folder / f"{name}-{kind}.jsonl", False), sets).finish(60)
            rows = (folder / f"{name}-{kind}-{dtype}-reference/metrics.jsonl").read_text().splitlines()
            error = worst(losses(run), [row["loss"] for row in map(json.loads, rows) if "loss" in row])
            return f"losses within {error:.1e} of transformers', allowed {TOLERANCES[dtype]:.0e}", error <= TOLERANCES[dtype]

        for name in MODELS:
            for kind in ["even", "uneven"]:
                for dtype in DTYPES:
                    table.add(f"{name}, {kind} rows, {DTYPES[dtype]}", lambda n=name, k=kind, d=dtype: like_transformers(n, k, d))

        def again(what: str, deterministic: bool, fault: str = "", more: list[str] = ()) -> Run:
            sets = ['model.dtype="bf16"', f"train.deterministic={str(deterministic).lower()}", *more]
            return Run(folder / what, toml(folder / "gqa", folder / "gqa-uneven.jsonl", True), sets, fault).finish(60)

        def same_bits() -> tuple[str, bool]:
            first, second = again("first", True), again("second", True)
            same = losses(first) == losses(second) and weights(first) == weights(second)
            return "two deterministic runs have the same losses and weights" if same else "they differ", same

        def offloaded() -> tuple[str, bool]:
            optimizer = ['zero.offload_optimizer="cpu"']
            everything = ["zero.stage=3", 'zero.offload_params="cpu"', *optimizer]
            runs = [again("memory", True), again("optimizer", True, more=optimizer), again("everything", True, more=everything)]
            same = all(losses(run) == losses(runs[0]) and weights(run) == weights(runs[0]) for run in runs)
            return "an offloaded optimizer and offloaded parameters change no bit" if same else "they differ", same

        def recovered() -> tuple[str, bool]:
            died = again("died", True, "kill phase=backward step=7")
            resumed = [event for event in died.events() if event["event"] == "resumed_step"]
            same = losses(died) == losses(again("quiet", True)) and bool(resumed)
            return f"killed in step 7, went on from step {resumed[0]['resumed_step'] if resumed else '-'}, same losses: {same}", same

        table.add("deterministic", same_bits)
        table.add("offloaded", offloaded)
        table.add("a rank that is killed", recovered)
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
