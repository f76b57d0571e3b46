#!/usr/bin/env python3
"""Adapters of rank 16 on all linear layers of DeepSeek-LLM-7B's shape, on one GPU: dslaunch beside PEFT in the same run, and on a base in nf4.

Rows of 4,096 tokens, micro-batches of one row, eight of them a step, in bf16; nothing is computed again, but with nf4 whole blocks are.
Expected: at least 1.3 times PEFT's tokens/s (9,471 on an H200, measured with one micro-batch a step), and below 24 GB with nf4. Prints a
table last, writes JSON.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_bench import MICRO_BATCHES, SEQ, SHM, bench_dslaunch, config_of
from gpu_run import card, write

LEAST_RATIO = 1.3
MOST_BYTES = 24e9
ADAPTER = ["lora.rank=16", "lora.alpha=32.0", "optimizer.learning_rate=1e-4"]
WARM_UP, MEASURED = 2, 3


def memory_bytes(found: dict[str, Any]) -> int:
    """What the driver says that all programs have of the card, after the last step."""
    return found["gpus"][0]["memory_used"] if found["gpus"] else 0


def peer() -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = config_of()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = LlamaForCausalLM(LlamaConfig(**{**config, "use_cache": False, "attn_implementation": "sdpa"}))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")).train()
    model.enable_input_require_grads()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    times = []
    for _ in range(WARM_UP + MEASURED):
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(MICRO_BATCHES):
            tokens = torch.randint(0, config["vocab_size"], (1, SEQ), device="cuda")
            (model(input_ids=tokens, labels=tokens).loss / MICRO_BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    rate = SEQ * MICRO_BATCHES / sorted(times[WARM_UP:])[MEASURED // 2]
    peak = torch.cuda.max_memory_allocated()
    print(f"  PEFT: {rate:8.0f} tokens/s, {peak / 1e9:.1f} GB allocated", flush=True)
    return {"tokens_per_second": rate, "peak_bytes": peak}


def main() -> int:
    SHM.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # dslaunch first: PEFT's memory is free only when this process ends.
    whole = bench_dslaunch("adapters", sets=[*ADAPTER, 'train.activation_checkpointing="none"'], limit=80)
    few_bits = [*ADAPTER, 'lora.quantize="nf4"', 'train.activation_checkpointing="full"']
    quantized = bench_dslaunch("adapters on nf4", sets=few_bits, limit=90)
    results: dict[str, Any] = {"bf16": whole, "nf4": quantized}
    # What is there is written, whatever becomes of the peer.
    write("lora", {"card": card(), "results": results})
    try:
        results["peft"] = peer()
    except Exception as error:  # noqa: BLE001
        print(f"FAIL  PEFT: {error!r}", flush=True)
        results["peft"] = {"failed": repr(error)}
    failures = [name for name, result in results.items() if "failed" in result]
    if not {"bf16", "peft"} & set(failures):
        ratio = whole["tokens_per_second"] / results["peft"]["tokens_per_second"]
        print(f"  {ratio:.2f} times PEFT's speed, with {memory_bytes(whole) / 1e9:.1f} GB; at least {LEAST_RATIO} is expected", flush=True)
        results["ratio"] = ratio
        failures += ["ratio"] if ratio < LEAST_RATIO else []
    if "failed" not in quantized:
        used = memory_bytes(quantized)
        print(f"  on nf4 {used / 1e9:.1f} GB; less than {MOST_BYTES / 1e9:.0f} is expected", flush=True)
        failures += [] if 0 < used < MOST_BYTES else ["memory"]
    write("lora", {"card": card(), "results": results})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
