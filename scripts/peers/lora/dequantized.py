"""Weights as they are once they have been in few bits: what a QLoRA job computes with.

Owns: int8 (a scale for each row) and nf4 (blocks of 64 in row-major order, with scales that are quantised again), from the papers:
LLM.int8() and QLoRA, appendix E. Shares nothing with dslaunch, which tests compare with it.
"""

from __future__ import annotations

import torch

# Sixteen quantiles of the normal distribution, scaled to -1 .. 1.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def dynamic_map() -> torch.Tensor:
    """The 8-bit dynamic type: a sign, zeros that are powers of ten, and a linear fraction in what bits are left."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        boundaries = torch.linspace(0.1, 1, 2**exponent + 1)
        fractions = 10.0 ** (exponent - 6) * ((boundaries[:-1] + boundaries[1:]) / 2)
        values += [fractions, -fractions]
    return torch.cat(values).sort().values


def nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table[(values.unsqueeze(-1) - table).abs().argmin(-1)]


def blocks(values: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of `size`; zeros after the last value."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % size))
    return padded.view(-1, size)


def nf4(weight: torch.Tensor) -> torch.Tensor:
    values = blocks(weight.float().reshape(-1), 64)
    scales = values.abs().amax(1)
    codes = nearest(values / scales.clamp(min=1e-38).unsqueeze(1), NF4)
    mean = scales.double().mean().float()
    of_scales = blocks(scales - mean, 256)
    largest = of_scales.abs().amax(1, keepdim=True)
    restored = nearest(of_scales / largest, dynamic_map()) * largest + mean
    restored = restored.reshape(-1)[: len(scales)]
    return (codes * restored.unsqueeze(1)).reshape(-1)[: weight.numel()].view_as(weight)


def int8(weight: torch.Tensor) -> torch.Tensor:
    scales = weight.float().abs().amax(1, keepdim=True)
    return (weight.float() * (127 / scales)).round() * scales / 127


@torch.no_grad()
def dequantize(model: torch.nn.Module, kind: str) -> None:
    """Replaces the weights of all projections of a model's blocks."""
    for name, param in model.named_parameters():
        if name.endswith(tuple(f"{projection}.weight" for projection in PROJECTIONS)):
            param.copy_({"nf4": nf4, "int8": int8}[kind](param))
