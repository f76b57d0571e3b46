#!/usr/bin/env python3
"""Checks `dslaunch generate` on a GPU: the small models' greedy tokens beside transformers' (on the CPU, fp32), and how fast
DeepSeek-LLM-7B's shape writes at batch 1 in bf16, beside transformers' eager generate() on the same card.

Expected: equal tokens; at least 100 tokens/s (eager transformers: 17 on an H200). Prints a table last, writes JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_bench import SHM, config_of, model
from gpu_run import PACK, ROOT, card, write

LEAST = 100
PROMPT_TOKENS, NEW_TOKENS, PEER_TOKENS = 128, 256, 48


def answers(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    argv = [str(PACK / "dslaunch"), "generate", str(folder), "--device", "cuda", "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def parity() -> dict[str, Any]:
    """The cases of the tests, in fp32."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as out:
        script, templates = Path(__file__).with_name("reference.py"), ROOT / "launcher/src/data/chat/builtin"
        subprocess.run([sys.executable, str(script), str(templates), out], check=True, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))
        cases = [json.loads(line) for line in (Path(out) / "cases.jsonl").read_text().splitlines()]
        plain = [case for case in cases if "prompt" in case]
        for folder in dict.fromkeys(case["folder"] for case in plain):
            expected = [case for case in plain if case["folder"] == folder]
            prompts = [word for case in expected for word in ("--prompt", case["prompt"])]
            found = answers(Path(out) / folder, "--dtype", "fp32", "--max-new-tokens", "40", *prompts)
            wrong += [f"{folder}: {case['prompt'][:40]!r}" for case, answer in zip(expected, found, strict=True)
                      if case["token_ids"] != answer["token_ids"]]
    for line in wrong:
        print(f"FAIL  {line}", flush=True)
    print(f"  greedy tokens: {len(plain) - len(wrong)} of {len(plain)} as transformers'", flush=True)
    return {"cases": len(plain), "wrong": wrong}


def speed() -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = model(config_of())
    vocab = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt = ("The quick brown fox jumps over the lazy dog. " * 9)[:PROMPT_TOKENS]
    # The first prompt warms the card up.
    found = answers(folder, "--max-new-tokens", str(NEW_TOKENS), "--prompt", prompt[1:], "--prompt", prompt)[-1]
    rate = found["tokens_per_second"]
    print(f"  dslaunch: {rate:.1f} tokens/s, prompt of {found['prompt_tokens']} tokens in {found['prompt_seconds']:.3f} s", flush=True)
    return {"tokens_per_second": rate, "prompt_seconds": found["prompt_seconds"], "prompt_tokens": found["prompt_tokens"]}


def peer() -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    folder = SHM / "model"
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda").eval()
    prompt = torch.randint(0, 200, (1, PROMPT_TOKENS), device="cuda")
    times = []
    for new_tokens in [PEER_TOKENS, 1, PEER_TOKENS + 1]:
        torch.cuda.synchronize()
        began = time.monotonic()
        llama.generate(prompt, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0)
        torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    rate = PEER_TOKENS / (times[2] - times[1])
    print(f"  transformers, eager: {rate:.1f} tokens/s", flush=True)
    return {"tokens_per_second": rate}


def main() -> int:
    SHM.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results = {"parity": parity(), "dslaunch": speed(), "transformers": peer()}
    rate = results["dslaunch"]["tokens_per_second"]
    good = not results["parity"]["wrong"] and rate >= LEAST
    print(f"  {rate / results['transformers']['tokens_per_second']:.1f} times transformers; at least {LEAST} tokens/s is expected", flush=True)
    write("generate", {"card": card(), "results": results})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
