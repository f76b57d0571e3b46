#!/usr/bin/env python3
"""Measures what two jobs on the same cores leave each other, and what the way in which their threads wait costs one job alone.

Owns: the targets. Rounds in turn, medians of a step's seconds; exit code 0 all targets met, 1 one missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET_BESIDE, TARGET_ALONE = 0.4, 0.97
# What OpenMP's runtime does where nobody says anything: about ten milliseconds of spinning.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
FIRST_STEPS = 5


class Job:
    """A training job of one rank on all cores."""

    def __init__(self, folder: Path, name: str, steps: int, env: dict[str, str]) -> None:
        self.run = folder / name
        shutil.rmtree(self.run, ignore_errors=True)
        sets = [
            f"job.output_dir={self.run}",
            f"train.steps={steps}",
            "log.every_steps=1",
            "data.validation=[]",
            "checkpoint.every_steps=1000000",
        ]
        arguments = [argument for key in sets for argument in ("--set", key)]
        command = ["target/release/dslaunch", "--nproc", "1", *arguments, "examples/quickstart/train.toml"]
        self.process = subprocess.Popen(
            command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def steps_per_second(self) -> float:
        """Waits for its end."""
        if self.process.wait() != 0:
            sys.exit(f"{self.run}: the job ended with {self.process.returncode}")
        rows = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return 1 / statistics.median(row["step_seconds"] for row in rows[FIRST_STEPS:] if "step_seconds" in row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    alone, spinning, beside = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            ways = [(alone, {}), (spinning, SPINNING)]
            for found, env in ways if number % 2 == 0 else ways[::-1]:
                found.append(Job(Path(folder), "alone", arguments.steps, env).steps_per_second())
            two = [Job(Path(folder), f"beside-{i}", arguments.steps, {}) for i in range(2)]
            beside.append(min(job.steps_per_second() for job in two))
            print(f"round {number + 1}: alone {alone[-1]:.3f}, spinning {spinning[-1]:.3f}, the slower of two {beside[-1]:.3f} steps/s")
    reference = statistics.median(alone)
    part, cost = statistics.median(beside) / reference, reference / statistics.median(spinning)
    print(f"of two at once each has at least {part:.2f} of its speed alone (target {TARGET_BESIDE})")
    print(f"alone: {cost:.3f} times the speed of threads that spin (target {TARGET_ALONE})")
    return 0 if part >= TARGET_BESIDE and cost >= TARGET_ALONE else 1


if __name__ == "__main__":
    sys.exit(main())
