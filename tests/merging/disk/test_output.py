"""What stands in the output, and when it does not appear."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest
from support.checkpoints import merged, of_models, read_model, write_model, write_recipe

from kd_jax.formats.huggingface import INDEX
from kd_jax.merging.disk import blocks, folder
from kd_jax.merging.disk.blocks import Files, read_at
from kd_jax.merging.disk.errors import MergeError, WriteFailed
from kd_jax.merging.disk.run import merge

CONFIG = {"num_hidden_layers": 4, "model_type": "toy"}
LINEAR = of_models("linear", {"a": {"weight": 1}, "b": {"weight": 3}})


@pytest.fixture
def two(tmp_path):
    for i, name in enumerate(("a", "b")):
        random = np.random.default_rng(i)
        arrays = {f"t{k}": random.standard_normal((8, 4), np.float32) for k in range(6)}
        write_model(tmp_path / name, arrays, {**CONFIG, "name": name}, max_shard_bytes=300)
        (tmp_path / name / "tokenizer.json").write_text(
            f'{{"model": {{"vocab": {{"{name}": 0}}}}}}'
        )
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
        (tmp_path / name / "notes.txt").write_text("stays")
    return tmp_path


def expected(folder_):
    a, b = read_model(folder_ / "a"), read_model(folder_ / "b")
    return {name: 0.25 * a[name] + 0.75 * b[name] for name in a}


def check(found, wanted):
    assert set(found) == set(wanted)
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6)


def test_shards_have_an_index_and_a_limit(two):
    found = merged(two, {**LINEAR, "max_shard_size": "300B".replace("B", "")})
    check(found, expected(two))
    index = json.loads((two / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 6 * 128
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert not list((two / "out").glob(".*"))


def test_config_and_tokeniser_come_along_and_the_card_tells_all(two):
    text = "# mine\nmerge_method: task_arithmetic\nbase_model: b\nmodels:\n- model: a\n"
    text += "  parameters: {weight: 1}\n# ```\n"
    result = merge(write_recipe(two / "recipe.yaml", text), two / "out")
    out = two / "out"
    assert json.loads((out / "config.json").read_text()) == {**CONFIG, "name": "b"}
    assert "b" in json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    assert not (out / "notes.txt").exists()
    assert (out / "merge_recipe.yaml").read_text() == text
    card = (out / "README.md").read_text()
    assert text in card
    assert "````yaml" in card  # the recipe's own fence does not end it
    for name in ("a", "b"):
        for file in (two / name).glob("*.safetensors"):
            assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert result.waiting == 0
    assert result.nbytes == 3 * 6 * 128
    merge(two / "recipe.yaml", two / "again", hashes=False)
    assert "not taken" in (two / "again/README.md").read_text()


def test_a_folder_that_is_not_empty_is_refused(two):
    (two / "out").mkdir()
    check(merged(two, LINEAR), expected(two))  # an empty one is taken
    with pytest.raises(MergeError, match="out: exists and is not empty"):
        merged(two, LINEAR)


def test_other_tokens_are_refused_where_the_recipe_asks(two):
    recipe = {**LINEAR, "base_model": "a", "tokenizer_source": "base"}
    recipe["models"] = [{**x, "parameters": {"weight": 1}} for x in recipe["models"]]
    with pytest.raises(MergeError, match="tokenizer_source: b has other tokens than a"):
        merged(two, recipe)
    text = (two / "a/tokenizer.json").read_text().replace(" ", "  ")
    (two / "b/tokenizer.json").write_text(text)
    merged(two, recipe)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_nan_is_named_unless_it_is_allowed(two, bad):
    arrays = {name: x.astype(np.float64) for name, x in read_model(two / "b").items()}
    arrays["t3"][5, 2] = bad
    write_model(two / "c", arrays)
    recipe = of_models("ties", {"a": {"weight": 1}, "c": {"weight": 1}}, "b", dtype="float32")
    with pytest.raises(MergeError, match=r"c/model.safetensors: t3 has NaN or infinite.*allow_nan"):
        merged(two, recipe)
    assert not (two / "out").exists()
    assert not (two / ".out.merging").exists()
    found = merged(two, {**recipe, "allow_nan": True})
    assert np.isfinite(found["t2"]).all()
    assert not np.isfinite(found["t3"][5, 2])


def test_a_nan_is_not_passed_through_either(two):
    write_model(two / "c", {"w": np.float32([1, np.nan])})
    with pytest.raises(MergeError, match="w has NaN"):
        merged(two, of_models("passthrough", {"c": {}}))
    found = merged(two, of_models("passthrough", {"c": {}}, allow_nan=True))
    np.testing.assert_array_equal(found["w"], np.float32([1, np.nan]))


def test_what_float16_cannot_hold_is_named(two):
    write_model(two / "c", {"w": np.float32([1, 1e5])})
    with pytest.raises(MergeError, match="w: is too large for float16; say dtype: bfloat16"):
        merged(two, of_models("linear", {"c": {"weight": 1}}, dtype="float16"))


def test_malformed_inputs_are_named(two):
    shard = next((two / "a").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(MergeError, match="not a sound safetensors file"):
        merged(two, LINEAR)
    shard.unlink()
    with pytest.raises(MergeError, match="is missing"):
        merged(two, LINEAR)
    shard.write_bytes(whole)
    with Files() as files, pytest.raises(MergeError, match="became shorter"):
        read_at(files.descriptor(shard), shard, len(whole) - 4, np.empty(8, np.uint8))


def full_after(monkeypatch, count):
    """A disk on which so many writes succeed."""
    done = []

    def pwrite(*arguments):
        if len(done) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(None)
        return os.pwrite(*arguments)

    class Full:
        def __getattr__(self, name):
            return pwrite if name == "pwrite" else getattr(os, name)

    monkeypatch.setattr(blocks, "os", Full())
    return done


def test_a_full_disk_is_a_clear_error_and_the_merge_goes_on_later(two, monkeypatch):
    recipe = {**LINEAR, "max_shard_size": 300}
    with monkeypatch.context() as patch:
        full_after(patch, 5)  # a header and two tensors make a shard
        with pytest.raises(WriteFailed, match="No space left"):
            merged(two, recipe, threads=1)
    assert not (two / "out").exists()
    kept = sorted(p.name for p in (two / ".out.merging").glob("*.safetensors"))
    assert kept == ["model-00001-of-00003.safetensors"]
    inode = (two / ".out.merging" / kept[0]).stat().st_ino
    with monkeypatch.context() as patch:
        done = full_after(patch, 10**9)
        check(merged(two, recipe), expected(two))
        assert len(done) == 6  # two shards
    assert (two / "out" / kept[0]).stat().st_ino == inode
    assert not (two / ".out.merging").exists()


def test_space_is_asked_for_first(two, monkeypatch):
    class Small:
        f_bavail, f_frsize = 1, 100

    monkeypatch.setattr(folder.os, "statvfs", lambda path: Small)
    with pytest.raises(MergeError, match="out: needs 0.00 GB, its disk has 0.00 GB free"):
        merged(two, LINEAR)
    assert not (two / ".out.merging").exists()


def test_leftovers_of_another_merge_are_not_taken_up(two, monkeypatch):
    recipe = {**LINEAR, "max_shard_size": 300}
    with monkeypatch.context() as patch:
        full_after(patch, 5)
        with pytest.raises(WriteFailed):
            merged(two, recipe, threads=1)
    other = of_models("linear", {"a": {"weight": 1}, "b": {"weight": 1}}, max_shard_size=300)
    a, b = read_model(two / "a"), read_model(two / "b")
    check(merged(two, other), {name: (a[name] + b[name]) / 2 for name in a})


def test_changed_inputs_are_another_merge(two, monkeypatch):
    recipe = {**LINEAR, "max_shard_size": 300}
    with monkeypatch.context() as patch:
        full_after(patch, 5)
        with pytest.raises(WriteFailed):
            merged(two, recipe, threads=1)
    arrays = {name: x + 1 for name, x in read_model(two / "a").items()}
    for path in (two / "a").iterdir():
        path.unlink()
    write_model(two / "a", arrays, {**CONFIG, "name": "a"}, max_shard_bytes=300)
    check(merged(two, recipe), expected(two))


def test_one_output_is_written_by_one_merge_at_a_time(two):
    held = folder.Folder(two / "out", "key")
    held.enter(0)
    with pytest.raises(MergeError, match="another merge is being written"):
        merged(two, LINEAR)
    with pytest.raises(MergeError, match="is being written by another process"):
        folder.Folder(two / "out", "key").enter(0)
    held.leave([])
    merged(two, LINEAR)


def test_a_process_that_fails_leaves_the_others_work(two):
    other = folder.Folder(two / "out", "key")
    first = folder.Folder(two / "out", "key")
    other.enter(1)
    first.enter(0)
    first.leave([])
    assert other.path.is_dir()
    other.leave([])
    assert not other.path.exists()


def test_relative_names_are_looked_up_beside_the_recipe_and_then_here(two, monkeypatch):
    (two / "recipes").mkdir()
    recipe = write_recipe(two / "recipes/r.yaml", LINEAR)
    with pytest.raises(MergeError, match="a: no such folder"):
        merge(recipe, two / "out")
    monkeypatch.chdir(two)
    merge(recipe, "out")
    check(read_model(two / "out"), expected(two))
