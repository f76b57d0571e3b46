#!/usr/bin/env python3
"""Makes a PEFT adapter with random weights for a model's folder.

Owns: what an adapter is that PEFT has written. `B` is random too, so the adapter changes what the model computes, and magnitudes are
not the lengths of rows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=8)
    parser.add_argument("--targets", nargs="+", default=["all-linear"])
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--modules-to-save", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=args.alpha,
        target_modules="all-linear" if args.targets == ["all-linear"] else args.targets,
        use_rslora=args.rslora,
        use_dora=args.dora,
        modules_to_save=args.modules_to_save,
        init_lora_weights=False,
    )
    model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    adapted = get_peft_model(model, config)
    for name, param in adapted.named_parameters():
        if "lora_magnitude_vector" in name:
            param.data *= 1 + 0.4 * (torch.rand_like(param) - 0.5)
    adapted.save_pretrained(args.out)


if __name__ == "__main__":
    main()
