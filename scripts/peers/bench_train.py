#!/usr/bin/env python3
"""Measures training with dslaunch against torchrun with transformers: tokens/s, time to the first step, peak memory.

Owns: what is compared, and the targets; `bench_measure.py` says how it is measured.

Exit codes: 0 all targets met; 1 a target missed, or losses differ; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from bench_measure import (
    Bench,
    Run,
    add_arguments,
    losses_agree,
    main,
    print_table,
    spread,
    verdict,
)
from bench_workloads import WORKLOADS, System, Workload

PEERS = ["ddp", "fsdp2"]
TARGET_TOKENS, TARGET_FIRST_STEP = 1.2, 5.0


def ratios(runs: list[Run]) -> dict[str, list[float]]:
    """dslaunch against the best peer of the same round, more being better, one number per round."""
    found: dict[str, list[float]] = {"tokens_per_second": [], "first_step": [], "peak_rss": [], "peak_pss": []}
    for round_number in sorted({run.round for run in runs}):
        of_round = [run for run in runs if run.round == round_number]
        ours = next(run for run in of_round if run.system == "dslaunch")
        peers = [run for run in of_round if run is not ours]
        found["tokens_per_second"].append(ours.tokens_per_second / max(peer.tokens_per_second for peer in peers))
        found["first_step"].append(min(peer.first_step_seconds for peer in peers) / ours.first_step_seconds)
        found["peak_rss"].append(min(peer.peak_rss_bytes for peer in peers) / ours.peak_rss_bytes)
        found["peak_pss"].append(min(peer.peak_pss_bytes for peer in peers) / max(1, ours.peak_pss_bytes))
    return found


def report(workload: Workload, runs: list[Run]) -> bool:
    """Prints what was found; whether it is good enough."""
    print_table(runs)
    found = ratios(runs)
    print("  per round, dslaunch against the better peer:")
    for key, text in [
        ("tokens_per_second", "times the tokens/s"),
        ("first_step", "times sooner to the first step"),
        ("peak_rss", "times less peak RSS"),
        ("peak_pss", "times less PSS"),
    ]:
        print(f"    {spread(found[key], 2):>20}  {text}")
    if not losses_agree(workload, runs):
        return False
    if not workload.has_targets:
        return True
    return all([
        verdict(workload.name, "median ratio of tokens/s", statistics.median(found["tokens_per_second"]), TARGET_TOKENS),
        verdict(workload.name, "median ratio of time to the first step", statistics.median(found["first_step"]), TARGET_FIRST_STEP),
    ])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh train", description=__doc__.split("\n")[0])
    workloads = [name for name in WORKLOADS if name != "layouts"]
    parser.add_argument("--workload", choices=workloads, action="append", help="may be repeated [default: full and instruct]")
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=PEERS)
    args = add_arguments(parser, steps=30)
    args.workload = list(dict.fromkeys(args.workload or ["full", "instruct"]))
    args.systems = [System("dslaunch"), *(System(peer, strategy=peer) for peer in dict.fromkeys(args.peers))]
    return args


if __name__ == "__main__":
    sys.exit(main(Bench(parse_args(), ["torch", "transformers"], ratios, report)))
