"""Conversations as transformers writes them, with real chat templates and with dslaunch's own.

usage: chat_templates.py BUILTIN_DIR OUT_DIR

The real ones are those that the packages trl and axolotl ship. For each template there will be OUT_DIR/NAME/model (a tiny
model's folder, whose tokenizer has a token for each byte: ids are equal if and only if texts are), messages.jsonl,
messages-expected.jsonl (for each row its ids, and its labels where they follow from the template alone) and refused.jsonl (what
the template refuses). Those of the conversations that ShareGPT's and Alpaca's rows can say are in sharegpt.jsonl and alpaca.jsonl.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|begin_of_text|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>",
]

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Tells <the> \"weather\" & more.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Which é"}}, "required": ["city"]}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = [
    {"messages": [turn("user", "Hi."), turn("assistant", "Hello!")]},
    {"messages": [turn("system", "Be <brief> & 'kind'."), turn("user", "Hi.\n"), turn("assistant", "  Hello!  ")]},
    {"messages": [
        turn("user", "Größe? 你好 🙂"), turn("assistant", "Zwölf.\n\n1 < 2"), turn("user", " And then? "),
        turn("assistant", "{{ nothing }} {% if %}"), turn("user", "Bye"), turn("assistant", "Bye."),
    ]},
    {"messages": [
        turn("system", "Think."), turn("user", "2 + 2?"), turn("assistant", "<think>\nEasy.\n</think>\n\n4"),
        turn("user", "3 + 3?"), turn("assistant", "<think>\nAs well.\n</think>\n\n6"),
    ]},
    {"messages": [turn("user", "Go on"), turn("assistant", "Yes"), turn("assistant", "and yes")]},
    {"messages": [turn("user", "Who?"), turn("assistant", "I."), turn("user", "Really?")]},
    {"messages": [
        turn("user", "Rain in Bern?"),
        turn("assistant", "", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]),
        turn("tool", "{\"rain\": true}", name="weather"), turn("assistant", "Yes, it rains."),
    ], "tools": [WEATHER]},
    {"messages": [turn("user", "Tools?"), turn("assistant", "None needed.")], "tools": [WEATHER]},
]


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def prefix_parts(tokenizer, row, text):
    """The assistant's turns, where what comes before and with each of them is a beginning of the whole text."""
    def render(messages, asking):
        return tokenizer.apply_chat_template(messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=asking)

    messages, parts = row["messages"], []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            asked, answered = render(messages[:i], True), render(messages[: i + 1], False)
        except Exception:
            return None
        if not (text.startswith(answered) and answered.startswith(asked)):
            return None
        parts.append((len(asked), len(answered)))
    return parts


def labels_of(tokenizer, text, parts):
    """The labels of each token, and whether the end of sequence has to follow: the end of a turn is always learnt, white space
    behind it is not."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = {tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    labels, needs_end = [-100] * len(ids), False
    for start, end in parts:
        inside = [i for i, (first, _) in enumerate(offsets) if start <= first < end]
        words = [i for i in inside if ids[i] in special or text[slice(*offsets[i])].strip()]
        needs_end = False
        if words and ids[words[-1]] in special:
            inside = [i for i in inside if i <= words[-1]]
        elif inside and inside[-1] + 1 < len(ids) and ids[inside[-1] + 1] in special:
            inside.append(inside[-1] + 1)
        else:
            needs_end = True
        for i in inside:
            labels[i] = ids[i]
    return labels, needs_end and parts and not text[parts[-1][1]:].strip()


def generated_parts(tokenizer, row, text):
    encoded = tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools"), return_assistant_tokens_mask=True, return_dict=True, tokenize=True)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    mask, parts = encoded["assistant_masks"], []
    for i, is_trained in enumerate(mask):
        if is_trained and i and mask[i - 1]:
            parts[-1] = (parts[-1][0], max(parts[-1][1], offsets[i][1]))
        elif is_trained:
            parts.append(offsets[i])
    return parts


def as_sharegpt(row):
    """The same conversation as a row of ShareGPT's, if it can be one."""
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    if "tools" in row or any(message["role"] not in speakers for message in row["messages"]):
        return None
    return {"conversations": [{"from": speakers[m["role"]], "value": m["content"]} for m in row["messages"]]}


def as_alpaca(row):
    """The same conversation as a row of Alpaca's with LLaMA-Factory's keys, if it can be one."""
    messages = row["messages"]
    system, turns = (messages[:1], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    roles = [message["role"] for message in turns]
    if "tools" in row or roles != ["user", "assistant"] * (len(roles) // 2):
        return None
    texts = [message["content"] for message in turns]
    *history, last = zip(texts[::2], texts[1::2])
    # The input is the rest of an instruction, from its second line on.
    instruction, _, rest = last[0].partition("\n")
    return {"instruction": instruction if rest else last[0], "input": rest, "output": last[1], "history": [list(pair) for pair in history],
            "system": "".join(message["content"] for message in system)}


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def case(out, name, source, raw):
    model = out / name / "model"
    model.mkdir(parents=True)
    raw.save(str(model / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokens))
    (model / "chat_template.jinja").write_text(source)
    (model / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
        "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": raw.get_vocab_size(),
        "rms_norm_eps": 1e-6, "max_position_embeddings": 100000, "hidden_act": "silu", "eos_token_id": raw.token_to_id("</s>"),
        "tie_word_embeddings": False}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=source, **tokens)
    rows, expected, refused = [], [], []
    for row in CONVERSATIONS:
        try:
            text = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
        except Exception:
            refused.append(row)
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        is_marked = "generation %}" in source or "generation -%}" in source
        parts = generated_parts(tokenizer, row, text) if is_marked else prefix_parts(tokenizer, row, text)
        answer = {"ids": ids, "labels": None}
        if parts:
            labels, needs_end = labels_of(tokenizer, text, parts)
            end = [tokenizer.eos_token_id] if needs_end else []
            answer = {"ids": ids + end, "labels": labels + end}
        rows.append(row)
        expected.append(answer)
    if not rows:
        # A template for pictures, which texts have no place in.
        shutil.rmtree(out / name)
        return
    write(out / name, "refused.jsonl", refused)
    for kind, convert in [("messages", lambda row: row), ("sharegpt", as_sharegpt), ("alpaca", as_alpaca)]:
        converted = [(convert(row), answer) for row, answer in zip(rows, expected) if convert(row)]
        write(out / name, f"{kind}.jsonl", [row for row, _ in converted])
        write(out / name, f"{kind}-expected.jsonl", [answer for _, answer in converted])


def main():
    builtin, out = map(Path, sys.argv[1:])
    found = {f"dslaunch-{path.stem}": path.read_text() for path in builtin.glob("*.jinja")}
    for package, folder in [("trl", "chat_templates"), ("axolotl", "utils/chat_templates/templates")]:
        [root] = find_spec(package).submodule_search_locations
        found.update({f"{package}-{path.stem}": path.read_text() for path in (Path(root) / folder).glob("*.jinja")})
    raw = byte_tokenizer()
    for name, source in sorted(found.items()):
        case(out, name, source, raw)


main()
