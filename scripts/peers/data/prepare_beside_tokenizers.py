"""Measures the preparation of data beside the tokenizers library's encode_batch_fast on the same texts, tokenizer and cores, in turns.

The library gets the texts in memory, in batches of 1000, and its ids are dropped. dslaunch reads them from a file of JSON Lines, packs
them into rows and writes these. Fails where the median of the ratios of their speeds is below 0.9. Usage, by way of scripts/bench.sh:

    scripts/bench.sh prepare [--mb 60] [--rounds 7] [--program target/release/dslaunch]
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from text_source import write_model, write_source
from tokenizers import Tokenizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
SEQ_LEN = 512
TARGET = 0.9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=60, help="of text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--program", type=pathlib.Path, default=REPOSITORY / "target/release/dslaunch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dslaunch-prepare-") as root:
        folder = pathlib.Path(root)
        pool = write_source(folder / "source.jsonl", args.mb * 1e6, 1)
        write_model(folder / "model", pool, SEQ_LEN)
        (folder / "train.toml").write_text(
            '[job]\noutput_dir = "run"\n[model]\npath = "model"\ninit = "random"\ndevice = "cpu"\n'
            f'[data]\ntrain = "source.jsonl"\nseq_len = {SEQ_LEN}\n[train]\nsteps = 10\n'
        )
        with open(folder / "source.jsonl") as file:
            texts = [json.loads(line)["text"] for line in file]
        tokenizer = Tokenizer.from_file(str(folder / "model/tokenizer.json"))
        ratios = []
        for number in range(args.rounds):
            shutil.rmtree(folder / "run", ignore_errors=True)
            began = time.perf_counter()
            command = [args.program.resolve(), "plan", "--json", "train.toml"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ours = time.perf_counter() - began
            began, tokens = time.perf_counter(), 0
            for first in range(0, len(texts), 1000):
                tokens += sum(len(encoded.ids) for encoded in tokenizer.encode_batch_fast(texts[first : first + 1000]))
            theirs = time.perf_counter() - began
            ratios.append(theirs / ours)
            speeds = f"dslaunch {tokens / ours / 1e6:.2f}, tokenizers {tokens / theirs / 1e6:.2f} M tokens/s"
            print(f"round {number + 1}: {speeds}, ratio {theirs / ours:.2f}", flush=True)
        median = statistics.median(ratios)
        print(f"median ratio {median:.2f} of {args.rounds}, from {min(ratios):.2f} to {max(ratios):.2f}")
        if median < TARGET:
            sys.exit(f"below {TARGET}")


if __name__ == "__main__":
    main()
