#!/usr/bin/env python3
"""Measures the launcher: how soon ranks run, how soon a crash is known, survivors are dead and new ranks work, beside torchrun.

Owns: what is measured, and the targets. Each trial is a launch of its own. Times are from the wall clock of one machine; ends of
processes are seen through pidfds, not by asking.

- start: from just before the launcher is started until the first line of the first rank's program runs.
- known: from SIGKILL to one rank until the launcher has taken note (dslaunch: its events.jsonl; torchrun does not say when).
- dead: from there until the last of the survivors has ended.
- working: from there until all new ranks have met in their first all-reduce. dslaunch with ranks that have no model (launcher and
  comm alone), with dslaunch-rank on a tiny model until its first step (it loads libtorch), and `dslaunch run` with the very
  program that torchrun runs (it imports torch).
- rendezvous: that many ranks, each over a connection of its own, until all have been answered.
- snapshot: what a snapshot after every step adds to a step of the quickstart's model.

With --before DIR it compares with the programs of an earlier build in DIR instead: dslaunch, dslaunch-rank, and comm_rank and
rendezvous_of of its examples. Both builds take turns; a figure's ratio is the median of those of the pairs.

Exit codes: 0 all targets met; 1 a target missed; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_measure import TARGET_BEFORE, describe_machine

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target/release"
TORCHRUN = [str(ROOT / ".venv/bin/python"), "-m", "torch.distributed.run"]
PEERS = ROOT / "scripts/peers"
WAIT_SECONDS = 120

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
}


class BenchError(Exception):
    """It could not be measured."""


class Build:
    """The programs of one build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.dslaunch = self.program("dslaunch")

    def program(self, name: str) -> Path:
        places = [self.folder / name, self.folder / "examples" / name]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise BenchError(f"{name} is not in {self.folder}")
        return found

    def run(self, ranks: int) -> list[str]:
        return [str(self.dslaunch), "run", "--max-restarts", "3", "--nproc-per-node", str(ranks), "--"]


def until(what: str, condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if (found := condition()) is not None:
            return found
        time.sleep(0.001)
    raise BenchError(f"{what}: not within {WAIT_SECONDS} s")


def rows(path: Path) -> list[dict]:
    """Whole rows of a file of JSON lines that is being written."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except OSError:
        return []
    return [json.loads(line) for line in lines]


def event(run: Path, name: str, attempt: int) -> dict | None:
    return next((row for row in rows(run / "events.jsonl") if row["event"] == name and row["attempt"] == attempt), None)


def wall_ms(run: Path, row: dict) -> float:
    """When a row was written, in milliseconds since 1970."""
    start = next(row for row in rows(run / "events.jsonl") if row["event"] == "start")
    return start["unix_seconds"] * 1e3 + row["ms"] - start["ms"]


def ends(pids: list[int]) -> Callable[[], float]:
    """Watches processes; the result waits for the last of their ends and says when that was, in milliseconds since 1970."""
    poll, open_fds = select.poll(), {}
    for pid in pids:
        fd = os.pidfd_open(pid)
        open_fds[fd] = pid
        poll.register(fd, select.POLLIN)

    def wait() -> float:
        while open_fds:
            ready = poll.poll(WAIT_SECONDS * 1000)
            if not ready:
                raise BenchError(f"processes {list(open_fds.values())} do not end")
            for fd, _ in ready:
                poll.unregister(fd)
                os.close(fd)
                del open_fds[fd]
        return time.time_ns() / 1e6

    return wait


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Folder:
    """A scratch folder with dslaunch, a worker, a tiny model and its data."""

    def __init__(self, build: Build, worker_name: str) -> None:
        worker = build.program(worker_name)
        self.path = Path(tempfile.mkdtemp(prefix="bench-launch-"))
        shutil.copy(build.dslaunch, self.path / "dslaunch")
        # dslaunch-rank finds libtorch from where it lies.
        (self.path / "dslaunch-rank").symlink_to(worker) if worker.name == "dslaunch-rank" else shutil.copy(worker, self.path / "dslaunch-rank")
        (self.path / "model").mkdir()
        (self.path / "model/config.json").write_text(json.dumps(CONFIG))
        (self.path / "rows.jsonl").write_text('{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8]}\n' * 64)
        (self.path / "train.toml").write_text(
            '[model]\npath = "model"\ninit = "random"\n[data]\ntrain = "rows.jsonl"\nseq_len = 8\npacking = false\n'
            "[train]\nsteps = 100000000\nglobal_batch_size = 8\n[checkpoint]\nevery_steps = 100000000\n"
            '[restart]\nhang_timeout_seconds = 0\n[log]\nevery_steps = 1\nsinks = ["jsonl"]\n'
        )

    def launch(self, ranks: int, extra: dict[str, str]) -> tuple[subprocess.Popen, Path]:
        run = self.path / "run"
        shutil.rmtree(run, ignore_errors=True)
        argv = [str(self.path / "dslaunch"), "--nproc", str(ranks), "--set", "job.output_dir=run", "train.toml"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(argv, cwd=self.path, env={**os.environ, **extra}, **quiet), run

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def crash_of_training(folder: Folder, ranks: int, ready: str, extra: dict[str, str]) -> dict[str, float]:
    """Kills the last rank once `ready` is in events.jsonl (or a step is done); milliseconds."""
    process, run = folder.launch(ranks, extra)
    try:
        spawned = until("ranks", lambda: event(run, "spawned", 0))
        if ready == "step":
            until("a step", lambda: rows(run / "metrics.jsonl") or None)
        else:
            until(ready, lambda: event(run, ready, 0))
        pids = spawned["pids"]
        survivors = ends(pids[:-1])
        killed = time.time_ns() / 1e6
        os.kill(pids[-1], signal.SIGKILL)
        dead = survivors()
        found = {"dead": dead - killed}
        known = until("the failure", lambda: event(run, "failure_detected", 0))
        found["known"] = wall_ms(run, known) - killed
        found["working"] = wall_ms(run, until("new ranks", lambda: event(run, "started", 1))) - killed
        recovered = until("the recovery", lambda: event(run, "recovered", 1)) if ready == "step" else None
        if recovered:
            found["working"] = wall_ms(run, recovered) - killed
            found["load"] = recovered["load_ms"] + recovered["rendezvous_ms"]
        return found
    finally:
        stop(process)


def crash_of_program(argv: list[str], ranks: int, log: Path) -> dict[str, float]:
    """The same for any program under a launcher: each rank writes a line to `log` when it works."""
    log.unlink(missing_ok=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(argv, env={**os.environ, "BENCH_LOG": str(log), "OMP_NUM_THREADS": "1"}, **quiet)

    def lines(attempt: str) -> list[list[str]] | None:
        found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        found = [line for line in found if line[0] == attempt]
        return found if len(found) == ranks else None

    try:
        pids = {int(rank): int(pid) for _, rank, pid, _ in until("ranks", lambda: lines("0"))}
        survivors = ends([pids[rank] for rank in range(ranks - 1)])
        killed = time.time_ns() / 1e6
        os.kill(pids[ranks - 1], signal.SIGKILL)
        dead = survivors()
        working = max(int(line[3]) for line in until("new ranks", lambda: lines("1"))) / 1e6
        return {"dead": dead - killed, "working": working - killed}
    finally:
        stop(process)


def start_of_program(argv: list[str], log: Path) -> dict[str, float]:
    log.unlink(missing_ok=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.time_ns()
    process = subprocess.Popen(argv, env={**os.environ, "BENCH_LOG": str(log)}, **quiet)
    try:
        line = until("a rank", lambda: log.read_text().split() if log.exists() and log.read_text().endswith("\n") else None)
        return {"start": (int(line[3]) - began) / 1e6}
    finally:
        stop(process)


def rendezvous_of(build: Build, ranks: int) -> dict[str, float]:
    program = build.program("rendezvous_of")
    done = subprocess.run([program, str(ranks)], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    if done.returncode:
        raise BenchError(f"{program.name}: {done.stderr}")
    return {"rendezvous": float(done.stdout) * 1e3}


def quickstart_step(build: Build, every: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step of the quickstart, with a snapshot after every so many steps."""
    data = ROOT / "runs/quickstart-data"
    if not data.exists():
        raise BenchError(f"{data} is missing: run scripts/quickstart.sh first")
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as folder:
        sets = [f"job.output_dir={folder}/run", f"train.steps={steps}", f"restart.snapshot_every_steps={every}"]
        sets += ["validation.every_steps=100000", "checkpoint.every_steps=100000", "log.every_steps=1"]
        argv = [build.dslaunch, "--nproc", "2", *(word for text in sets for word in ("--set", text)), "examples/quickstart/train.toml"]
        subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=600)
        seconds = [row["step_seconds"] for row in rows(Path(folder) / "run/metrics.jsonl") if "step_seconds" in row]
        return {"step": statistics.median(seconds[3:]) * 1e3}


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Table:
    """Prints rows as they come, and remembers whether targets were met."""

    def __init__(self) -> None:
        self.passed = True
        self.results: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, trials: list[dict[str, float]], targets: dict[str, float] | None = None) -> None:
        values: dict[str, list[float]] = {}
        for trial in trials:
            for what, value in trial.items():
                values.setdefault(what, []).append(value)
        self.results[name] = values
        for what, found in values.items():
            p99, target = percentile(found, 0.99), (targets or {}).get(what)
            verdict = "" if target is None else f"  target {target:.0f}: {'PASS' if p99 <= target else 'FAIL'}"
            self.passed &= target is None or p99 <= target
            numbers = f"median {statistics.median(found):8.1f}  p99 {p99:8.1f}  max {max(found):8.1f} ms"
            print(f"  {name:44} {what:10} {numbers}  ({len(found)} trials){verdict}", flush=True)


def compare(args: argparse.Namespace) -> bool:
    """This build beside the one before, in turn."""
    builds = [Build(args.before), Build(RELEASE)]
    log = Path(tempfile.mkdtemp(prefix="bench-launch-")) / "log"
    idle = str(PEERS / "idle_loop.sh")
    few = max(5, args.trials // 10)

    def training(build: Build, worker: str, ready: str) -> dict[str, float]:
        folder = Folder(build, worker)
        try:
            return crash_of_training(folder, args.ranks, ready, {})
        finally:
            folder.remove()

    figures: list[tuple[str, int, Callable[[Build], dict[str, float]]]] = [
        ("run, sh: start", args.trials, lambda build: start_of_program([*build.run(1), idle], log)),
        ("run, sh: crash", few, lambda build: crash_of_program([*build.run(args.ranks), idle], args.ranks, log)),
        ("ranks without a model: crash", few, lambda build: training(build, "comm_rank", "started")),
        ("tiny model: crash in mid-step", few, lambda build: training(build, "dslaunch-rank", "step")),
        ("1000 ranks", few, lambda build: rendezvous_of(build, 1000)),
        ("quickstart with snapshots", few, lambda build: quickstart_step(build, 1, args.steps)),
    ]
    passed, results = True, {}
    for name, pairs, trial in (figure for figure in figures if args.only in figure[0]):
        found: dict[str, list[tuple[float, float]]] = {}
        for pair in range(pairs):
            # Whoever goes first has the machine as the pair before has left it.
            order = builds if pair % 2 == 0 else builds[::-1]
            by_build = {build: trial(build) for build in order}
            old, new = (by_build[build] for build in builds)
            for what in old.keys() & new.keys():
                found.setdefault(what, []).append((old[what], new[what]))
        for what, values in sorted(found.items()):
            ratio = statistics.median(new / old for old, new in values)
            old, new = (statistics.median(side) for side in zip(*values, strict=True))
            passed &= ratio <= TARGET_BEFORE
            verdict = "PASS" if ratio <= TARGET_BEFORE else "FAIL"
            print(f"  {name:32} {what:10} {new:8.1f} ms, before {old:8.1f}  ratio {ratio:.3f}, at most {TARGET_BEFORE}: {verdict}"
                  f"  ({len(values)} pairs)", flush=True)
        results[name] = found
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine([], []), "pairs": results}, indent=1))
    shutil.rmtree(log.parent, ignore_errors=True)
    return passed


def measure(args: argparse.Namespace) -> bool:
    table, log = Table(), Path(tempfile.mkdtemp(prefix="bench-launch-")) / "log"
    build = Build(RELEASE)
    peer = [*TORCHRUN, "--standalone", "--max-restarts", "3", "--nproc-per-node"]
    idle, script = str(PEERS / "idle_loop.sh"), str(PEERS / "all_reduce_loop.py")
    python = str(ROOT / ".venv/bin/python")
    few = max(1, args.trials // 20)

    def trials(count: int, trial: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
        return [trial() for _ in range(count)]

    def of_peer(trial: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
        """What a peer cannot do is told, and is no reason not to measure the rest."""
        try:
            return trials(few, trial)
        except BenchError as error:
            print(f"  a peer did not get there: {error}", flush=True)
            return []

    print("start")
    table.add("dslaunch run, sh", trials(args.trials, lambda: start_of_program([*build.run(1), idle], log)), {"start": 50})
    table.add("torchrun, sh", of_peer(lambda: start_of_program([*peer, "1", "--no-python", idle], log)))

    print(f"crash of one of {args.ranks} ranks")
    folder = Folder(build, "comm_rank")
    targets = {"known": 5.0, "dead": 100.0, "working": 500.0}
    table.add("dslaunch, ranks without a model", trials(args.trials, lambda: crash_of_training(folder, args.ranks, "started", {})), targets)
    folder.remove()
    folder = Folder(build, "dslaunch-rank")
    table.add("dslaunch, tiny model, in mid-step", trials(few, lambda: crash_of_training(folder, args.ranks, "step", {})))
    folder.remove()
    table.add("dslaunch run, sh", trials(args.trials, lambda: crash_of_program([*build.run(args.ranks), idle], args.ranks, log)))
    table.add("torchrun, sh", of_peer(lambda: crash_of_program([*peer, str(args.ranks), "--no-python", idle], args.ranks, log)))
    program = [*build.run(args.ranks), python, script]
    table.add("dslaunch run, torch.distributed all-reduce", trials(few, lambda: crash_of_program(program, args.ranks, log)))
    program = [*peer, str(args.ranks), script]
    table.add("torchrun, torch.distributed all-reduce", of_peer(lambda: crash_of_program(program, args.ranks, log)))

    print("rendezvous")
    table.add("1000 ranks", trials(few, lambda: rendezvous_of(build, 1000)), {"rendezvous": 1000.0})

    print("snapshots")
    pairs = [(quickstart_step(build, 0, args.steps)["step"], quickstart_step(build, 1, args.steps)["step"]) for _ in range(args.rounds)]
    ratios = [100 * (with_snapshots / without - 1) for without, with_snapshots in pairs]
    overhead, passed = statistics.median(ratios), statistics.median(ratios) <= 3.0
    each = ", ".join(f"{ratio:+.1f}" for ratio in ratios)
    print(f"  quickstart, after every step: {overhead:+.1f} % of a step (by round: {each})  target 3: {'PASS' if passed else 'FAIL'}")
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine([], []), "results": table.results, "snapshot_percent": ratios}, indent=1))
    shutil.rmtree(log.parent, ignore_errors=True)
    return table.passed and passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh launch", description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="of what is quick; a twentieth of what is slow")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of quickstart runs")
    parser.add_argument("--steps", type=int, default=25, help="of each quickstart run")
    parser.add_argument("--before", type=Path, metavar="DIR", help="compare with the programs in DIR, not with torchrun")
    parser.add_argument("--only", metavar="TEXT", default="", help="with --before: the figures whose names hold this")
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    args = parser.parse_args()
    machine = describe_machine([], ["torch"])
    print(machine["command"])
    print(f"{machine['date']}, {machine['cpu']}, {machine['cores_of_machine']} cores, kernel {machine['kernel']}")
    print("load average " + " ".join(map(str, machine["load_average"])) + " at the start")
    try:
        return 0 if (compare(args) if args.before else measure(args)) else 1
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
