#!/usr/bin/env python3
"""Makes conversations out of the Python standard library: what does this function do? The answer is its docstring's first paragraph.

Writes DIR/train.jsonl and DIR/validation.jsonl ({"messages": [...]}). The same Python version and arguments give the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import sysconfig
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "quickstart"))

from make_corpus import Pair, collect

SEED = 42


def conversation(pair: Pair) -> dict[str, object]:
    question = f"What does this do?\n\n{pair.prompt.strip()}"
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": pair.completion}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, required=True, help="conversations to train on")
    parser.add_argument("--validation", type=int, required=True, help="conversations to validate on")
    args = parser.parse_args()
    pairs = [pair for pair in collect(Path(sysconfig.get_paths()["stdlib"])) if "\n" not in pair.completion]
    random.Random(SEED).shuffle(pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {"train": pairs[: args.train], "validation": pairs[args.train : args.train + args.validation]}
    for name, part in parts.items():
        lines = [json.dumps(conversation(pair)) + "\n" for pair in part]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
