#!/usr/bin/env python3
"""Compares what two builds of dslaunch make of the same jobs: every loss and gradient norm, and the final weights, to the bit.

Owns: the layouts. Each is a short training of the quickstart model, run by the programs of OLD and then by those of NEW, two
folders that hold dslaunch and dslaunch-rank. A rank that is killed on purpose and a job that is resumed are among them.

Exit codes: 0 all the same; 1 something differs; 2 a job could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "runs/quickstart-data"
STEPS = 12
# Numbers of a row that training computes; the others say how long it took.
COMPUTED = ("step", "loss", "grad_norm", "learning_rate", "tokens", "eval_loss")


@dataclass(frozen=True)
class Layout:
    """How one job is run."""

    name: str
    nproc: int = 2
    sets: tuple[str, ...] = ()
    fault: str = ""
    # Trains to here first, ends, and is started again.
    ends_at: int | None = None


LAYOUTS = [
    Layout("one-rank", nproc=1),
    *(Layout(f"dp2-zero{stage}", sets=(f"zero.stage={stage}",)) for stage in range(4)),
    Layout("dp2-zero3-offload", sets=("zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_params=cpu")),
    Layout("dp2-zero3-prefetch", sets=("zero.stage=3", "zero.prefetch_units=2")),
    Layout("dp3-zero3", nproc=3, sets=("zero.stage=3", "train.global_batch_size=12")),
    Layout("tp2", sets=("parallel.tensor=2",)),
    Layout("tp2-no-sequence", sets=("parallel.tensor=2", "parallel.sequence=false")),
    *(
        Layout(f"pp2-{schedule}", sets=("parallel.pipeline=2", f"parallel.pipeline_schedule={schedule}"))
        for schedule in ("1f1b", "interleaved", "zero_bubble")
    ),
    Layout("dp2-tp2", nproc=4, sets=("parallel.tensor=2", "zero.stage=1")),
    Layout("dp2-pp2-zero2", nproc=4, sets=("parallel.pipeline=2", "zero.stage=2")),
    Layout("bf16", sets=("model.dtype=bf16", "zero.stage=3")),
    Layout("bf16-tp2", sets=("model.dtype=bf16", "parallel.tensor=2")),
    Layout("tied", sets=("model.path=TIED", "zero.stage=3")),
    Layout("tied-pp2", sets=("model.path=TIED", "parallel.pipeline=2")),
    Layout("checkpointing-full", sets=("train.activation_checkpointing=full",)),
    Layout("checkpointing-ffn", sets=("train.activation_checkpointing=ffn", "parallel.tensor=2")),
    Layout("unpacked", sets=("data.packing=false", "zero.stage=1")),
    Layout("resumed", sets=("zero.stage=3",), ends_at=6),
    Layout("killed", sets=("zero.stage=2",), fault="kill rank=1 phase=backward step=7"),
    Layout("killed-no-snapshot", sets=("restart.snapshot_every_steps=0",), fault="kill rank=0 phase=update step=8"),
]


def train(programs: Path, layout: Layout, folder: Path, tied: Path) -> dict[str, object]:
    """Runs one job to its end. Returns what it has computed: rows by kind and step, and a hash of each file of weights."""
    output = folder / "run"
    sets = [f"job.output_dir={output}", "train.global_batch_size=16", "validation.every_steps=6", "checkpoint.every_steps=6",
            "log.every_steps=1", "schedule.warmup_steps=4", *layout.sets]
    sets = [f"--set={text.replace('TIED', str(tied))}" for text in sets]
    environment = dict(os.environ, DSLAUNCH_FAULT=layout.fault)
    for end in [end for end in (layout.ends_at, STEPS) if end]:
        command = [programs / "dslaunch", "--nproc", str(layout.nproc), *sets, f"--set=train.steps={end}", "examples/quickstart/train.toml"]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{layout.name}: {' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}", file=sys.stderr)
            sys.exit(2)
    computed: dict[str, object] = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kind = "eval" if "eval_loss" in row else "step"
        computed[f"{kind} {row['step']}"] = {key: repr(row[key]) for key in COMPUTED if key in row}
    for path in sorted((output / "final").glob("*.safetensors")):
        computed[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return computed


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """One line for each thing that only one has or that differs."""
    return [f"{what}: {old.get(what)} and {new.get(what)}" for what in sorted(old.keys() | new.keys()) if old.get(what) != new.get(what)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a folder with dslaunch and dslaunch-rank")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--only", default="", help="layouts whose name contains this")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="same-bits-") as scratch:
        tied = Path(scratch) / "tied"
        shutil.copytree(DATA / "model", tied)
        config = json.loads((tied / "config.json").read_text())
        (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        layouts = [layout for layout in LAYOUTS if arguments.only in layout.name]
        for layout in layouts:
            runs = [train(programs.resolve(), layout, Path(scratch) / f"{layout.name}-{which}", tied)
                    for which, programs in (("old", arguments.old), ("new", arguments.new))]
            found = differences(*runs)
            last = runs[1].get(f"step {STEPS}", {})
            print(f"{layout.name:20} {'same' if not found else 'DIFFERENT'}  {len(runs[0])} values, last loss {last.get('loss')}", flush=True)
            for line in found[:5]:
                print(f"    {line}")
            wrong += bool(found)
    print(f"{len(layouts)} layouts, {wrong} different")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
