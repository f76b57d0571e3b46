#!/usr/bin/env python3
"""DeepSeek-LLM-7B's shape on one GPU: dslaunch beside transformers with Liger kernels and compiled layers, and beside the bound that the same
card has at the same moment.

Random weights are drawn on the GPU and written to a folder in memory, from which dslaunch reads them as it reads a model; rows are of 4,096
tokens, eight micro-batches a step. dslaunch trains in bf16 with masters, moments and gradients in fp32; the peer's AdamW has its states in
bf16, because nothing else of it fits. TFLOP/s count 6 operations for each parameter but the embedding's and the causal half of attention's
12 L D S, for each token. The bound: a step's matrix products at the rate measured for each shape, attention at cuDNN's measured rate, and
the optimizer's 34 bytes a parameter at the rate of a copy.

  gpu_bench.py dslaunch    dslaunch, one sample a row
  gpu_bench.py packed      five samples a row
  gpu_bench.py deterministic   one sample a row, every run with the same bits
  gpu_bench.py peer        transformers, and the bound
  gpu_bench.py profile     where the time of one step goes, by phase and kind of unit
  gpu_bench.py offload     22 of its layers, for the host's 128 GiB: in the GPU's memory, and all but what computes in the host's
  gpu_bench.py small       optimizer states in bf16 and no masters, planned for 78 GiB, beside fp32
  gpu_bench.py fp8         products of blocks in fp8 beside bf16, both with small optimizer states
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_run import ROOT, Failed, Run, card, write

CONFIG = ROOT / "examples/deepseek-llm-7b/model/config.json"
SEQ, MICRO_BATCHES, STEPS = 4096, 8, 6
SHM = Path("/dev/shm/dslaunch-bench")
# Offloaded, 18 bytes a parameter are on the host, beside 2 of the model's files.
OFFLOADED_LAYERS = 22
SMALL = ['optimizer.state="bf16"', "optimizer.masters=false"]
OFFLOADED = ["zero.stage=3", 'zero.offload_params="cpu"', 'zero.offload_optimizer="cpu"']


def flops_per_token(config: dict[str, Any]) -> float:
    hidden, ffn, layers, vocab = (config[key] for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
    products = layers * (4 * hidden * hidden + 3 * hidden * ffn) + vocab * hidden
    return 6 * products + 6 * layers * hidden * SEQ


def config_of(layers: int | None = None) -> dict[str, Any]:
    config = json.loads(CONFIG.read_text())
    return {**config, "num_hidden_layers": layers or config["num_hidden_layers"]}


def model(config: dict[str, Any]) -> Path:
    """See draw_model. Drawn once, by another process: what it has had of the GPU's memory is free again."""
    folder, layers = SHM / "model", config["num_hidden_layers"]
    found = folder / "config.json"
    is_there = (folder / "model.safetensors.index.json").exists() and json.loads(found.read_text())["num_hidden_layers"] == layers
    if not is_there:
        began = time.monotonic()
        subprocess.run([sys.executable, __file__, "model", "--layers", str(layers)], check=True)
        print(f"weights made in {time.monotonic() - began:.0f} s", flush=True)
    return folder


def draw_model(layers: int | None) -> dict[str, Any]:
    """A folder that transformers would read: random weights in bf16, one file for the ends and one for each block."""
    import torch
    from safetensors.torch import save_file

    config, folder = config_of(layers), SHM / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hidden, ffn, layers, vocab = (config[key] for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
    draw = lambda *shape: (torch.randn(*shape, device="cuda") * 0.02).bfloat16().cpu()  # noqa: E731
    ones = lambda: torch.ones(hidden, dtype=torch.bfloat16)  # noqa: E731
    index: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))

    save("ends.safetensors", {"model.embed_tokens.weight": draw(vocab, hidden), "model.norm.weight": ones(), "lm_head.weight": draw(vocab, hidden)})
    for layer in range(layers):
        shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden), "self_attn.v_proj": (hidden, hidden)}
        shapes |= {"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn)}
        tensors = {f"model.layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        tensors |= {f"model.layers.{layer}.{name}.weight": ones() for name in ["input_layernorm", "post_attention_layernorm"]}
        save(f"block-{layer}.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return {}


def rows(packed: bool, vocab: int) -> Path:
    rng, path = random.Random(1), SHM / ("packed.jsonl" if packed else "whole.jsonl")
    with path.open("w") as file:
        for _ in range(MICRO_BATCHES * (STEPS + 2)):
            lens = [SEQ]
            if packed:
                cuts = sorted(rng.sample(range(64, SEQ, 64), 4))
                lens = [b - a for a, b in zip([0, *cuts], [*cuts, SEQ])]
            for length in lens:
                file.write(json.dumps({"input_ids": [rng.randrange(vocab) for _ in range(length)]}) + "\n")
    return path


def job(config: dict[str, Any], packed: bool, deterministic: bool) -> str:
    data = rows(packed, config["vocab_size"])
    return f"""
[model]
path = {json.dumps(str(model(config)))}
device = "cuda"
[data]
train = {json.dumps(str(data))}
seq_len = {SEQ}
packing = {str(packed).lower()}
shuffle = false
[train]
steps = 100000
micro_batch_size = 1
global_batch_size = {MICRO_BATCHES}
deterministic = {str(deterministic).lower()}
[optimizer]
learning_rate = 1e-5
[checkpoint]
every_steps = 1000000
[restart]
max_restarts = 0
snapshot_every_steps = 0
[log]
every_steps = 1
"""


def profile() -> dict[str, Any]:
    shutil.rmtree(SHM / "run", ignore_errors=True)
    os.environ["DSLAUNCH_PROFILE"] = str(STEPS - 1)
    run = Run(SHM / "run", job(config_of(), False, False))
    run.stop_when(lambda: len(run.rows()) > STEPS, 150)
    text = (run.run_dir / "logs/attempt-0/rank-0.err").read_text()
    lines = [line for line in text.splitlines() if line.startswith("profile")]
    print("\n".join(lines))
    return {"profile": lines}


def bench_dslaunch(
    name: str, packed: bool = False, deterministic: bool = False, layers: int | None = None, sets: list[str] = (), limit: int = 180
) -> dict[str, Any]:
    config = config_of(layers)
    shutil.rmtree(SHM / "run", ignore_errors=True)
    try:
        run = Run(SHM / "run", job(config, packed, deterministic), sets)
        run.stop_when(lambda: len(run.rows()) > STEPS, limit)
    except Failed as error:
        print(f"FAIL  {name}: {str(error)[-3000:]}", flush=True)
        return {"failed": str(error)[-3000:]}
    found = run.rows()
    seconds = sorted(row["step_seconds"] for row in found[2:])[len(found[2:]) // 2]
    tokens = SEQ * MICRO_BATCHES / seconds
    tflops, losses = tokens * flops_per_token(config) / 1e12, [row["loss"] for row in found[:3]]
    print(f"  {name}: {tokens:8.0f} tokens/s  {tflops:6.0f} TFLOP/s  losses {losses}", flush=True)
    return {
        "tokens_per_second": tokens,
        "tflops": tflops,
        "first_losses": losses,
        "seconds_until_first_step": next(event["ms"] for event in run.events() if event["event"] == "started") / 1e3,
        "gpus": found[-1].get("gpus"),
        "recomputed": run.plan()["activation_checkpointing"],
    }


def bench_offload() -> dict[str, Any]:
    """In memory and offloaded, in turn. Expected: at least half as fast where gradients are clipped."""
    ways = {"in memory": [], "offloaded": OFFLOADED, "offloaded, not clipped": [*OFFLOADED, "train.max_grad_norm=0.0"]}
    found = {name: bench_dslaunch(name, layers=OFFLOADED_LAYERS, sets=sets, limit=75) for name, sets in ways.items()}
    if any("failed" in result for result in found.values()):
        return {"failed": "a way did not get there", **found}
    for name, result in found.items():
        ratio = result["tokens_per_second"] / found["in memory"]["tokens_per_second"]
        print(f"  {name}: {ratio:.2f} of the speed in memory; {result['gpus']}", flush=True)
        result["of_in_memory"] = ratio
    return found


def bench_ways(ways: dict[str, list[str]], least: float) -> dict[str, Any]:
    """Each way in turn: the last is to have `least` of the first one's speed."""
    found = {name: bench_dslaunch(name, sets=sets, limit=100) for name, sets in ways.items()}
    if any("failed" in result for result in found.values()):
        return {"failed": "a way did not get there", **found}
    first, *_, last = found.values()
    ratio = last["tokens_per_second"] / first["tokens_per_second"]
    print(f"  {' against '.join(reversed(ways))}: {ratio:.3f}, at least {least} is expected", flush=True)
    return {**found, "ratio": ratio, **({} if ratio >= least else {"failed": f"{ratio:.3f}, less than {least}"})}


def bench_peer() -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads(CONFIG.read_text())
    results: dict[str, Any] = {"bound": bound(config)}
    torch.cuda.empty_cache()
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True)
        results["liger"] = True
    except ImportError:
        results["liger"] = False
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**{**config, "use_cache": False, "attn_implementation": "sdpa"})).train()
    for layer in model.model.layers:
        layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    generator = torch.Generator(device="cuda").manual_seed(1)

    def step(micro: int, accumulated: int) -> None:
        for _ in range(accumulated):
            tokens = torch.randint(0, config["vocab_size"], (micro, SEQ), device="cuda", generator=generator)
            (model(input_ids=tokens, labels=tokens).loss / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    for micro in [1, 4]:
        times = []
        try:
            for _ in range(5):
                torch.cuda.synchronize()
                began = time.monotonic()
                step(micro, MICRO_BATCHES // micro)
                torch.cuda.synchronize()
                times.append(time.monotonic() - began)
        except torch.OutOfMemoryError as error:
            results[f"micro-batch {micro}"] = {"out of memory": str(error).splitlines()[0]}
            print(f"  transformers, micro-batch {micro}: out of memory", flush=True)
            break
        tokens = SEQ * MICRO_BATCHES / sorted(times[2:])[1]
        peak = torch.cuda.max_memory_allocated() / 2**30
        results[f"micro-batch {micro}"] = {"tokens_per_second": tokens, "tflops": tokens * flops_per_token(config) / 1e12, "peak_gib": peak}
        print(f"  transformers, micro-batch {micro}: {tokens:8.0f} tokens/s, {peak:.1f} GiB", flush=True)
    return results


def bound(config: dict[str, Any]) -> dict[str, float]:
    """Tokens/s if nothing but products, attention and the optimizer took time."""
    import torch
    import torch.nn.functional as F

    def rate(work: Any) -> float:
        """Seconds of one call, of as many as a second takes: the card's power limit counts."""
        calls = 10
        while True:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(calls):
                work()
            end.record()
            torch.cuda.synchronize()
            seconds = start.elapsed_time(end) / 1e3
            if seconds > 1:
                return seconds / calls
            calls = int(calls * max(2, 1.2 / max(seconds, 1e-3)))

    hidden, ffn, layers, vocab = (config[key] for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"])
    tensor = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    seconds = 0.0
    for rows_, columns, times in [(3 * hidden, hidden, layers), (hidden, hidden, layers), (2 * ffn, hidden, layers), (hidden, ffn, layers), (vocab, hidden, 1)]:
        x, w, y = tensor(SEQ, columns), tensor(rows_, columns), tensor(SEQ, rows_)
        seconds += times * (rate(lambda: x @ w.T) + rate(lambda: y @ w) + rate(lambda: y.T @ x))
    heads = config["num_attention_heads"]
    q, k, v = (tensor(1, heads, SEQ, hidden // heads).requires_grad_() for _ in range(3))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        dout = torch.randn_like(out)
        forward = rate(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        backward = rate(lambda: out.backward(dout, retain_graph=True))
    seconds += layers * (forward + backward)
    big = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    copy = 2 * (1 << 30) / rate(lambda: big.clone())
    parameters = layers * (4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden) + 2 * vocab * hidden + hidden
    step = MICRO_BATCHES * seconds + 34 * parameters / copy
    tokens = SEQ * MICRO_BATCHES / step
    print(f"  bound: {tokens:8.0f} tokens/s (products and attention {seconds * 1e3:.1f} ms a micro-batch, copy {copy / 1e12:.2f} TB/s)", flush=True)
    return {"tokens_per_second": tokens, "micro_batch_seconds": seconds, "copy_bytes_per_second": copy}


WHAT = {
    "dslaunch": lambda: bench_dslaunch("one sample a row"),
    "packed": lambda: bench_dslaunch("packed", packed=True),
    "deterministic": lambda: bench_dslaunch("deterministic", deterministic=True),
    "peer": bench_peer,
    "profile": profile,
    "offload": bench_offload,
    "small": lambda: bench_ways({"states in fp32": [], "states in bf16": SMALL}, 0.9),
    "fp8": lambda: bench_ways({"bf16": SMALL, "fp8": [*SMALL, 'model.matmul="fp8"']}, 1.25),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=[*WHAT, "model"])
    parser.add_argument("--layers", type=int, help="of the model that is drawn")
    arguments = parser.parse_args()
    what = arguments.what
    SHM.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if what == "model":
        draw_model(arguments.layers)
        return 0
    results = WHAT[what]()
    write(f"bench-7b-{what}", {"card": card(), "results": results})
    return 1 if "failed" in results else 0


if __name__ == "__main__":
    sys.exit(main())
