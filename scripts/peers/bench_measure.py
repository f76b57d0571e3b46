"""Measures training runs: launches them one after the other, samples their memory, and prints what was found.

Two ranks of one thread each, on the same two cores, as fresh processes that run one after the other, in an order that rotates
between rounds. All start from the same weights, read the same rows in the same order and compute in fp32 with AdamW, the same
schedule and clipping; nobody packs. That they do the same work is checked, not assumed: losses must agree at every step.

- tokens/s counts all tokens but padding, from the end of step 5 to the end of the last step, by rank 0's own clock on either side.
- The first step counts from just before the launcher is started to the arrival of the first step's line on its standard output.
  dslaunch prepares its data anew in every run.
- Peak RSS is the kernel's VmHWM, added up over the ranks; launchers are left out. A page that several ranks have touched (shared
  memory, libraries) counts in each of them. PSS, which counts such a page once, is the largest sum seen at one instant, and so no
  more than a lower bound of the peak.
- "others" is the part of the two cores' time that neither the run nor this script used: above a few percent, measure again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_workloads import (
    DSLAUNCH,
    NUM_RANKS,
    SCHEDULE_WARMUP_STEPS,
    WARMUP_STEPS,
    WORKLOADS,
    BenchError,
    System,
    Workload,
    command,
    first_step_line,
    prepare,
    read_steps,
    steady_seconds,
    tokens_by_step,
)

# fp32 sums in another order differ by about 1e-7 at first, and training amplifies it; another computation differs by far more.
LOSS_TOLERANCE = 1e-3
# What a change may cost beside the build before it: what is left of noise in a median of five pairs.
TARGET_BEFORE = 1.03
RUN_SECONDS_MAX = 900
POLL_SECONDS = 0.05
POLLS_PER_PSS = 20  # the kernel walks all page tables for it


class MemorySampler(threading.Thread):
    """Polls the rank processes below `root_pid` until it is stopped; a rank is a process with RANK in its environment."""

    def __init__(self, root_pid: int) -> None:
        super().__init__(daemon=True)
        self.root_pid = root_pid
        self.pids: dict[int, int] = {}
        self.peak_rss: dict[int, int] = {}
        self.peak_shared: dict[int, int] = {}
        self.peak_pss_sum = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        num_polls = 0
        while not self.stopped.wait(POLL_SECONDS):
            if len(self.pids) < NUM_RANKS:
                self.find_ranks()
            for rank, pid in self.pids.items():
                self.poll(rank, pid)
            if num_polls % POLLS_PER_PSS == 0:
                pss = sum(kib_fields(f"/proc/{pid}/smaps_rollup").get("Pss", 0) for pid in self.pids.values())
                self.peak_pss_sum = max(self.peak_pss_sum, pss)
            num_polls += 1

    def poll(self, rank: int, pid: int) -> None:
        fields = kib_fields(f"/proc/{pid}/status")
        self.peak_rss[rank] = max(self.peak_rss.get(rank, 0), fields.get("VmHWM", 0))
        self.peak_shared[rank] = max(self.peak_shared.get(rank, 0), fields.get("RssShmem", 0))

    def find_ranks(self) -> None:
        for pid in descendants(self.root_pid):
            found = re.search(r"(?:^|\0)RANK=(\d+)\0", read_text(f"/proc/{pid}/environ"))
            if found:
                self.pids.setdefault(int(found[1]), pid)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def read_text(path: str) -> str:
    """Empty once the process is gone."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def kib_fields(path: str) -> dict[str, int]:
    """`Name:  123 kB` lines, in bytes."""
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", read_text(path), re.MULTILINE)}


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def children(pid: int) -> list[int]:
    """Every thread has its own list of the children it started."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in read_text(f"/proc/{pid}/task/{thread}/children").split()]


@dataclasses.dataclass
class Run:
    """One run's numbers, as --json writes them."""

    workload: str
    round: int
    system: str
    tokens_per_second: float
    first_step_seconds: float
    peak_rss_bytes: int
    peak_shared_bytes: int
    peak_pss_bytes: int
    losses: list[float]
    bubble: float | None  # median part of a step in which pipeline stages waited for each other
    others_share: float  # of the cores' time, what neither the run nor this script used


def strangers_seconds(cores: list[int]) -> float:
    """CPU time that others used on these cores since boot, plus a constant. Right only while no launcher runs."""
    found = re.findall(r"^cpu(\d+) (.*)$", read_text("/proc/stat"), re.MULTILINE)
    # user, nice, system, idle, iowait, irq, softirq, steal
    columns = [list(map(int, line.split())) for core, line in found if int(core) in cores]
    ticks = sum(sum(column[:3]) + sum(column[5:8]) for column in columns)
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])  # ours, and our children's


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """What is started inside runs on these cores and no others."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def launch(system: System, workload: Workload, steps: int, cores: list[int]) -> tuple[float, MemorySampler]:
    """Runs `system` to its end; returns the seconds to its first step. Its output goes to a file beside its results."""
    out_dir = workload.dir / system.name
    shutil.rmtree(out_dir, ignore_errors=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv, wanted, first = command(system, workload, steps), first_step_line(system), None
    log_path = workload.dir / f"{system.name}.log"
    with log_path.open("w") as log:
        with on_cores(cores):
            began = time.perf_counter()
            process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        memory = MemorySampler(process.pid)
        memory.start()
        overdue = threading.Timer(RUN_SECONDS_MAX, end, (process,))
        overdue.start()
        try:
            for line in process.stdout:
                if first is None and wanted.match(line):
                    first = time.perf_counter() - began
                log.write(line)
                log.flush()
            process.wait()
        finally:
            overdue.cancel()
            end(process)
            memory.stop()
    if process.returncode != 0 or first is None:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"{workload.name}: {system.name} failed (exit code {process.returncode}): {shlex.join(argv)}\n{tail}")
    if len(memory.pids) != NUM_RANKS:
        raise BenchError(f"{workload.name}: {len(memory.pids)} rank processes of {system.name} seen instead of {NUM_RANKS}")
    return first, memory


def end(process: subprocess.Popen[str]) -> None:
    """Stops the launcher, and by force if it does not stop its ranks and itself in time. Nothing happens if it has ended."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)  # torchrun gives its workers 30
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure(system: System, workload: Workload, tokens: list[int], cores: list[int], round_idx: int) -> Run:
    before, began = strangers_seconds(cores), time.perf_counter()
    first_step_seconds, memory = launch(system, workload, len(tokens), cores)
    rows = read_steps(system, workload, len(tokens))
    if not system.is_peer:
        threads = json.loads((workload.dir / system.name / "plan.json").read_text())["threads_per_rank"]
        if threads != 1:
            raise BenchError(f"dslaunch gave each rank {threads} threads instead of 1")
    return Run(
        workload=workload.name,
        round=round_idx + 1,
        system=system.name,
        tokens_per_second=sum(tokens[WARMUP_STEPS:]) / steady_seconds(system, rows),
        first_step_seconds=first_step_seconds,
        peak_rss_bytes=sum(memory.peak_rss.values()),
        peak_shared_bytes=sum(memory.peak_shared.values()),
        peak_pss_bytes=memory.peak_pss_sum,
        losses=[row["loss"] for row in rows],
        bubble=statistics.median(bubbles) if (bubbles := [row["pipeline_bubble"] for row in rows if "pipeline_bubble" in row]) else None,
        others_share=max(0.0, strangers_seconds(cores) - before) / (NUM_RANKS * (time.perf_counter() - began)),
    )


def measure_workload(
    workload: Workload, systems: list[System], args: argparse.Namespace, cores: list[int], *, is_first: bool
) -> list[Run]:
    rows = prepare(workload, args.steps)
    if is_first:  # from then on everybody's files are in the page cache
        for system in systems:
            launch(system, workload, SCHEDULE_WARMUP_STEPS + 1, cores)
    tokens = tokens_by_step(workload, rows, args.steps)
    width = max(len(system.name) for system in systems)
    model = " ".join(f"{key.removeprefix('num_')}={value}" for key, value in workload.model.items())
    print(f"\n{workload.name}: {workload.about}; {workload.rows_per_step} rows and {sum(tokens) / len(tokens):.0f} tokens per step")
    print(f"  {model}; micro-batch {workload.micro_batch_size}, accumulation {workload.accumulation}")
    runs = []
    for round_idx in range(args.rounds):
        first = round_idx % len(systems)
        for system in systems[first:] + systems[:first]:
            run = measure(system, workload, tokens, cores, round_idx)
            runs.append(run)
            print(
                f"  round {run.round}/{args.rounds}  {run.system:{width}}  {run.tokens_per_second:7.0f} tokens/s  "
                f"first step {run.first_step_seconds:6.2f} s  {mib(run.peak_rss_bytes):6.0f} MiB  others {run.others_share:4.0%}",
                flush=True,
            )
    return runs


def mib(num_bytes: int) -> float:
    return num_bytes / 2**20


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


COLUMNS: list[tuple[str, int, Callable[[Run], float]]] = [
    ("tokens/s", 0, lambda run: run.tokens_per_second),
    ("first step, s", 2, lambda run: run.first_step_seconds),
    ("peak RSS, MiB", 0, lambda run: mib(run.peak_rss_bytes)),
    ("of it shared", 0, lambda run: mib(run.peak_shared_bytes)),
    ("PSS, MiB", 0, lambda run: mib(run.peak_pss_bytes)),
]


def print_table(runs: list[Run]) -> None:
    width = max(16, *(len(run.system) for run in runs))
    print(f"\n  {'median (min-max)':{width}}" + "".join(f"  {title:>20}" for title, _, _ in COLUMNS))
    for system in sorted({run.system for run in runs}, key=[run.system for run in runs].index):
        cells = [spread([value(run) for run in runs if run.system == system], digits) for _, digits, value in COLUMNS]
        print(f"  {system:{width}}" + "".join(f"  {cell:>20}" for cell in cells))


def loss_difference(runs: list[Run]) -> float:
    """The largest relative difference to the first run, at any step of any run."""
    expected = runs[0].losses
    pairs = [(loss, wanted) for run in runs for loss, wanted in zip(run.losses, expected, strict=True)]
    # One that is no number (null for dslaunch, NaN for the peers) must not pass for equal.
    return max(abs(a - b) / b if a and b and a == a else float("inf") for a, b in pairs)


def choose_cores(wanted: list[int] | None) -> list[int]:
    allowed = sorted(os.sched_getaffinity(0))
    chosen = wanted or allowed[:NUM_RANKS]
    if len(set(chosen)) != NUM_RANKS or not set(chosen) <= set(allowed):
        raise BenchError(f"{NUM_RANKS} cores of {allowed} are needed, got {chosen}")
    return chosen


def describe_machine(cores: list[int], packages: list[str]) -> dict[str, Any]:
    model = re.search(r"^model name\s*: (.*)$", read_text("/proc/cpuinfo"), re.MULTILINE)
    version = subprocess.run([DSLAUNCH, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": model[1] if model else platform.machine(),
        "cores_of_machine": os.cpu_count(),
        "cores_used": cores,
        "kernel": platform.release(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "dslaunch": version.removeprefix("dslaunch "),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "command": shlex.join(["scripts/bench.sh", Path(sys.argv[0]).stem.removeprefix("bench_"), *sys.argv[1:]]),
    }


def print_header(machine: dict[str, Any], args: argparse.Namespace) -> None:
    print(machine["command"])
    print(f"{machine['date']}, {machine['cpu']}, {machine['cores_of_machine']} cores, kernel {machine['kernel']}")
    print("load average " + " ".join(map(str, machine["load_average"])) + " at the start")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(
        f"{NUM_RANKS} ranks of 1 thread on cores {machine['cores_used']}, fp32; peers over gloo; {args.rounds} rounds of "
        f"{args.steps} steps, tokens/s from step {WARMUP_STEPS + 1} on; one unmeasured launch of each first"
    )


def verdict(name: str, what: str, value: float, target: float) -> bool:
    passed = value >= target
    print(f"{'PASS' if passed else 'FAIL'}  {name}: {what} {value:.2f}, target {target:.1f}")
    return passed


def losses_agree(workload: Workload, runs: list[Run]) -> bool:
    difference = loss_difference(runs)
    print(f"  losses differ by at most {difference:.1e} (relative) over {len(runs[0].losses)} steps; allowed {LOSS_TOLERANCE:.0e}")
    if difference > LOSS_TOLERANCE:
        print(f"FAIL  {workload.name}: losses differ: these runs did not compute the same thing, and their ratios mean nothing")
    return difference <= LOSS_TOLERANCE


def before_of(system: System, programs: Path) -> System:
    """The same layout, run by the programs of an earlier build."""
    return dataclasses.replace(system, name=f"{system.name}-before", programs=programs.resolve())


def ratios_to_before(runs: list[Run]) -> dict[str, dict[str, list[float]]]:
    """This build's figures by those of the build before, less being better: by layout and figure, one number for each round."""
    by_name = {(run.round, run.system): run for run in runs}
    found: dict[str, dict[str, list[float]]] = {}
    for (round_number, name), run in by_name.items():
        if (before := by_name.get((round_number, f"{name}-before"))) is None:
            continue
        of_layout = found.setdefault(name, {"step": [], "first step": [], "peak RSS": []})
        of_layout["step"].append(before.tokens_per_second / run.tokens_per_second)
        of_layout["first step"].append(run.first_step_seconds / before.first_step_seconds)
        of_layout["peak RSS"].append(run.peak_rss_bytes / before.peak_rss_bytes)
    return found


def report_to_before(workload: Workload, runs: list[Run]) -> bool:
    """Prints each figure by the build before's; whether none is more than a little worse."""
    print_table(runs)
    passed = losses_agree(workload, runs)
    for name, figures in ratios_to_before(runs).items():
        for figure, values in figures.items():
            median = statistics.median(values)
            passed &= median <= TARGET_BEFORE
            print(f"{'PASS' if median <= TARGET_BEFORE else 'FAIL'}  {name}: {figure} by the build before's {spread(values, 3)}, "
                  f"at most {TARGET_BEFORE}")
    return passed


def add_arguments(parser: argparse.ArgumentParser, steps: int) -> argparse.Namespace:
    """What every benchmark takes."""
    parser.add_argument("--before", type=Path, metavar="DIR", help="compare with the dslaunch and dslaunch-rank in DIR, not with peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--cores", type=int, nargs=NUM_RANKS, metavar="CORE", help="their numbers [default: the first two]")
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    args = parser.parse_args()
    if args.steps <= WARMUP_STEPS:
        parser.error(f"--steps {args.steps}: more than {WARMUP_STEPS} are needed, those are not counted")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    return args


@dataclasses.dataclass
class Bench:
    """What one benchmark compares, and what it makes of it."""

    args: argparse.Namespace  # workload: their names; systems: those compared
    packages: list[str]  # whose versions are printed
    ratios: Callable[[list[Run]], dict[str, Any]]
    report: Callable[[Workload, list[Run]], bool]

    def run(self) -> bool:
        args = self.args
        cores = choose_cores(args.cores)
        ratios, report = self.ratios, self.report
        if args.before:
            ours = [system for system in args.systems if not system.is_peer]
            args.systems = [twin for system in ours for twin in (system, before_of(system, args.before))]
            ratios, report = ratios_to_before, report_to_before
        if args.json:
            args.json.touch()  # a folder that is not there is better known before the minutes than after
        machine = describe_machine(cores, [] if args.before else self.packages)
        print_header(machine, args)
        results: dict[str, Any] = {}
        passed = True
        for name in args.workload:
            runs = measure_workload(WORKLOADS[name], args.systems, args, cores, is_first=not results)
            passed &= report(WORKLOADS[name], runs)
            results[name] = {
                "ratios": ratios(runs),
                "loss_difference": loss_difference(runs),
                "runs": [dataclasses.asdict(run) for run in runs],
            }
            if args.json:
                args.json.write_text(json.dumps({"machine": machine, "workloads": results}, indent=1) + "\n")
        return passed


def main(bench: Bench) -> int:
    try:
        return 0 if bench.run() else 1
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
