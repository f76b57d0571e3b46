#!/usr/bin/env python3
"""Makes a Hugging Face folder of a LLaMA model in a GGUF file: config, tokenizer with chat template, weights in fp32.

Owns: what GGUF calls the parts of a LLaMA, and how its files order query and key rows. Quantised weights become the values
that they stand for. Takes byte-level BPE vocabularies only, which digits split one by one ("smollm").
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# Kinds of tokens in tokenizer.ggml.token_type.
CONTROL, USER_DEFINED = 3, 4

OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def metadata(reader: GGUFReader) -> dict[str, Any]:
    found = {name: field.contents() for name, field in reader.fields.items()}
    if found["general.architecture"] != "llama":
        raise SystemExit(f"from_gguf: the architecture is {found['general.architecture']}, not llama")
    return found


def hugging_face_name(name: str) -> str:
    part = name.removesuffix(".weight")
    if part in OF_MODEL:
        return OF_MODEL[part] + ".weight"
    block, idx, of_block = part.split(".")
    if block != "blk" or of_block not in OF_BLOCK or not name.endswith(".weight"):
        raise SystemExit(f"from_gguf: no part of a LLaMA is called {name}")
    return f"model.layers.{idx}.{OF_BLOCK[of_block]}.weight"


def halves_apart(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Puts the rows of each head back: GGUF has the two halves that are rotated together in turn."""
    heads = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(rows.shape))


def weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        # Dimensions are listed from the innermost.
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(tensor.shape[::-1])
        for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if projection in name:
                values = halves_apart(values, config[heads])
        found[name] = values
    return found


def model_config(meta: dict[str, Any], is_tied: bool) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"],
        # A float of 32 bits: as many digits as it holds.
        "rms_norm_eps": float(np.format_float_positional(np.float32(llama["attention.layer_norm_rms_epsilon"]))),
        "rope_theta": llama["rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": is_tied,
        "vocab_size": llama["vocab_size"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer(meta: dict[str, Any]) -> Tokenizer:
    kind = (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise SystemExit(f"from_gguf: its tokenizer is {kind[0]}/{kind[1]}, not gpt2/smollm")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: idx for idx, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"]) if kind in (CONTROL, USER_DEFINED)]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": meta.get("tokenizer.ggml.add_bos_token", False),
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    reader = GGUFReader(args.gguf)
    meta = metadata(reader)
    config = model_config(meta, is_tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    args.out.mkdir(parents=True)
    tokenizer(meta).save(str(args.out / "tokenizer.json"))
    stops = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    for name, content in [
        ("config.json", config),
        ("generation_config.json", stops),
        ("tokenizer_config.json", tokenizer_config(meta)),
    ]:
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(weights(reader, config), args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
