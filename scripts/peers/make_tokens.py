#!/usr/bin/env python3
"""Makes random token rows in the `tokens` format, for tests and benchmarks.

Owns: how uneven the uneven rows are. Standard library only. Position 0 is never predicted, so "at least one label" means one
label from position 1 on.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

IGNORED = -100


def full_row(rng: random.Random, vocab: int, length: int) -> dict[str, list[int]]:
    tokens = [rng.randrange(vocab) for _ in range(length)]
    return {"input_ids": tokens, "labels": list(tokens)}


def uneven_row(rng: random.Random, vocab: int, seq_len: int) -> dict[str, list[int]]:
    """A row of 2 to `seq_len` tokens that masks a random prefix; one row in four keeps a single label. Keeps at least one."""
    row = full_row(rng, vocab, rng.randint(2, seq_len))
    length = len(row["labels"])
    if rng.random() < 0.25:
        kept = rng.randrange(1, length)
        row["labels"] = [token if i == kept else IGNORED for i, token in enumerate(row["labels"])]
    else:
        masked = rng.randrange(0, length)
        row["labels"][:masked] = [IGNORED] * masked
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uneven", action="store_true", help="vary lengths and masks, so that label counts differ between rows")
    parser.add_argument("--with-empty", action="store_true", help="every fourth row has no label at all")
    args = parser.parse_args()
    if args.seq_len < 2:
        parser.error(f"--seq-len {args.seq_len} leaves nothing to predict: at least 2")
    rng = random.Random(args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as out:
        for row_idx in range(args.rows):
            row = uneven_row(rng, args.vocab, args.seq_len) if args.uneven else full_row(rng, args.vocab, args.seq_len)
            if args.with_empty and row_idx % 4 == 3:
                row["labels"] = [IGNORED] * len(row["labels"])
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
