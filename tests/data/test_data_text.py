"""Templates, the word tokeniser and JSON lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.data import jsonl, pairs, templates
from kd_jax.data.vocabulary import SPECIAL, WordTokenizer


def test_question_answer_joins_to_tofus_text():
    prompt, answer = templates.question_answer("Who?", "Me.")
    assert prompt + answer == "Question: Who?\nAnswer: Me."
    assert not prompt.endswith(" ")


class Characters:
    """A tokeniser whose ids are code points, and whose chat is easy to read."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def apply_chat(self, messages, *, add_generation_prompt):
        said = "".join(f"[{m['role']}]{m['content']}" for m in messages)
        return said + "[assistant]" * add_generation_prompt


def test_chat_ends_where_the_assistant_speaks():
    tokenizer = Characters()
    assert templates.chat(tokenizer, "q", "a") == ("[user]q[assistant]", "a")
    prompt, _ = templates.chat(tokenizer, "q", "a", system="s")
    assert prompt == "[system]s[user]q[assistant]"


def test_examples_and_pairs_are_tokenised_apart():
    tokenizer = Characters()
    example = templates.example(tokenizer, "ab", "c", bos_id=1)
    assert (list(example.prompt), list(example.answer)) == ([1, 97, 98], [99])
    assert templates.pair(tokenizer, "a", "b", "c") == pairs.Pair([97], [98], [99])


def test_word_tokenizer_by_hand():
    tokenizer = WordTokenizer.from_texts(["b a b.", "a b, c"])
    assert tokenizer.tokens == (*SPECIAL, "b", "a", ", ", ".", "c")
    assert tokenizer.vocab_size == 9
    assert tokenizer.encode("a b.") == [5, 4, 7]
    assert tokenizer.encode("a new b") == [5, tokenizer.unk_id, 4]
    assert tokenizer.decode([1, 5, 3, 4, 7, 2, 0], skip_special=True) == "a <unk> b."
    assert tokenizer.decode([5, 2]) == "a<eos>"
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    with pytest.raises(ValueError, match="takes 0 to 8"):
        tokenizer.decode([9])


def test_word_tokenizer_does_not_depend_on_the_order_of_texts_and_can_be_cut():
    texts = ["one two two", "three three three"]
    assert WordTokenizer.from_texts(texts) == WordTokenizer.from_texts(texts[::-1])
    assert WordTokenizer.from_texts(texts, max_size=5).tokens == (*SPECIAL, "three")
    with pytest.raises(ValueError, match="max_size"):
        WordTokenizer.from_texts(texts, max_size=4)
    with pytest.raises(ValueError, match="tokens"):
        WordTokenizer((*SPECIAL, "a", "a"))


@given(st.lists(st.text(max_size=40) | st.text("ab ,\n", max_size=9), max_size=5))
def test_word_tokenizer_loses_nothing(texts):
    tokenizer = WordTokenizer.from_texts(texts)
    for text in texts:
        if not any(special in text for special in SPECIAL):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def write(tmp_path, data):
    path = tmp_path / "my.jsonl"
    path.write_bytes(data)
    return path


def test_jsonl_reads_marks_returns_blanks_and_separators(tmp_path):
    path = write(
        tmp_path,
        b'\xef\xbb\xbf{"prompt": "a", "answer": "b", "more": 1}\r\n\r\n'
        + '{"prompt": "c\u2028d", "answer": ""}'.encode(),
    )
    rows = jsonl.read_prompt_answers(path)
    assert rows == [("a", "b"), ("c\u2028d", "")]
    assert rows[0].prompt == "a"


def test_jsonl_reads_texts_preferences_and_other_names(tmp_path):
    path = write(tmp_path, b'{"text": "t", "prompt": "p", "chosen": "c", "rejected": "r"}\n')
    assert jsonl.read_texts(path) == ["t"]
    assert jsonl.read_preferences(path) == [jsonl.Preference("p", "c", "r")]
    assert jsonl.read_prompt_answers(path, prompt="text", answer="chosen") == [("t", "c")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "my.jsonl holds no records"),
        (b"\n \n", "holds no records"),
        (b'{"prompt": "a", "answer": "b"}\n{"prompt": "a"}', "line 2: no field 'answer'"),
        (b'{"prompt": 1, "answer": "b"}', "line 1: field 'prompt' is of type int"),
        (b'{"prompt": null, "answer": "b"}', "field 'prompt' is of type NoneType"),
        (b'\n{"prompt": "a", "ans', "line 2: not JSON"),
        (b'["a", "b"]', "line 1: of type list, takes an object"),
        (b'{"prompt": "\xff"}', "line 1: not UTF-8"),
        (b'{"prompt": "\\ud800", "answer": "b"}', "half of a surrogate"),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b"1" * 5000, "line 1: not JSON"),
    ],
)
def test_jsonl_faults_name_file_line_and_field(tmp_path, data, said):
    with pytest.raises(ValueError, match=said) as caught:
        jsonl.read_prompt_answers(write(tmp_path, data))
    assert "my.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_jsonl_needs_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        jsonl.read_texts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a folder"):
        jsonl.read_texts(tmp_path)
