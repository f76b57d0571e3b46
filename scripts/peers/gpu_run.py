"""Runs dslaunch on the GPU of this machine, from gpu-pack/, and reads what it left: for gpu_smoke.py, gpu_ranks.py and gpu_bench.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "gpu-pack"


class Failed(Exception):
    """A run did not get there; its output is the message."""


class Run:
    """One run of dslaunch in `folder`, which holds its train.toml and its run directory."""

    def __init__(self, folder: Path, toml: str, sets: list[str] = (), fault: str = "", flags: list[str] = ()) -> None:
        self.run_dir = folder / "run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.toml").write_text(toml)
        argv = [str(PACK / "dslaunch"), *flags, "--set", f"job.output_dir={self.run_dir}"]
        for key in sets:
            argv += ["--set", key]
        env = dict(os.environ, DSLAUNCH_FAULT=fault) if fault else dict(os.environ)
        self.log = folder / "output.txt"
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*argv, str(folder / "train.toml")], env=env, stdout=log, stderr=subprocess.STDOUT)

    def finish(self, seconds: float) -> Run:
        """Waits for the end, which must be a success."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"no end after {seconds:.0f} s\n{self.output()}") from None
        if code != 0:
            raise Failed(f"exit code {code}\n{self.output()}")
        return self

    def stop_when(self, reached: Callable[[], bool], seconds: float) -> Run:
        """Stops it once `reached`."""
        while not reached():
            if self.process.poll() is not None:
                raise Failed(f"it ended, exit code {self.process.returncode}\n{self.output()}")
            if time.monotonic() - self.began > seconds:
                self.stop()
                raise Failed(f"it did not get there in {seconds:.0f} s\n{self.output()}")
            time.sleep(0.05)
        self.stop()
        return self

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        tails = [self.log, *sorted(self.run_dir.glob("logs/attempt-*/rank-*.err"))]
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in tails if path.exists())

    def rows(self) -> list[dict[str, Any]]:
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if "loss" in row]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "events.jsonl").read_text().splitlines()]

    def plan(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "plan.json").read_text())


def card() -> dict[str, str]:
    """The GPU, its driver and the software that it is used with."""
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    name, driver, memory = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    return {"gpu": name, "driver": driver, "memory": memory, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d %H:%M %z")}


def write(name: str, result: dict[str, Any]) -> None:
    """Writes a result to docs/gpu/, or to $OUT where that is set."""
    folder = Path(os.environ.get("OUT") or ROOT / "docs/gpu")
    folder.mkdir(parents=True, exist_ok=True)
    kind = result["card"]["gpu"].replace("NVIDIA ", "").replace(" ", "-").lower()
    (folder / f"{name}-{kind}.json").write_text(json.dumps(result, indent=1) + "\n")
