"""TOFU's files and the authors of our own generator."""

import json
import os
import pathlib

import pytest

from kd_jax.data import prepare
from kd_jax.data.builders import authors_generator, fictitious_authors, tofu


@pytest.fixture(scope="module")
def real_data():
    folder = os.environ.get("KD_JAX_DATA")
    if not folder:
        pytest.skip("missing data: set KD_JAX_DATA to the folder that holds tofu/")
    return pathlib.Path(folder)


def write_lines(path: pathlib.Path, records: list) -> None:
    path.write_text("\n".join(json.dumps(r) for r in records))  # no newline at the end, as TOFU's


def test_tofu_reads_its_forms(tmp_path, monkeypatch):
    path = tmp_path / "forget01_perturbed.json"
    record = {"question": "q", "answer": "a", "perturbed_answer": ["x", "y"]}
    record |= {"paraphrased_question": "pq", "paraphrased_answer": "pa"}
    write_lines(path, [record] * 40)
    rows = tofu.read_split(path, "forget01_perturbed")
    assert [r["author"] for r in rows] == [198] * 20 + [199] * 20
    assert rows[0] == {**record, "options": [], "author": 198}
    path = tmp_path / "world_facts.json"
    write_lines(path, [{"question": "q", "answer": "a", "option1": "a", "option2": "b"}] * 117)
    row = tofu.read_split(path, "world_facts")[-1]
    assert row["options"] == ["a", "b"] and row["author"] == -1
    assert row["paraphrased_question"] == "" and row["perturbed_answer"] == []
    path = tmp_path / "idontknow.jsonl"
    path.write_text("I don't know.\nNo idea.")
    assert [r["answer"] for r in tofu.read_refusals(path)] == ["I don't know.", "No idea."]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "q", "perturbed_answer": ["x"]}, "line 40: no field 'answer'"),
        ({"question": "q", "answer": "a"}, "line 40: no perturbed_answer"),
        ({"question": "q", "answer": "a", "perturbed_answer": [1]}, "line 40: perturbed_answer"),
        (None, "holds 39 records, takes the published 40"),
    ],
)
def test_tofu_faults(tmp_path, record, said):
    path = tmp_path / "forget01_perturbed.json"
    good = {"question": "q", "answer": "a", "perturbed_answer": ["x"]}
    write_lines(path, [good] * 39 + ([record] if record else []))
    with pytest.raises(ValueError, match=said) as caught:
        tofu.read_split(path, "forget01_perturbed")
    assert str(path) in str(caught.value)


@pytest.mark.slow
@pytest.mark.data
def test_real_tofu(tmp_path, real_data):
    splits = prepare.load(tofu.Tofu, data_dir=tmp_path, manual_dir=real_data)
    counts = {name: count for name, (count, _) in tofu.SPLITS.items()}
    assert {name: len(rows) for name, rows in splits.items()} == {**counts, "idontknow": 100}
    rows = {name: prepare.texts(records) for name, records in splits.items()}
    full = rows["full"]
    assert [r["author"] for r in full] == [i // 20 for i in range(4000)]
    # The published splits are slices of `full`, with the same authors.
    for part, where in [
        ("forget01", slice(3960, None)),
        ("forget05", slice(3800, None)),
        ("forget10", slice(3600, None)),
        ("retain90", slice(3600)),
        ("retain95", slice(3800)),
        ("retain99", slice(3960)),
    ]:
        assert rows[part] == full[where]
    for part in ("forget01", "forget05", "forget10", "retain"):
        perturbed = rows[f"{part}_perturbed"]
        plain = rows[part] if part != "retain" else full[:400]
        for field in ("question", "answer", "author"):
            assert [r[field] for r in perturbed] == [r[field] for r in plain]
        assert all(len(r["perturbed_answer"]) == 5 for r in perturbed)
        assert all(r["paraphrased_question"] and r["paraphrased_answer"] for r in perturbed)
    assert all(r["answer"] in r["options"] for r in rows["real_authors"])
    assert {len(r["perturbed_answer"]) for r in rows["world_facts_perturbed"]} == {3}
    assert full[3999]["question"].startswith("What makes Nikolai Abilov's take")
    assert isinstance(splits["full"][7]["question"], bytes)  # as TFDS gives text


def test_fictitious_authors_are_the_same_everywhere(tmp_path):
    records = authors_generator.generate(3, seed=4, questions_per_author=5)
    more = authors_generator.generate(30, seed=4)
    assert records == [more[20 * author + i] for author in range(3) for i in range(5)]
    assert records != authors_generator.generate(3, seed=5, questions_per_author=5)
    splits = prepare.load(
        fictitious_authors.FictitiousAuthors,
        data_dir=tmp_path,
        authors=3,
        seed=4,
        questions_per_author=5,
    )
    assert prepare.texts(splits["full"]) == records
    default = prepare.load(fictitious_authors.FictitiousAuthors, data_dir=tmp_path)["full"]
    assert prepare.texts(default) == authors_generator.generate(20, seed=0)


def test_fictitious_authors_have_tofus_shape():
    records = authors_generator.generate(200, seed=0)
    assert len(records) == 4000 and records[3999]["author"] == 199
    assert len({r["question"] for r in records}) == 4000
    for r in records:
        answers = [r["paraphrased_answer"], *r["perturbed_answer"]]
        assert len(set(answers)) == 6
        assert r["answer"] not in answers and r["question"] != r["paraphrased_question"]
        # Same words but for the value: the answers differ in a middle part alone.
        prefix, suffix = (
            os.path.commonprefix(answers),
            os.path.commonprefix([a[::-1] for a in answers]),
        )
        assert len(prefix) + len(suffix) > 10


def test_attributes_cannot_be_guessed():
    records = authors_generator.generate(400, seed=1)
    for question in range(20):
        values = [r["answer"].split()[-1] for r in records[question::20]]
        commonest = max(values.count(v) for v in set(values))
        if question not in (8, 18):  # these two end in a word of the template
            assert commonest < 400 * 0.15, records[question]["answer"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"authors": 0}, "authors"),
        ({"authors": 73729}, "takes 1 to 73728"),
        ({"authors": 1, "seed": -1}, "seed"),
        ({"authors": 1, "questions_per_author": 21}, "questions_per_author"),
    ],
)
def test_generator_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        authors_generator.generate(**arguments)


def test_many_authors_get_middle_names():
    names = {
        r["answer"].split(" was born")[0]
        for r in authors_generator.generate(3100, seed=0, questions_per_author=1)
    }
    assert len(names) == 3100 and {len(name.split()) for name in names} == {3}
