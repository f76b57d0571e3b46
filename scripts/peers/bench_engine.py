#!/usr/bin/env python3
"""Measures every layout of dslaunch's engine against FSDP2 and DeepSpeed: tokens/s, peak memory, pipeline bubbles.

Owns: the layouts, and the targets; `bench_measure.py` says how it is measured. All layouts and peers take the same global batch.
Tensor and pipeline parallelism are measured against dslaunch's own data parallelism, as the peers do not have them on CPUs.

Exit codes: 0 all targets met; 1 a target missed, or losses differ; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from bench_measure import Bench, Run, add_arguments, losses_agree, main, print_table, verdict
from bench_workloads import System, Workload

PLAIN = "dp2"
LAYOUTS = [
    System(PLAIN),
    System("dp2-zero0", ("zero.stage=0",)),
    System("dp2-zero2", ("zero.stage=2",)),
    System("dp2-zero3", ("zero.stage=3",)),
    System("dp2-zero3-offload", ("zero.stage=3", "zero.offload_optimizer=cpu", "zero.offload_params=cpu")),
    System("tp2", ("parallel.tensor=2",)),
    System("tp2-no-sequence", ("parallel.tensor=2", "parallel.sequence=false")),
    System("pp2-1f1b", ("parallel.pipeline=2",)),
    System("pp2-interleaved", ("parallel.pipeline=2", "parallel.pipeline_schedule=interleaved")),
    System("pp2-zero-bubble", ("parallel.pipeline=2", "parallel.pipeline_schedule=zero_bubble")),
]
PEERS = [System("fsdp2", strategy="fsdp2"), System("deepspeed-zero3", strategy="deepspeed")]
TARGET_ZERO3, TARGET_CUT = 1.2, 0.8


def ratios(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
    """Tokens/s and peak memory of each layout by those of our own dp2, and of the best peer; one number per round."""
    found: dict[str, dict[str, list[float]]] = {}
    for round_number in sorted({run.round for run in runs}):
        by_name = {run.system: run for run in runs if run.round == round_number}
        peers = [by_name[peer.name] for peer in PEERS]
        for name, run in by_name.items():
            of_layout = found.setdefault(name, {"tokens by dp2": [], "tokens by peer": [], "peak RSS by peer": []})
            of_layout["tokens by dp2"].append(run.tokens_per_second / by_name[PLAIN].tokens_per_second)
            of_layout["tokens by peer"].append(run.tokens_per_second / max(peer.tokens_per_second for peer in peers))
            of_layout["peak RSS by peer"].append(run.peak_rss_bytes / min(peer.peak_rss_bytes for peer in peers))
    return found


def bubbles(runs: list[Run]) -> dict[str, float]:
    """The part of a pipeline's time that its stages wait, by layout: median over the rounds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run.bubble is not None:
            found.setdefault(run.system, []).append(run.bubble)
    return {name: statistics.median(values) for name, values in found.items()}


def report(workload: Workload, runs: list[Run]) -> bool:
    """Prints what was found; whether it is good enough."""
    print_table(runs)
    medians = {name: {what: statistics.median(values) for what, values in found.items()} for name, found in ratios(runs).items()}
    waiting = bubbles(runs)
    print(f"  {'median of ratios':20}" + "".join(f"{what:>18}" for what in medians[PLAIN]) + f"{'bubble':>10}")
    for name, of_layout in medians.items():
        bubble = f"{waiting[name]:.1%}" if name in waiting else ""
        print(f"  {name:20}" + "".join(f"{ratio:>18.2f}" for ratio in of_layout.values()) + f"{bubble:>10}")
    if not losses_agree(workload, runs):
        return False
    saved = waiting["pp2-1f1b"] - waiting["pp2-zero-bubble"]
    checks = [
        ("dp2-zero3: tokens/s by the best peer's", medians["dp2-zero3"]["tokens by peer"], TARGET_ZERO3),
        *((f"{name}: tokens/s by dp2's", medians[name]["tokens by dp2"], TARGET_CUT) for name in ["tp2", *waiting]),
        *(
            (f"{layout.name}: the leanest peer's peak RSS by its own", 1 / medians[layout.name]["peak RSS by peer"], 1.0)
            for layout in LAYOUTS
        ),
        ("percent of the time by which zero-bubble's bubble is below 1f1b's", 100 * saved, 0.0),
    ]
    return all([verdict(workload.name, what, value, target) for what, value, target in checks])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh engine", description=__doc__.split("\n")[0])
    names = [layout.name for layout in LAYOUTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="LAYOUT", help="with --before: these layouts")
    args = add_arguments(parser, steps=15)
    args.workload = ["layouts"]
    args.systems = [*(layout for layout in LAYOUTS if not args.before or layout.name in args.only), *PEERS]
    return args


if __name__ == "__main__":
    sys.exit(main(Bench(parse_args(), ["torch", "transformers", "deepspeed"], ratios, report)))
