"""Leaves out of what PEFT's adapters read the elements that dslaunch leaves out.

Owns: the masks, written a second time: each element's draw is that of SplitMix64 by its place, from a seed of the run's seed, the
row's position in the run, the token's place in the row, the layer and what the projection reads there.
"""

from __future__ import annotations

import numpy as np
import torch
from peft import PeftModel
from torch import nn

GAMMA = np.uint64(0x9E3779B97F4A7C15)
READS = [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]


def mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def seed_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return mix(mix(one + GAMMA) ^ other)


class Row:
    """The row that is being computed."""

    def __init__(self, seed: int) -> None:
        self.seed = np.array([seed], np.uint64)
        self.position = 0

    def keys(self, tokens: int) -> np.ndarray:
        of_row = seed_of(self.seed, np.array([self.position], np.uint64))
        return seed_of(of_row, np.arange(tokens, dtype=np.uint64))


class DropoutByPlace(nn.Module):
    """In the place of torch's."""

    def __init__(self, row: Row, salt: int, rate: float) -> None:
        super().__init__()
        self.row, self.salt, self.rate = row, np.uint64(salt), rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        tokens, width = x.shape[-2:]
        columns = np.arange(width, dtype=np.uint64)
        seeds = seed_of(self.row.keys(tokens), self.salt)[:, None]
        bits = mix(seeds + (columns // np.uint64(2) + np.uint64(1)) * GAMMA)
        draws = bits >> np.uint64(32) * (columns % np.uint64(2)) & np.uint64(0xFFFFFFFF)
        mask = torch.from_numpy(draws >= np.uint64(self.rate * 2**32))
        return x * mask / (1 - self.rate)


def install(model: PeftModel, seed: int, rate: float) -> Row:
    """Gives each adapter its dropout. Whoever computes a row says its position in the run."""
    row = Row(seed)
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            path = name.split(".")
            layer, reads = int(path[path.index("layers") + 1]), [path[-1] in names for names in READS].index(True)
            module.lora_dropout["default"] = DropoutByPlace(row, 4 * layer + reads, rate)
    return row
