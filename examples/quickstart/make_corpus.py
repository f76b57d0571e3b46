#!/usr/bin/env python3
"""Makes a small instruction data set, a tokenizer and a model configuration out of the Python standard library.

Owns: everything the quickstart trains on. The prompt is a function's qualified name and signature, the completion the first
paragraph of its docstring: real text, thousands of pairs, and on every machine that can run this script. The output is the same
for the same Python version and arguments. Needs the `tokenizers` package and nothing else; downloads nothing.

Writes DIR/train.jsonl and DIR/validation.jsonl ({"prompt", "completion"}), and DIR/model/ with tokenizer and config.json, but
no weights: the quickstart starts from random ones.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import random
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SEED = 42
SKIPPED_DIRS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
CONTEXT_TOKENS = 256
MAX_PAIR_TOKENS = 180
MIN_COMPLETION_CHARS = 15
# Only spares the tokenizer work: no text this long comes close to MAX_PAIR_TOKENS.
MAX_PAIR_CHARS = 1200


class Pair(NamedTuple):
    prompt: str
    completion: str

    def as_text(self) -> str:
        return self.prompt + self.completion


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}:"


def first_paragraph(docstring: str) -> str:
    return inspect.cleandoc(docstring).split("\n\n")[0].strip()


def pairs_in(node: ast.AST, scope: str) -> Iterator[Pair]:
    """Yields the documented functions, classes and methods below `node`, but not what a function defines inside itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            docstring = ast.get_docstring(child, clean=False)
            if docstring:
                yield Pair(f"# {scope}.{child.name}\n{signature(child)}\n", first_paragraph(docstring))
            if isinstance(child, ast.ClassDef):
                yield from pairs_in(child, f"{scope}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try, ast.With)):  # definitions that depend on the platform
            yield from pairs_in(child, scope)


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def collect(stdlib: Path) -> list[Pair]:
    """Returns every usable pair once, sorted."""
    found: dict[tuple[str, str], Pair] = {}
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_DIRS.intersection(relative.parts):
            continue
        try:
            with tokenize.open(path) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old modules hold invalid escapes
                tree = ast.parse(file.read())
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # templates and the samples of lib2to3 are not all Python 3
        for pair in pairs_in(tree, module_name(relative)):
            if len(pair.completion) >= MIN_COMPLETION_CHARS and len(pair.as_text()) <= MAX_PAIR_CHARS:
                # Overridden methods repeat a docstring under another path; a copy in validation would be no test.
                found.setdefault((pair.prompt.split("\n", 1)[1], pair.completion), pair)
    return sorted(found.values())


def train_tokenizer(pairs: list[Pair], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE that, like DeepSeek's, puts bos before every text; eos is left to the trainer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((pair.as_text() for pair in pairs), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def short_enough(pairs: list[Pair], tokenizer: Tokenizer) -> list[Pair]:
    encodings = tokenizer.encode_batch([pair.as_text() for pair in pairs])
    return [pair for pair, encoding in zip(pairs, encodings) if len(encoding.ids) < MAX_PAIR_TOKENS]  # one is left for eos


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, pairs: list[Pair]) -> None:
    path.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs), encoding="utf-8")


def write_model(model_dir: Path, tokenizer: Tokenizer) -> None:
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    write_json(model_dir / "special_tokens_map.json", special)
    write_json(model_dir / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        **special,
    })
    write_json(model_dir / "config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "float32",
    })


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=6000, help="at most this many pairs, validation included")
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()

    pairs = collect(Path(sysconfig.get_paths()["stdlib"]))
    random.Random(SEED).shuffle(pairs)
    tokenizer = train_tokenizer(pairs, args.vocab_size)
    usable = short_enough(pairs, tokenizer)
    kept = usable[: args.pairs]
    num_validation = max(1, len(kept) // 20)

    write_model(args.out / "model", tokenizer)
    write_jsonl(args.out / "validation.jsonl", kept[:num_validation])
    write_jsonl(args.out / "train.jsonl", kept[num_validation:])
    print(
        f"{args.out}: {len(kept) - num_validation} training and {num_validation} validation pairs "
        f"of {len(usable)} usable, vocabulary {tokenizer.get_vocab_size()}"
    )


if __name__ == "__main__":
    main()
