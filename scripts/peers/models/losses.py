#!/usr/bin/env python3
"""Prints transformers' losses of models on rows of tokens: the mean cross-entropy over all label tokens, one row at a time, in fp32.

    losses.py '[{"model": DIR, "data": [tokens.jsonl, ...]}, ...]'

A model may be an adapter's folder, which PEFT loads beside its base. Prints a list with {"losses": one for each file, "loss": of all,
"label_tokens"} for each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import AutoPeftModelForCausalLM
from transformers import LlamaForCausalLM
from transformers.utils import logging

IGNORED = -100


def load(folder: Path) -> Any:
    if (folder / "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def summed(model: Any, data: Path) -> tuple[float, int]:
    total, count = 0.0, 0
    for line in data.read_text().splitlines():
        row = json.loads(line)
        labels = torch.tensor([row.get("labels", row["input_ids"])])
        label_tokens = int((labels[:, 1:] != IGNORED).sum())
        if label_tokens > 0:
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
            total += loss.item() * label_tokens
            count += label_tokens
    return total, count


def main() -> None:
    logging.disable_progress_bar()
    found = []
    for case in json.loads(sys.argv[1]):
        model = load(Path(case["model"])).eval()
        sums = [summed(model, Path(data)) for data in case["data"]]
        count = sum(of_file[1] for of_file in sums)
        losses = [total / of_file for total, of_file in sums]
        found.append({"losses": losses, "loss": sum(of_file[0] for of_file in sums) / count, "label_tokens": count})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
