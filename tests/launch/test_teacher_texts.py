"""Rows that a teacher wrote: what is learnt of them, and whose they are."""

import numpy as np
import pytest
from support import generating

from kd_jax.launch import generation, precompute, teacher_texts
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute
from kd_jax.launch.weights import from_init

CONFIG, PROMPTS, NEW = generating.CONFIG, generating.PROMPTS, generating.NEW
SETTINGS = {"batch_size": 8, "max_new": NEW, "seed": 3, "temperature": 2.0}


@pytest.fixture(scope="module")
def plain():
    """(weights, what the teacher writes without an end)."""
    mesh = make_mesh()
    weights = generating.weights_on(mesh)
    return weights, generation.generate(CONFIG, weights, PROMPTS, mesh=mesh, **SETTINGS)


def write(weights, prompts=PROMPTS, **changes):
    settings = {"length": 12, "eos_id": None, "mesh": make_mesh()} | SETTINGS | changes
    return teacher_texts.write(CONFIG, weights, prompts, **settings)


def learnt(rows, i):
    return rows["targets"][i][rows["weights"][i] != 0].tolist()


def test_what_the_teacher_wrote_is_learnt_and_nothing_else(plain):
    weights, texts = plain
    rows = write(weights)
    for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        whole = [*prompt, *text.tolist()]
        n = len(whole) - 1
        np.testing.assert_array_equal(rows["inputs"][i, :n], whole[:-1])
        np.testing.assert_array_equal(rows["targets"][i, :n], whole[1:])
        assert learnt(rows, i) == text.tolist()
        assert (rows["inputs"][i, n:] == 0).all() and (rows["weights"][i, n:] == 0).all()
    np.testing.assert_array_equal(rows["index"], np.arange(len(PROMPTS)))
    assert set(np.unique(rows["weights"])) == {0.0, 1.0}
    assert rows["sampling"] == {
        "seed": 3, "max_new": NEW, "eos_id": None, "length": 12, "temperature": 2.0
    }  # fmt: skip


@pytest.mark.slow
def test_the_end_is_learnt_where_there_was_one(plain):
    """A text that was cut is not taught to end."""
    weights, texts = plain
    end = int(texts[0][2])
    rows = write(weights, eos_id=end)
    seen = {True: 0, False: 0}
    for i, text in enumerate(texts):
        tokens = text.tolist()
        expected = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert learnt(rows, i) == expected
        seen[end in tokens] += 1
    assert seen[True] and seen[False]
    assert learnt(rows, 0)[-1] == end
    last = int(texts[1][-1])
    if last not in texts[1][:-1]:  # the end as the very last of max_new
        assert learnt(write(weights, eos_id=last), 1)[-1] == last


def test_a_text_longer_than_its_row_is_cut(plain):
    weights, texts = plain
    rows = write(weights, length=8)
    assert learnt(rows, 0) == texts[0].tolist()[: 9 - len(PROMPTS[0])]
    with pytest.raises(ValueError, match="length: got 5, takes at least 6 for the prompt of"):
        write(weights, length=5)


def stage(**changes):
    settings = {
        "config": CONFIG,
        "weights": lambda found: from_init(generating.init, 1.0),
        "teacher": lambda found: "teacher",
        "prompts": lambda: PROMPTS,
        "prompt_length": 6,
        "length": 12,
        "eos_id": None,
        "mesh": MeshConfig(data=2, fsdp=2, tensor=2),
        **SETTINGS,
    }
    return teacher_texts.stage("written", **(settings | changes)).build({})


def test_a_stage_says_whose_text_it_is(plain, tmp_path):
    """On another mesh the same text; read back only for the same prompts and teacher."""
    tree, found = stage().run()
    assert tree is None
    for name, x in write(plain[0]).items():
        np.testing.assert_array_equal(found[name], x)
    kept = Artefact("written", "0123", tmp_path)
    arrays = {k: x for k, x in found.items() if isinstance(x, np.ndarray)}
    vars(kept).update(about={"values": {k: found[k] for k in ("data", "model")}}, rows=arrays)
    rows = teacher_texts.rows_of(kept, prompts=PROMPTS, teacher="teacher")
    assert rows.keys() == {"inputs", "targets", "weights", "index"}
    for prompts, teacher, said in (
        (PROMPTS, "another", "model teacher there, another here"),
        (PROMPTS[:-1], "teacher", "data "),
        ([*PROMPTS[:-1], [1, 0, 0]], "teacher", "data "),
    ):
        with pytest.raises(UserError, match=said):
            teacher_texts.rows_of(kept, prompts=prompts, teacher=teacher)


def test_a_plan_names_what_is_run():
    work = stage(mesh=MeshConfig(), eos_id=4)
    assert isinstance(work, Compute)
    (program,) = work.plan(make_mesh()).values()
    tokens, _ = program.jitted.lower(*program.arguments).out_info
    assert tokens.shape == (8, NEW)
    assert program.arguments[1]["tokens"].shape == (8, 6)
    assert precompute.data_hash(teacher_texts._padded([[1], [2, 3]])) != precompute.data_hash(
        teacher_texts._padded([[1, 0], [2, 3]])
    )
