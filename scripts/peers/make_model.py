#!/usr/bin/env python3
"""Makes the tiny random LLaMA checkpoints that the tests load.

Owns: the shapes of the test models, and both spellings of config.json. Each variant switches on what the others leave off, and
every norm weight and bias is moved away from its neutral value, so that a parameter that is skipped or misplaced changes the loss.
Deterministic for a given variant, seed, dtype and version of torch.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    # With the usual 0.02 all attention scores of so small a model are near zero, and a wrong mask or rotation would hardly show.
    "initializer_range": 0.1,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {"vocab_size": 211, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gqa": {
        "vocab_size": 223,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "head_dim": 24,  # 4 * 24 != 64: the attention is wider than the hidden state
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    },
    # Parts of all matrices over two ranks have whole blocks of 64.
    "blocks": {
        "vocab_size": 223,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "tied": {
        "vocab_size": 253,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
    "biased": {
        "vocab_size": 229,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        # Of the eight wavelengths 6.3, 13.7, 29.7, ... the first is left alone, the second blended, the rest stretched.
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 16,
        },
    },
}


def build(variant: str, seed: int) -> LlamaForCausalLM:
    """Returns the fp32 model of `variant`, with norm weights around 1 and biases around 0."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**COMMON, **VARIANTS[variant]}))
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim == 1:
                param.add_(torch.randn_like(param), alpha=0.1 if name.endswith(".bias") else 0.2)
    return model


def rewrite_config_as_v4(config_path: Path) -> None:
    """Replaces the keys of transformers 5 by those that transformers 4 wrote, as most published checkpoints have them."""
    config = json.loads(config_path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.33.1"
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    # "linear" predates the key `rope_type`; published checkpoints spell it `type`.
    type_key = "type" if rope_type == "linear" else "rope_type"
    config["rope_scaling"] = None if rope_type == "default" else {type_key: rope_type, **rope}
    if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        del config["head_dim"]
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--variant", choices=[*VARIANTS, "all"], required=True, help="all: one folder per variant below OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--config-style", choices=["v5", "v4"], default="v5")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for variant in VARIANTS if args.variant == "all" else [args.variant]:
        out_dir = args.out_dir / variant if args.variant == "all" else args.out_dir
        build(variant, args.seed).to(getattr(torch, args.dtype)).save_pretrained(out_dir)
        if args.config_style == "v4":
            rewrite_config_as_v4(out_dir / "config.json")


if __name__ == "__main__":
    main()
