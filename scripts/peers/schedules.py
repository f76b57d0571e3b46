"""The learning-rate schedules of dslaunch, spelled with transformers' own functions.

Owns: which transformers function each `[schedule] kind` means, and the golden table that `hf_reference.py --print-schedules`
prints. A factor multiplies the peak learning rate; steps are counted from 0, so with warm-up the first step trains at factor 0.

- constant: `get_constant_schedule_with_warmup`; min_lr_ratio has nothing to scale.
- linear: `get_linear_schedule_with_warmup`; its decay f becomes min + (1 - min) * f (transformers has no minimum here).
- cosine: `get_cosine_with_min_lr_schedule_with_warmup`, which is `get_cosine_schedule_with_warmup` where the minimum is 0.
- wsd: `get_wsd_schedule` with its defaults (linear warm-up, cosine-shaped decay) and a decay over the last tenth of the steps,
  rounded up, or what the warm-up leaves of it. transformers lets its warm-up rise from min_lr_ratio; here it rises from 0, as
  the others' do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import optimization

KINDS = ("constant", "linear", "cosine", "wsd")


def wsd_decay_steps(steps: int, warmup_steps: int) -> int:
    return min((steps + 9) // 10, max(0, steps - warmup_steps))


def factor_fn(kind: str, steps: int, warmup_steps: int, min_lr_ratio: float) -> Callable[[int], float]:
    """Returns the function from step (from 0) to learning-rate factor."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if kind == "constant":
        return optimization.get_constant_schedule_with_warmup(optimizer, warmup_steps).lr_lambdas[0]
    if kind == "linear":
        linear = optimization.get_linear_schedule_with_warmup(optimizer, warmup_steps, steps).lr_lambdas[0]
        return lambda step: linear(step) if step < warmup_steps else min_lr_ratio + (1 - min_lr_ratio) * linear(step)
    if kind == "cosine":
        return optimization.get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup_steps, steps, min_lr_rate=min_lr_ratio
        ).lr_lambdas[0]
    if kind == "wsd":
        wsd = optimization.get_wsd_schedule(
            optimizer, warmup_steps, wsd_decay_steps(steps, warmup_steps), num_training_steps=steps, min_lr_ratio=min_lr_ratio
        ).lr_lambdas[0]
        return lambda step: step / warmup_steps if step < warmup_steps else wsd(step)
    raise ValueError(f"schedule: kind {kind!r} is none of {', '.join(KINDS)}")


def golden() -> list[dict[str, Any]]:
    """Every kind over settings with and without warm-up and minimum: factors for steps 0 to `steps`, the end included."""
    settings = [(10, 0, 0.0), (10, 3, 0.0), (10, 3, 0.1), (25, 5, 0.2), (7, 1, 0.5), (1, 0, 0.1), (4, 4, 0.1), (3, 8, 0.1)]
    rows = []
    for kind in KINDS:
        for steps, warmup_steps, min_lr_ratio in settings:
            factor = factor_fn(kind, steps, warmup_steps, min_lr_ratio)
            rows.append({
                "kind": kind,
                "steps": steps,
                "warmup_steps": warmup_steps,
                "min_lr_ratio": min_lr_ratio,
                "factors": [factor(step) for step in range(steps + 1)],
            })
    return rows
