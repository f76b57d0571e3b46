#!/usr/bin/env python3
"""Checks ranks that share one GPU and exchange over NCCL: every layout trains like one rank, deterministic runs have the same bits, and a
rank that is killed in an exchange costs nothing.

20 steps of the tests' tiny models in fp32 and bf16, with 2 and 4 ranks. Sharing a card is for tests: NCCL goes by way of the host, so no
speed here says anything. Ends well inside four minutes; prints a table last, writes JSON.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from gpu_run import Run
from gpu_smoke import Table, losses, prepare, toml, weights, worst

TOLERANCES = {"fp32": 1e-5, "bf16": 5e-3}
LAYOUTS: list[tuple[int, list[str]]] = [
    *((2, [f"zero.stage={stage}"]) for stage in range(4)),
    (2, ["zero.stage=3", "zero.prefetch_units=2"]),
    (2, ["zero.stage=3", 'zero.offload_optimizer="cpu"', 'zero.offload_params="cpu"']),
    (2, ["parallel.tensor=2"]),
    (2, ["parallel.tensor=2", "parallel.sequence=false"]),
    (2, ["parallel.pipeline=2"]),
    (2, ["parallel.pipeline=2", 'parallel.pipeline_schedule="interleaved"']),
    (4, ["zero.stage=3"]),
    (4, ["parallel.tensor=2", "zero.stage=1"]),
    (4, ["parallel.pipeline=2", "parallel.tensor=2"]),
]
KILLED: list[tuple[int, list[str], str]] = [
    (2, ["zero.stage=3"], "kill-inside rank=1 phase=forward unit=1 step=7"),
    (2, ["zero.stage=0"], "kill-inside rank=0 phase=backward unit=1 step=7"),
    (2, ["parallel.tensor=2"], "kill-inside rank=1 phase=forward unit=1 step=7"),
    (2, ["parallel.pipeline=2"], "kill-inside rank=0 phase=backward step=7"),
]


def main() -> int:
    table = Table("ranks")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, ["gqa"])
        model, data = folder / "gqa", folder / "gqa-uneven.jsonl"

        def run(ranks: int, dtype: str, layout: list[str], what: str = "", fault: str = "") -> Run:
            name = f"{ranks}-{dtype}-{'-'.join(layout)}-{what}".replace('"', "").replace("=", "-")
            sets = [f'model.dtype="{dtype}"', "train.deterministic=true", f"train.micro_batch_size={1 if ranks > 1 else 2}", *layout]
            flags = [f"--nproc={ranks}", *(["--share-gpu"] if ranks > 1 else [])]
            return Run(folder / name, toml(model, data, False), sets, fault, flags).finish(60)

        single = {dtype: losses(run(1, dtype, [])) for dtype in TOLERANCES}

        def like_one(ranks: int, dtype: str, layout: list[str]) -> tuple[str, bool]:
            error = worst(losses(run(ranks, dtype, layout)), single[dtype])
            return f"losses within {error:.1e} of one rank's, allowed {TOLERANCES[dtype]:.0e}", error <= TOLERANCES[dtype]

        for ranks, layout in LAYOUTS:
            for dtype in TOLERANCES if ranks == 2 else ["bf16"]:
                table.add(f"{ranks} ranks, {dtype}, {', '.join(layout)}", lambda r=ranks, d=dtype, on=layout: like_one(r, d, on))

        def same_bits(ranks: int, layout: list[str]) -> tuple[str, bool]:
            first, second = (run(ranks, "bf16", layout, what) for what in ["first", "second"])
            same = losses(first) == losses(second) and weights(first) == weights(second)
            return "two deterministic runs have the same losses and weights" if same else "they differ", same

        def recovered(ranks: int, layout: list[str], fault: str) -> tuple[str, bool]:
            died = run(ranks, "bf16", layout, "died", fault)
            resumed = [event for event in died.events() if event["event"] == "resumed_step"]
            stopped = [event for event in died.events() if event["event"] == "stopped"]
            named = [event["rank"] for event in stopped] == [int(fault.split("rank=")[1][0])]
            same = losses(died) == losses(run(ranks, "bf16", layout, "quiet")) and bool(resumed)
            return f"the killed rank is named: {named}, same losses: {same}", same and named

        table.add("deterministic, data", lambda: same_bits(2, ["zero.stage=3"]))
        table.add("deterministic, tensor", lambda: same_bits(2, ["parallel.tensor=2"]))
        for ranks, layout, fault in KILLED:
            table.add(f"{', '.join(layout)}: {fault}", lambda r=ranks, on=layout, f=fault: recovered(r, on, f))
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
