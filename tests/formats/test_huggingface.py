import json

import numpy as np
import pytest

from kd_jax.formats.huggingface import INDEX, open_folder, read_json, write_folder
from kd_jax.formats.safetensors import write_tensors
from kd_jax.formats.tensors import LazyTensor, from_array

ARRAYS = {f"t{i}": np.full((4, 3), i, np.float32) for i in range(5)}
TENSORS = [from_array(name, array) for name, array in ARRAYS.items()]


@pytest.fixture
def sharded(tmp_path):
    write_folder(tmp_path / "model", TENSORS, {"a": 1}, max_shard_bytes=100)
    return tmp_path / "model"


def index_of(folder):
    return json.loads((folder / INDEX).read_text())


def test_a_sharded_folder_holds_what_was_written(sharded):
    found = open_folder(sharded)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].read(...), array)
    assert read_json(sharded / "config.json") == {"a": 1}
    assert index_of(sharded)["metadata"]["total_size"] == 5 * 48
    assert len(set(index_of(sharded)["weight_map"].values())) == 3  # two tensors fit into 100 bytes


def test_one_shard_needs_no_index(tmp_path):
    write_folder(tmp_path / "model", TENSORS, {}, write_rest=lambda f: (f / "more").touch())
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["config.json", "model.safetensors", "more"]
    assert set(open_folder(tmp_path / "model")) == set(ARRAYS)


def test_tensors_are_read_one_at_a_time_and_in_order(tmp_path):
    seen = []

    def watched(tensor):
        def read(index):
            seen.append(tensor.name)
            return tensor.read(index)

        return LazyTensor(tensor.name, tensor.shape, tensor.dtype, read)

    write_folder(tmp_path / "m", [watched(t) for t in TENSORS], {}, max_shard_bytes=100)
    assert seen == list(ARRAYS)


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail(index):
        raise OSError("disk full")

    broken = LazyTensor("z", (1,), np.dtype(np.float32), fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "m", [*TENSORS, broken], {}, max_shard_bytes=100)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(sharded):
    with pytest.raises(ValueError, match="exists and is not empty"):
        write_folder(sharded, TENSORS, {})
    with pytest.raises(ValueError, match="max_shard_bytes: got 0"):
        write_folder(sharded.with_name("other"), TENSORS, {}, max_shard_bytes=0)
    with pytest.raises(ValueError, match="'t0' is given twice"):
        write_folder(sharded.with_name("other"), [*TENSORS, TENSORS[0]], {}, max_shard_bytes=60)


@pytest.mark.parametrize(
    "place",
    ["../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors",
     "..\\outside.safetensors", "C:x.safetensors", "x\0.safetensors", "", "..", 3, None,
     "weights.bin"],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_refused(sharded, place):
    # The file is there and sound: only its place is at fault.
    write_tensors(sharded.parent / "outside.safetensors", TENSORS[:1])
    index = index_of(sharded)
    index["weight_map"]["t0"] = place
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="puts 't0' into .*, takes a safetensors file in its"):
        open_folder(sharded)


def test_an_index_and_its_shards_must_agree(sharded):
    index = index_of(sharded)
    places = index["weight_map"]

    def write(changed):
        (sharded / INDEX).write_text(json.dumps({"weight_map": changed}))

    write(places | {"ghost": places["t0"]})
    with pytest.raises(ValueError, match="lacks 'ghost'"):
        open_folder(sharded)
    write({name: place for name, place in places.items() if name != "t1"})
    with pytest.raises(ValueError, match="'t1' is not there by the index"):
        open_folder(sharded)
    write(places | {"t0": places["t4"]})
    with pytest.raises(ValueError, match="'t0' is not there by the index"):
        open_folder(sharded)
    write({})
    with pytest.raises(ValueError, match="has no weight_map"):
        open_folder(sharded)
    write(places)
    (sharded / places["t4"]).unlink()
    with pytest.raises(ValueError, match=f"shard {places['t4']} is missing"):
        open_folder(sharded)


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="has neither"):
        open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="only pickled weights"):
        open_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, "\udcff"], ids=len)
def test_malformed_json_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="not (a )?JSON") as caught:
        read_json(path)
    assert str(path) in str(caught.value)
