"""A stored teacher: the same rows on any mesh, refused for anything else, trained on alone."""

import dataclasses
import itertools
import json
import shutil
import sys
import types

import jax
import numpy as np
import optax
import pytest
from support import caching, generating
from support import toy_experiment as toy
from support.processes import TESTS, finish, start_joined

from kd_jax.data import sources
from kd_jax.data.top_k_records import Layout
from kd_jax.launch import precompute, run, top_k_cache
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise, shapes_on
from kd_jax.launch.weights import from_checkpoint, from_init
from kd_jax.losses.top_k import likeliest, top_k_kl_with_tail
from kd_jax.models.decoder import decoder, rules
from kd_jax.objectives.offline import stored_top_k
from kd_jax.objectives.supervise import supervise
from kd_jax.steps import make_train_step

CONFIG, LAYOUT, LENGTH = generating.CONFIG, caching.LAYOUT, caching.LENGTH
FILE = "top_k.array_record"
ROWS = caching.text()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "artefact" / "files"
    folder.mkdir(parents=True)
    (folder.parent / "artefact.json").touch()
    return folder, caching.store(folder, ROWS, make_mesh())


def by_hand():
    """Of the logits of all rows, written out."""
    weights = jax.device_get(generating.weights_on(make_mesh()))
    return likeliest(decoder(CONFIG).apply(weights, ROWS).head.logits(), k=LAYOUT.k)


@pytest.mark.slow
def test_the_rows_are_the_teachers_likeliest_tokens(stored):
    """Of 11 rows, which no batch of 8 divides; where a position is not weighed there are zeros."""
    cache = top_k_cache.opened(stored[0], caching.about(ROWS))
    found = cache.columns(np.arange(11))
    assert (cache.rows, cache.length, cache.layout) == (11, LENGTH, LAYOUT)
    kept, expected = ROWS["weights"] != 0, by_hand()
    order = np.argsort(expected.ids, -1)
    ids, log_p = (np.take_along_axis(np.asarray(x), order, -1) for x in expected[:2])
    np.testing.assert_array_equal(found["top_k_ids"][kept], ids[kept])
    np.testing.assert_allclose(found["top_k_log_probs"][kept], log_p[kept], atol=3e-3)
    np.testing.assert_allclose(
        found["top_k_log_tail"][kept], expected.log_tail[kept], rtol=1e-3, atol=1e-3
    )
    for x in found.values():
        assert (x[~kept] == 0).all()


def test_rows_are_read_by_number_and_padding_is_zeros(stored):
    cache = top_k_cache.opened(stored[0], caching.about(ROWS))
    every = cache.columns(np.arange(11))
    some = cache.columns(np.array([7, -1, 0, 7], np.int32))
    shapes = top_k_cache.batch_shapes(4, LENGTH, LAYOUT.k)
    for name, x in some.items():
        np.testing.assert_array_equal(x[[0, 2, 3]], every[name][[7, 0, 7]])
        assert (x[1] == 0).all()
        assert (x.shape, x.dtype) == (shapes[name].shape, shapes[name].dtype)
    assert all((x == 0).all() for x in cache.columns(np.array([-1])).values())


@pytest.mark.parametrize(
    ("mesh", "batch_size"),
    [(MeshConfig(data=2, fsdp=2, tensor=2), 4), (MeshConfig(data=8), 16)],
)
def test_the_mesh_and_the_batch_change_nothing(stored, tmp_path, mesh, batch_size):
    found = caching.store(tmp_path, ROWS, make_mesh(mesh), batch_size)
    assert found["tokens"] == stored[1]["tokens"] == (ROWS["weights"] != 0).sum()
    one, two = (
        top_k_cache.opened(x, caching.about(ROWS)).columns(np.arange(11))
        for x in (stored[0], tmp_path)
    )
    np.testing.assert_array_equal(one["top_k_ids"], two["top_k_ids"])
    for name in ("top_k_log_probs", "top_k_log_tail"):
        np.testing.assert_allclose(one[name], two[name], rtol=2e-3, atol=1e-3)


@pytest.mark.multiprocess
def test_two_processes_store_what_one_does(stored, tmp_path):
    cache = jax.config.jax_compilation_cache_dir or ""
    script = [sys.executable, str(TESTS / "support" / "caching.py"), str(tmp_path), cache]
    codes, said = finish(*start_joined(2, script))
    assert codes == [0, 0], said[-6000:]
    one, two = (
        top_k_cache.opened(x, caching.about(ROWS)).columns(np.arange(11))
        for x in (stored[0], tmp_path)
    )
    np.testing.assert_array_equal(one["top_k_ids"], two["top_k_ids"])
    np.testing.assert_allclose(one["top_k_log_probs"], two["top_k_log_probs"], atol=3e-3)


def test_bytes_are_those_of_the_file(stored):
    folder, values = stored
    assert values["bytes"] == (folder / FILE).stat().st_size
    assert values["bytes_per_token"] == values["bytes"] / values["tokens"]


# --- whose it is


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "another"}, "teacher: teacher there, another here"),
        ({"data": 64 * "0"}, f"data: {caching.about(ROWS).data[:12]} there, {12 * '0'} here"),
        ({"tokenizer": "other"}, "tokenizer: tokenizer there, other here"),
        ({"layout": LAYOUT._replace(vocabulary=33)}, "vocabulary: 32 there, 33 here"),
        ({"layout": LAYOUT._replace(k=5)}, "k: 4 there, 5 here"),
        ({"layout": LAYOUT._replace(bits=8)}, "bits: 16 there, 8 here"),
    ],
)
def test_what_is_of_something_else_is_refused(stored, changes, said):
    with pytest.raises(UserError) as caught:
        top_k_cache.opened(stored[0], caching.about(ROWS, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert f"remove {stored[0].parent} to compute it again" in str(caught.value)


def test_another_format_is_refused(stored, monkeypatch):
    monkeypatch.setattr(top_k_cache, "VERSION", 99)
    with pytest.raises(UserError, match="format: 1 there, 99 here"):
        top_k_cache.opened(stored[0], caching.about(ROWS))


def test_a_change_of_the_data_is_noticed(stored):
    other = {**ROWS, "weights": ROWS["weights"].copy()}
    other["weights"][3, 5] = 1
    with pytest.raises(UserError, match="data: "):
        top_k_cache.opened(stored[0], caching.about(other))


def test_a_broken_or_missing_file_is_refused(stored, tmp_path):
    with pytest.raises(UserError, match=f"there is no such file; remove {tmp_path} to"):
        top_k_cache.opened(tmp_path, caching.about(ROWS))
    whole = (stored[0] / FILE).read_bytes()
    for broken in (b"nonsense", whole[: len(whole) // 2], b""):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(UserError, match="not a file of stored log-probabilities; remove"):
            top_k_cache.opened(tmp_path, caching.about(ROWS))


def test_tokenisers_are_told_apart():
    found = {top_k_cache.tokenizer_hash(*x) for x in (("a", "b"), ("ab",), ("b", "a"), ("a",))}
    assert len(found) == 4 and all(len(x) == 64 for x in found)


# --- written in full or not at all


def test_a_pass_that_fails_leaves_no_file(tmp_path):
    def failing():
        yield from itertools.islice(caching.scored(ROWS, make_mesh()), 1)
        raise toy.Died

    with pytest.raises(toy.Died):
        top_k_cache.write(tmp_path, caching.about(ROWS), failing(), ROWS["weights"])
    assert list(tmp_path.iterdir()) == []
    short = itertools.islice(caching.scored(ROWS, make_mesh()), 1)
    with pytest.raises(ValueError, match="scored: got 8 rows, takes one for each of weights, 11"):
        top_k_cache.write(tmp_path, caching.about(ROWS), short, ROWS["weights"])
    assert list(tmp_path.iterdir()) == []


def cache_stage(**changes):
    settings = {
        "model": decoder(CONFIG),
        "weights": lambda found: found["teacher"].weights(),
        "rules": rules(CONFIG),
        "teacher": lambda found: precompute.model_hash(found["teacher"]),
        "data": lambda: ROWS,
        "length": LENGTH,
        "tokenizer": "tokenizer",
        "layout": LAYOUT,
        "batch_size": 8,
        "mesh": MeshConfig(),
        "needs": ("teacher",),
        "depends": {},
    }
    return top_k_cache.stage("cache", **(settings | changes))


def module_of(**changes):
    """A teacher, what is stored of it, and a student of that; the toy's way to be run."""

    def teacher(_):
        weights = generating.weights_on(make_mesh())
        return Compute(lambda: (weights, {}), jax.eval_shape(lambda x: x, weights))

    def student(found):
        about = caching.about(ROWS, teacher=precompute.model_hash(found["teacher"]))
        cache = top_k_cache.opened(found["cache"].files, about)
        source = sources.array_batches(ROWS, seed=0, name="text", batch_size=8)
        objective = supervise(decoder(CONFIG), {"kd": stored_top_k(top_k_kl_with_tail)})
        return Training(
            step=make_train_step(objective, optax.adam(1e-2)),
            weights=from_init(generating.init, 2.0),
            batches=top_k_cache.joined(source, cache),
            batch=top_k_cache.batch_shapes(8, LENGTH, LAYOUT.k),
            batch_size=8,
            steps=30,
            rules=rules(CONFIG),
        )

    def stages(config):
        return (
            Stage("teacher", teacher, (), {}),
            cache_stage(**changes),
            Stage("student", student, ("teacher", "cache"), {}),
        )

    module = types.ModuleType(toy.__name__)
    vars(module).update({**vars(toy), "stages": stages, "report": report, "CLAIMS": ()})
    return module


def report(config, artefacts, folder):
    return Results()


def execute(folder, **changes):
    config = dataclasses.replace(toy.PRESETS["laptop"], log_every=1)
    return run.execute(module_of(**changes), "support.toy_experiment", "laptop", config, folder)


def folder_of(folder, name):
    (found,) = (folder / "stages").glob(f"{name}-*[!l]")  # not one that is ".partial"
    return found


@pytest.mark.slow
def test_a_student_learns_with_no_teacher_there(tmp_path):
    """Ended when it was stored, with the teacher's weights gone; a stage that was ended before
    that leaves nothing that could be taken for it."""

    def die():
        raise toy.Died

    with pytest.raises(toy.Died):
        execute(tmp_path, data=die)
    (left,) = (tmp_path / "stages").glob("cache-*")
    assert left.name.endswith(".partial")
    (left / "files" / "stale").touch()
    first = execute_until_stored(tmp_path)
    shutil.rmtree(folder_of(tmp_path, "teacher") / "tree")
    execute(tmp_path, data=die)  # read, not made again
    cache = folder_of(tmp_path, "cache")
    assert [x.name for x in (cache / "files").iterdir()] == [FILE]
    values = json.loads((cache / "artefact.json").read_text())["values"]
    assert values.keys() == {"tokens", "bytes", "bytes_per_token"} and first == values
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["stage"] == "student" and "loss" in json.loads(line)
    ]
    assert losses[-1] < 0.5 * losses[0]
    tree = from_checkpoint(folder_of(tmp_path, "student") / "tree")
    assert materialise(tree, make_mesh(), rules(CONFIG)).keys() == generating.init(0.0).keys()


def execute_until_stored(folder):
    """With a student that dies as it starts."""
    module = module_of()
    whole = module.stages

    def stages(config):
        *before, student = whole(config)

        def build(found):
            raise toy.Died

        return (*before, student._replace(build=build))

    vars(module)["stages"] = stages
    config = dataclasses.replace(toy.PRESETS["laptop"], log_every=1)
    with pytest.raises(toy.Died):
        run.execute(module, "support.toy_experiment", "laptop", config, folder)
    return json.loads((folder_of(folder, "cache") / "artefact.json").read_text())["values"]


def test_a_plan_names_what_is_run():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    weights = from_init(generating.init, 1.0)
    found = {"teacher": Artefact("teacher", "0123", None, weights.abstract)}
    work = cache_stage().build(found)
    (program,) = work.plan(mesh).values()
    rows = program.jitted.lower(*program.arguments).out_info.rows
    assert rows["ids"].shape == rows["log_probs"].shape == (8, LENGTH, LAYOUT.k)
    assert shapes_on(weights, mesh, rules(CONFIG)).keys() == program.arguments[0]["model"].keys()


def test_what_cannot_be_stored_is_said(tmp_path):
    with pytest.raises(ValueError, match="k: got 33, takes 1 to the vocabulary's 32"):
        cache_stage(layout=Layout(33, 32))
    found = {"teacher": Artefact("teacher", "0123", None)}
    turned = {**ROWS, "index": ROWS["index"][::-1]}
    for changes, said in (
        ({"data": lambda: turned}, "index that is not 0, 1, 2"),
        ({"length": 7}, r"data has rows of \(6,\), length is 7"),
    ):
        with pytest.raises(ValueError, match=said):
            cache_stage(**changes).build(found).files(tmp_path)


def test_rows_of_another_length_are_refused(stored):
    cache = top_k_cache.opened(stored[0], caching.about(ROWS))
    short = {k: x[:, :4] if x.ndim == 2 else x for k, x in ROWS.items()}
    source = sources.array_batches(short, seed=0, name="text", batch_size=4)
    with pytest.raises(ValueError, match="source: got rows of 4, takes those of the cache, 6"):
        top_k_cache.joined(source, cache)(0, slice(0, 4))


def test_batches_are_of_the_step_alone(stored):
    """Whichever rows of it a process makes."""
    cache = top_k_cache.opened(stored[0], caching.about(ROWS))
    source = sources.array_batches(ROWS, seed=3, name="text", batch_size=8)
    batches = top_k_cache.joined(source, cache)
    whole, part = batches(5, slice(0, 8)), batches(5, slice(2, 5))
    assert whole.keys() == top_k_cache.batch_shapes(8, LENGTH, LAYOUT.k).keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[2:5])
    every = cache.columns(np.arange(11))
    for name in every:
        np.testing.assert_array_equal(whole[name], every[name][whole["index"]])
