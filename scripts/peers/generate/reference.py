#!/usr/bin/env python3
"""Makes small models that can be asked something, and what transformers' generate() answers, greedily and in fp32.

usage: reference.py BUILTIN_TEMPLATES_DIR OUT_DIR

Below OUT_DIR there will be a folder for each model, an adapter's folder ("adapter", of the model "gqa") and cases.jsonl: a line for
each prompt or conversation, with the folder, what is asked, the ids that come and their text.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from make_model import COMMON, VARIANTS

SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|begin_of_text|>",
]
# Of two bytes and more: what comes of a model with random weights has half letters in it, and whole ones.
CORPUS = ["Größe und Maße, überall. 你好 🙂 Grüße! The capital of France is Paris. One, two, three, four."] * 8
NEW_TOKENS = 40


def make_tokenizer() -> Tokenizer:
    """A tokenizer of bytes with some merges, which puts <s> in front of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def make_model(variant: str, vocab_size: int, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(len(variant))
    config = {**COMMON, **VARIANTS[variant], "vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": None, **more}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim == 1:
                param.add_(torch.randn_like(param), alpha=0.1 if name.endswith(".bias") else 0.2)
    return model


def generate(model: Any, ids: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    prompt = torch.tensor([ids])
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
    return out[0, len(ids):].tolist()


def real_template(name: str) -> str | None:
    """A template that a published package ships, if it is installed."""
    spec = find_spec("trl")
    found = list(Path(spec.origin).parent.rglob(f"{name}.jinja")) if spec and spec.origin else []
    return found[0].read_text() if found else None


class Cases:
    def __init__(self, out: Path) -> None:
        self.out, self.lines = out, []
        self.raw = make_tokenizer()

    def tokenizer(self, template: str | None = None) -> PreTrainedTokenizerFast:
        names = {"bos_token": "<s>", "pad_token": "<pad>", **({"eos_token": "</s>"} if template else {})}
        return PreTrainedTokenizerFast(tokenizer_object=self.raw, chat_template=template, **names)

    def save(self, model: Any, name: str, template: str | None = None) -> None:
        model.save_pretrained(self.out / name)
        self.tokenizer(template).save_pretrained(self.out / name)

    def add(self, folder: str, asked: dict[str, Any], prompt: list[int], ids: list[int], ends: list[int] = ()) -> str:
        text = self.tokenizer().decode(prompt + [token for token in ids if token not in ends], skip_special_tokens=True)
        text = text[len(self.tokenizer().decode(prompt, skip_special_tokens=True)):]
        self.lines.append({"folder": folder, **asked, "prompt_tokens": len(prompt), "token_ids": ids, "text": text})
        return text

    def texts(self, model: Any, folder: str, prompts: list[str]) -> None:
        for prompt in prompts:
            ids = self.tokenizer()(prompt)["input_ids"]
            ends = model.generation_config.eos_token_id or []
            self.add(folder, {"prompt": prompt}, ids, generate(model, ids), ends)

    def conversation(self, model: Any, folder: str, template: str, system: str | None, asked: list[str]) -> None:
        tokenizer = self.tokenizer(template)
        messages = [{"role": "system", "content": system}] if system else []
        for words in asked:
            messages.append({"role": "user", "content": words})
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
            text = self.add(folder, {"system": system, "message": words}, ids, generate(model, ids))
            messages.append({"role": "assistant", "content": text})


def main() -> None:
    builtin, out = map(Path, sys.argv[1:])
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    cases = Cases(out)
    vocab_size = cases.raw.get_vocab_size() + 3
    # Longer than what is read at a time, and far beyond the lengths at which rotary frequencies begin to be stretched.
    long = " ".join(f"{number} Grüße" for number in range(160))
    prompts = ["The capital of France is", "Größe 🙂", "x", long]
    for variant in VARIANTS:
        model = make_model(variant, vocab_size, max_position_embeddings=2048)
        cases.save(model, variant)
        cases.texts(model, variant, prompts)
        if variant == "gqa":
            torch.manual_seed(3)
            lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
            adapted = get_peft_model(model, lora).eval()
            adapted.base_model.model.config.name_or_path = str(out / variant)
            adapted.peft_config["default"].base_model_name_or_path = str(out / variant)
            adapted.save_pretrained(out / "adapter")
            cases.texts(adapted, "adapter", prompts[:2])
    # It ends where generation_config.json says: at what comes for the first time late in the first prompt's text, and in another's.
    model = make_model("mha", vocab_size)
    answers = [generate(model, cases.tokenizer()(prompt)["input_ids"]) for prompt in prompts[:2]]
    model.generation_config.eos_token_id = [
        next(token for place, token in enumerate(ids) if place >= 8 and token not in ids[:place]) for ids in answers]
    cases.save(model, "ends")
    cases.texts(model, "ends", prompts[:3])
    templates = {"chatml": (builtin / "chatml.jinja").read_text(), "deepseek": (builtin / "deepseek.jinja").read_text()}
    templates["llama3"] = real_template("llama3") or (builtin / "llama3.jinja").read_text()
    for name, system in [("chatml", "Be brief."), ("deepseek", None), ("llama3", "Grüß ihn.")]:
        model = make_model("biased", vocab_size, eos_token_id=2)
        cases.save(model, f"chat-{name}", templates[name])
        cases.conversation(model, f"chat-{name}", templates[name], system, ["Hi 🙂", "And then?"])
    (out / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cases.lines))


if __name__ == "__main__":
    main()
