import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kd_jax.formats import tokenizer
from kd_jax.formats.fetch import smollm2_path
from kd_jax.formats.gguf import open_gguf

GOLDENS = Path(__file__).parent.parent / "goldens"
WORDS = json.loads((GOLDENS / "words.json").read_text())
SMOLLM2 = json.loads((GOLDENS / "smollm2.json").read_text())
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no ' + m['role']) }}"
    "{% endif %}<s>{{ m['role'] }}: {{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's letters for the bytes: printable ones stand for themselves, others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def metadata(**changes) -> dict:
    """The bytes, a few merges, a control and a user-defined token."""
    merges = ["h e", "Ġ Ġ", "Ġ t", "1 2", "e r", "a ĉ"]
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in merges), "<s>", "</s>", "<think>"]
    kinds = np.array([1] * (len(tokens) - 3) + [3, 3, 4])
    given = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    given |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {name: value for name, value in given.items() if value is not None}


def pieces(found: tokenizer.Tokenizer, text: str) -> list[str | None]:
    return [found.backend.id_to_token(i) for i in found.encode(text)]


@pytest.mark.parametrize("name", WORDS["words"])
def test_words_are_cut_as_transformers_does(name):
    backend = tokenizer.from_gguf(metadata(pre=name)).backend
    for text, words in zip(WORDS["texts"], WORDS["words"][name], strict=True):
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        found = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain)]
        assert found == words, text


def test_smollm_cuts_digits_apart():
    found = tokenizer.from_gguf(metadata())
    assert pieces(found, "he  12 the") == ["he", "ĠĠ", "1", "2", "Ġt", "he"]
    # GPT-2's rule leaves one of the spaces to the number, and the digits together.
    found = tokenizer.from_gguf(metadata(pre="gpt-2"))
    assert pieces(found, "he  12 the") == ["he", "Ġ", "Ġ", "12", "Ġt", "he"]


def test_special_tokens_are_whole_and_text_comes_back():
    found = tokenizer.from_gguf(metadata())
    assert pieces(found, "<s>he<think></s>") == ["<s>", "he", "<think>", "</s>"]
    text = "<s>naïve\t🙂  12\n日本"
    assert found.decode(found.encode(text)) == text
    assert found.decode(found.encode(text), skip_special=True) == text.removeprefix("<s>")
    assert (found.bos_id, found.eos_id, found.pad_id) == (262, 263, None)
    assert found.vocab_size == 265
    with pytest.raises(ValueError, match="ids: got 265, takes 0 to 264"):
        found.decode([3, 265])
    with pytest.raises(ValueError, match="ids: got -1"):
        found.decode([-1])


def test_the_beginning_of_text_is_added_only_when_asked():
    found = tokenizer.from_gguf(metadata(add_bos_token=True))
    assert found.encode("he") == [256]
    assert found.encode("he", add_special=True) == [262, 256]
    assert tokenizer.from_gguf(metadata()).encode("he", add_special=True) == [256]


def test_a_chat_is_written_by_the_template():
    found = tokenizer.from_gguf(metadata())
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes."}]
    expected = "<s>user: Hi</s>\n<s>assistant: Yes.</s>\n"
    assert found.apply_chat(messages) == expected
    assert found.apply_chat(messages, add_generation_prompt=True) == expected + "<s>assistant:"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / messages }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_templates_that_fail_or_reach_out_are_refused(template):
    given = metadata() | {"tokenizer.chat_template": template}
    with pytest.raises(ValueError, match="the chat template failed"):
        tokenizer.from_gguf(given).apply_chat([{"role": "user", "content": "x"}])


def test_no_template_is_an_error():
    found = tokenizer.from_gguf(metadata())
    for template in (None, 3, [], ["x"], [{"name": "tools", "template": "x"}]):
        bare = dataclasses.replace(found, config={"chat_template": template})
        with pytest.raises(ValueError, match="no chat template"):
            bare.apply_chat([])


def test_a_saved_tokeniser_is_the_same(tmp_path):
    found = tokenizer.from_gguf(metadata(pre="llama-bpe"))
    found.save(tmp_path)
    again = tokenizer.from_folder(tmp_path)
    assert again.config == found.config
    for text in WORDS["texts"]:
        assert again.encode(text) == found.encode(text)
        # Llama 3's texts begin with a token even where the file does not say so.
        assert again.encode(text, add_special=True) == [262, *found.encode(text)]
    assert (again.bos_id, again.eos_id) == (found.bos_id, found.eos_id)


def test_the_forms_of_a_folder(tmp_path):
    tokenizer.from_gguf(metadata()).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"eos_token": {"content": "</s>"}, "chat_template": named}))
    found = tokenizer.from_folder(tmp_path)
    assert (found.bos_id, found.eos_id) == (None, 263)
    assert found.apply_chat([]) == "d"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert tokenizer.from_folder(tmp_path).apply_chat([]) == "own"
    config.unlink()
    assert tokenizer.from_folder(tmp_path).eos_id is None
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokeniser"):
        tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no such file"):
        tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "model: got 'llama', takes 'gpt2'"),
        ({"model": None}, "model: got None"),
        ({"pre": "default"}, "pre: got 'default', takes smollm"),
        ({"pre": None}, "pre: got None"),
        ({"tokens": None}, "tokens: missing"),
        ({"tokens": ["a", "a"]}, "given twice"),
        ({"merges": ["he"]}, "not two tokens"),
        ({"merges": ["h q z"]}, "not two tokens"),
        ({"merges": ["h zz"]}, "not a vocabulary and its merges"),
        ({"token_type": np.array([1])}, "not one number for each token"),
        ({"bos_token_id": 999}, "bos_token_id: got 999, takes 0 to 264"),
        ({"eos_token_id": "x"}, "eos_token_id: got 'x'"),
        ({"bos_token_id": None, "add_bos_token": True}, "a token that is not named"),
    ],
)
def test_malformed_metadata_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.from_gguf(metadata(**changes))


@pytest.mark.smollm2
def test_smollm2_ids_and_chats_are_those_of_transformers():
    path = Path(os.environ.get("KD_JAX_SMOLLM2") or smollm2_path())
    if not path.is_file():
        pytest.skip("missing data: run `python -m kd_jax.formats.fetch smollm2`")
    found = tokenizer.from_gguf(open_gguf(path).metadata)
    for string in SMOLLM2["strings"]:
        assert found.encode(string["text"]) == string["ids"], string["text"]
    for chat in SMOLLM2["chats"]:
        start = chat["add_generation_prompt"]
        assert found.apply_chat(chat["messages"], add_generation_prompt=start) == chat["text"]
    assert (found.bos_id, found.eos_id, found.pad_id, found.vocab_size) == (1, 2, 2, 49152)
