#!/usr/bin/env python3
"""Checks that transformers loads what dslaunch saved, exactly as it lies on disk.

Owns: what "loads" means. No key missing, unexpected or of another shape, a forward pass with finite logits, and with --tokenizer
a sentence that survives encoding and decoding. Prints one line per folder; exits 1 at the end if any folder failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

SENTENCE = "def add(a, b):  # returns the sum, e.g. 1 + 2 = 3"


def check_model(path: Path) -> str:
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True, local_files_only=True)
    problems = {kind: keys for kind, keys in info.items() if keys}
    if problems:
        raise ValueError(f"weights do not match config.json: {problems}")
    vocab_size = model.config.vocab_size
    with torch.no_grad():
        logits = model(torch.arange(8)[None] % vocab_size).logits
    if logits.shape != (1, 8, vocab_size) or not logits.isfinite().all():
        raise ValueError(f"forward pass gave logits of shape {tuple(logits.shape)}, finite: {bool(logits.isfinite().all())}")
    return f"{model.dtype}, {sum(p.numel() for p in model.parameters())} parameters"


def check_tokenizer(path: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    ids = tokenizer(SENTENCE)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    if decoded != SENTENCE:
        raise ValueError(f"tokenizer turned {SENTENCE!r} into {decoded!r}")
    begins = "begins with bos" if ids[0] == tokenizer.bos_token_id else "no bos"
    return f"{type(tokenizer).__name__}, {len(tokenizer)} tokens, {begins}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dirs", type=Path, nargs="+")
    parser.add_argument("--tokenizer", action="store_true", help="check the tokenizer too")
    parser.add_argument("--no-model", action="store_true", help="with --tokenizer: the folder has no weights yet")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    checks = [] if args.no_model else [check_model]
    if args.tokenizer:
        checks.append(check_tokenizer)
    failed = 0
    for path in args.dirs:
        try:
            print(f"{path}: " + "; ".join(check(path) for check in checks))
        except Exception as error:  # whatever transformers raises is the finding
            failed += 1
            print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
