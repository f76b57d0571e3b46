#!/usr/bin/env python3
"""Prints what bitsandbytes makes of two small matrices: proto/src/quantized/bitsandbytes.json.

Owns: the numbers that tests of proto::quantized compare with. Needs bitsandbytes (the file was made with 0.50.2, on a CPU); no test
runs this.
"""

from __future__ import annotations

import json

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as F
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Numbers of very different sizes, from a generator that is written in a line of any language."""
    state, values = 1, []
    for _ in range(rows * columns):
        state = (state * 1664525 + 1013904223) % 2**32
        centred = (state >> 8) / 2**24 - 0.5
        values.append(centred**3)
    return torch.tensor(values, dtype=torch.float64).float().reshape(rows, columns)


def of(rows: int, columns: int) -> dict[str, object]:
    weight = matrix(rows, columns)
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    scales = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    # As on a GPU: its kernel for a CPU takes blocks to begin with each row.
    restored = _dequantize_4bit_compute(codes.flatten(), scales, state.code, 64, weight.shape, torch.float32)
    int8, scales, _ = F.int8_vectorwise_quant(weight.clone())
    return {
        "shape": [rows, columns],
        "nf4": {
            "codes": codes.flatten().numpy().tobytes().hex(),
            "scale_codes": state.absmax.numpy().tobytes().hex(),
            "scales": state.state2.absmax.tolist(),
            "mean": state.offset.item(),
            "first_row": restored[0].tolist(),
            "last_row": restored[-1].tolist(),
        },
        "int8": {
            "codes": int8.numpy().tobytes().hex() if rows < 10 else None,
            "scales": scales.tolist(),
            "last_row": F.int8_vectorwise_dequant(int8, scales)[-1].tolist(),
        },
    }


def main() -> None:
    print(json.dumps({
        "bitsandbytes": bnb.__version__,
        "nf4": F.get_4bit_type("nf4", device="cpu").tolist(),
        "dynamic": F.create_dynamic_map().tolist(),
        "matrices": [of(3, 80), of(260, 68)],
    }, separators=(",", ":")))


if __name__ == "__main__":
    main()
