#!/usr/bin/env python3
"""Writes the weights of a model's folder as `torch.save` does, into a folder of their own beside its config.json.

With --parts N there are N files with an index, as `save_pretrained(safe_serialization=False)` made them; otherwise pytorch_model.bin.
With --parameters they are parameters, and --transposed has the first matrix lie column by column, which no model's own file does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--parameters", action="store_true")
    parser.add_argument("--transposed", action="store_true")
    args = parser.parse_args()
    shutil.copytree(args.model, args.out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = load_file(args.model / "model.safetensors")
    if args.transposed:
        first = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[first] = tensors[first].t().contiguous().t()
    if args.parameters:
        tensors = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    names, weight_map = list(tensors), {}
    for part in range(args.parts):
        whose = OrderedDict((name, tensors[name]) for name in names[part :: args.parts])
        file = "pytorch_model.bin" if args.parts == 1 else f"pytorch_model-{part + 1:05}-of-{args.parts:05}.bin"
        torch.save(whose, args.out / file)
        weight_map |= dict.fromkeys(whose, file)
    if args.parts > 1:
        (args.out / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


if __name__ == "__main__":
    main()
