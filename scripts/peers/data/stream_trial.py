"""Streams a large source through a job and watches what it needs.

Makes a source of SIZE_MB megabytes of text from a seed, a tokenizer of 2000 tokens and a tiny model in a temporary folder, and trains
STEPS steps on it with data.streaming. Prints the time to the first step, the speed of the preparation, and the peaks of the
launcher's memory, of the ranks' and of the run directory's prepared data. Fails where a bound is passed. Usage, from the repository:

    .venv/bin/python scripts/peers/data/stream_trial.py SIZE_MB STEPS [SEED] [--window ROWS] [--folder DIR]
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from text_source import write_model, write_source

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
SEQ_LEN = 256
AHEAD = 4
BATCH = 16
LAUNCHER_MB_MAX = 100
# A prepared token has 8 bytes; indices and hashes are a few percent.
ROW_MB_MAX = 1.1 * SEQ_LEN * 8 / 1e6


def tree(root):
    """The process and all below it, with their names."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            name, rest = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :]
            parents[int(entry)] = (int(rest.split()[1]), name)
    found, grown = {root}, True
    while grown:
        grown = False
        for pid, (parent, _) in parents.items():
            if parent in found and pid not in found:
                found.add(pid)
                grown = True
    return {pid: parents[pid][1] for pid in found if pid in parents}


def resident_mb(pid):
    """Memory of its own, in MB: pages of mapped files are the kernel's, which takes them back when it needs them."""
    try:
        fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) / 1e3, int(fields["VmHWM"].split()[0]) / 1e3
    except (OSError, KeyError, ValueError):
        return 0.0, 0.0


def used_mb(folder):
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(directory, name))
            except OSError:
                pass
    return total / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size_mb", type=float)
    parser.add_argument("steps", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("--window", type=int, default=2048, help="data.shuffle_window [default: 2048]")
    parser.add_argument("--folder", help="where the source and the run lie [default: a temporary folder]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dslaunch-stream-", dir=args.folder) as root:
        folder = pathlib.Path(root)
        began = time.monotonic()
        pool = write_source(folder / "source.jsonl", args.size_mb * 1e6, args.seed)
        write_model(folder / "model", pool, SEQ_LEN, 2000)
        print(f"seed {args.seed}: a source of {args.size_mb:.0f} MB was made in {time.monotonic() - began:.0f} s", flush=True)
        (folder / "train.toml").write_text(f"""
[job]
output_dir = "run"
[model]
path = "model"
init = "random"
device = "cpu"
[data]
train = "source.jsonl"
seq_len = {SEQ_LEN}
streaming = true
shuffle_window = {args.window}
windows_ahead = {AHEAD}
[train]
steps = {args.steps}
micro_batch_size = 8
global_batch_size = {BATCH}
[checkpoint]
every_steps = {args.steps}
[log]
every_steps = 1
""")
        command = [REPOSITORY / "target/release/dslaunch", "--nproc", "2", "train.toml"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        metrics = folder / "run/metrics.jsonl"
        first_step, own, peak, disk = None, {}, {}, 0.0
        while process.poll() is None:
            for pid, name in tree(process.pid).items():
                now, high = resident_mb(pid)
                own[name], peak[name] = max(own.get(name, 0), now), max(peak.get(name, 0), high)
            disk = max(disk, used_mb(folder / "run/data"))
            if first_step is None and metrics.exists() and metrics.stat().st_size:
                first_step = time.monotonic() - began
            time.sleep(0.2)
        seconds, errors = time.monotonic() - began, process.stderr.read()
        rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        print(errors, end="")
        if process.returncode != 0:
            sys.exit(f"dslaunch ended with {process.returncode}")
        tokens = rows[-1]["tokens"]
        launcher, rank = own.get("dslaunch", 0), max((mb for name, mb in own.items() if name.startswith("dslaunch-rank")), default=0)
        disk_max = (2 * AHEAD + 2) * args.window * ROW_MB_MAX + 1
        print(f"{args.steps} steps, {tokens / 1e6:.1f} M label tokens in {seconds:.0f} s; first step after {first_step:.1f} s")
        print(f"peak of own memory: launcher {launcher:.0f} MB, a rank {rank:.0f} MB; with mapped files {json.dumps({k: round(v) for k, v in peak.items()})}")
        print(f"peak of prepared data on disk: {disk:.0f} MB of a source of {args.size_mb:.0f} MB (limit {disk_max:.0f} MB)")
        if disk > disk_max or launcher > LAUNCHER_MB_MAX:
            sys.exit("a bound was passed")


if __name__ == "__main__":
    main()
