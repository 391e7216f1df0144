"""Tokenisers from tokenizer.json or from GGUF metadata, and chat templates.

A thin wrapper over the `tokenizers` library, which does the work in either case.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from kd_jax.formats.huggingface import MAX_JSON_BYTES, read_json

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

# The patterns of the models' own tokenizer.json files.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back.

    backend: the tokeniser of the `tokenizers` library.
    config: what tokenizer_config.json holds: special tokens by role, the chat template.
    """

    backend: tokenizers.Tokenizer
    config: Mapping[str, Any]

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """The ids of a text. Special tokens written out in it become single ids; add_special puts
        around it what the model's own tokeniser would (often a beginning-of-text token)."""
        return self.backend.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        ValueError: an id that is negative or not below the size of the vocabulary.
        """
        size = self.vocab_size
        wrong = [i for i in ids if not 0 <= i < size]
        if wrong:
            raise ValueError(f"ids: got {wrong[0]}, takes 0 to {size - 1}")
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None."""
        return self._special("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text or a turn, or None."""
        return self._special("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The id meant for padding, or None. Nothing here depends on it: padding has weight 0."""
        return self._special("pad_token")

    def _special(self, role: str) -> int | None:
        text = _text(self.config.get(role))
        return None if text is None else self.backend.token_to_id(text)

    def apply_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation by the model's own template.

        messages: each has "role" and "content". add_generation_prompt ends with what precedes an
        answer. The template runs in Jinja's immutable sandbox and is given no clock.

        ValueError: there is no template, or it refuses these messages.
        """
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several by name
            entries = [entry for entry in template if isinstance(entry, Mapping)]
            named = {entry.get("name"): entry.get("template") for entry in entries}
            template = named.get("default")
        if not isinstance(template, str):
            raise ValueError("this tokeniser has no chat template")
        roles = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {role: _text(self.config.get(role)) for role in roles}
        try:
            return (
                _environment()
                .from_string(template)
                .render(
                    messages=messages,
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    **{role: text for role, text in special.items() if text is not None},
                )
            )
        except Exception as error:  # a template is a program: it can raise anything
            raise ValueError(f"the chat template failed: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers can load."""
        folder = Path(folder)
        self.backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(dict(self.config), indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def from_folder(folder: str | Path) -> Tokenizer:
    """The tokeniser of a Hugging Face folder: tokenizer.json, and tokenizer_config.json and
    chat_template.jinja where they are.

    ValueError: tokenizer.json is missing or malformed.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: over {MAX_JSON_BYTES} bytes")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokeniser ({error})") from None
    backend.no_padding()
    backend.no_truncation()
    own = folder / "tokenizer_config.json"
    config = read_json(own) if own.is_file() else {}
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    return Tokenizer(backend, config)


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokeniser that GGUF metadata describe: byte-level BPE, cut into words beforehand as the
    model's own tokeniser does it (tokenizer.ggml.pre).

    ValueError: another kind of tokeniser, a pre-tokenisation not known here, and vocabularies or
    merges that are missing or malformed.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model: got {kind!r}, takes 'gpt2' (byte-level BPE)")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    pairs = [merge.partition(" ") for merge in _strings(metadata, "tokenizer.ggml.merges")]
    if len(set(tokens)) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens: a token is given twice")
    if not all(left and right and " " not in right for left, _, right in pairs):
        raise ValueError("tokenizer.ggml.merges: a merge is not two tokens with a space between")
    pre = metadata.get("tokenizer.ggml.pre")
    cut, whole_words, normalizer = _pre_tokenisation(pre)
    try:
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in pairs],
            ignore_merges=whole_words,
        )
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.ggml: not a vocabulary and its merges ({error})") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = cut  # pyright: ignore[reportAttributeAccessIssue]
    if normalizer is not None:
        backend.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    _add_special(backend, tokens, metadata)
    config = _config(tokens, metadata)
    if config["add_bos_token"]:
        bos = config["bos_token"]
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    return Tokenizer(backend, config)


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{name}: missing, or not a list of strings")
    return found


def _pre_tokenisation(name: Any) -> tuple[Any, bool, Any]:
    """(pre-tokeniser, whether words in the vocabulary skip the merges, normaliser) for llama.cpp's
    names of models' own rules."""
    if name in ("smollm", "starcoder", "refact", "command-r"):
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, _bytes(use_regex=True)]), False, None
    if name in ("gpt-2", "phi-2"):
        return _bytes(use_regex=True), False, None
    if name in ("llama-bpe", "llama3", "llama-v3"):
        return _split(_LLAMA3), True, None
    if name == "qwen2":
        return _split(_QWEN2), False, normalizers.NFC()
    known = "smollm, starcoder, refact, command-r, gpt-2, phi-2, llama-bpe, llama3, llama-v3, qwen2"
    raise ValueError(f"tokenizer.ggml.pre: got {name!r}, takes {known}")


def _bytes(use_regex: bool) -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str) -> pre_tokenizers.Sequence:
    cut = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, _bytes(use_regex=False)])


def _add_special(
    backend: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any]
) -> None:
    """Mark the tokens that are matched whole in a text: control and user-defined ones."""
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise ValueError("tokenizer.ggml.token_type: not one number for each token")
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [tokens[i] for i in np.flatnonzero(kinds == kind) if tokens[i]]
        added = [tokenizers.AddedToken(t, normalized=False, special=special) for t in chosen]
        (backend.add_special_tokens if special else backend.add_tokens)(added)


def _config(tokens: list[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json from metadata."""

    def token(name: str) -> str | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in metadata:
            return None
        number = metadata[key]
        if type(number) is not int or not 0 <= number < len(tokens):
            raise ValueError(f"{key}: got {number!r}, takes 0 to {len(tokens) - 1}")
        return tokens[number]

    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{role}_token": token(name) for role, name in roles.items()}
    # llama.cpp adds it to Llama 3's texts where the metadata do not say.
    llama3 = metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "llama-v3")
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", llama3))
    if add_bos and special["bos_token"] is None:
        raise ValueError("tokenizer.ggml.add_bos_token: asks for a token that is not named")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
        **{role: text for role, text in special.items() if text is not None},
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _text(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it (they are written for transformers' settings)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment
