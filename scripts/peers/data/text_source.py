"""Text of any size from a seed, with a tokenizer and a tiny model for it."""

import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def words(rng, count):
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1.5, 2, 0.8, 0.2, 0.1, 0.2, 0.1]
    return ["".join(rng.choices(letters, weights, k=rng.randint(1, 10))) for _ in range(count)]


def write_source(path, size_bytes, seed):
    """Lines of JSON whose texts have 40 to 4000 words, drawn as in a language: few words often, many seldom."""
    rng = random.Random(seed)
    vocabulary = words(rng, 30_000)
    cumulative, total = [], 0.0
    for rank in range(len(vocabulary)):
        total += 1 / (rank + 3)
        cumulative.append(total)
    # A pool of paragraphs, so that making the source is not what takes the time; each text is another mixture of them.
    pool = [" ".join(rng.choices(vocabulary, cum_weights=cumulative, k=rng.randint(20, 120))) + "." for _ in range(20_000)]
    written = 0
    with open(path, "w") as file:
        number = 0
        while written < size_bytes:
            text = f"{number} " + " ".join(rng.choices(pool, k=rng.randint(1, 30)))
            written += file.write(json.dumps({"text": text}) + "\n")
            number += 1
    return pool


def write_model(folder, pool, seq_len, vocab_size=8000):
    """A folder with a tokenizer of `vocab_size` tokens, trained on `pool`, and a config.json of a tiny model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(pool[:2000], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": seq_len, "bos_token_id": 0, "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
