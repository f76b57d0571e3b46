#!/usr/bin/env python3
"""Compares the logits of two models on the same tokens; either may be an adapter's folder, which PEFT loads beside its base.

Prints {"largest": largest logit, "difference": largest absolute difference}.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM
from transformers.utils import logging


def load(folder: Path) -> torch.nn.Module:
    """A model, or the model that an adapter names, with the adapter."""
    description = folder / "adapter_config.json"
    if not description.exists():
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    base = json.loads(description.read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(load(Path(base)), folder).eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    logging.disable_progress_bar()
    models = [load(args.one), load(args.other)]
    torch.manual_seed(0)
    tokens = torch.randint(3, models[0].config.vocab_size, (2, args.tokens))
    one, other = (model(input_ids=tokens).logits for model in models)
    print(json.dumps({"largest": one.abs().max().item(), "difference": (one - other).abs().max().item()}))


if __name__ == "__main__":
    main()
