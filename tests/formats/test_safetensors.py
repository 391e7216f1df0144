import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.formats.safetensors import open_tensors, write_tensors
from kd_jax.formats.tensors import LazyTensor, from_array

ARRAYS = {
    "wide": np.arange(6, dtype=np.float64).reshape(2, 3) / 7,
    "matrix": np.random.RandomState(0).standard_normal((4, 6)).astype(np.float32),
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(8, dtype=np.float32).reshape(2, 4).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(3, np.int32),
    "flags": np.array([True, False]),
}


def lazy(arrays):
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    return [from_array(name, array) for name, array in ordered]


def encode(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.safetensors"
    write_tensors(path, lazy(ARRAYS))
    return path


def test_a_written_file_is_read_by_the_safetensors_package(file):
    found = safetensors.numpy.load_file(file)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_the_safetensors_package_is_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "np"})
    found = open_tensors(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = found[name]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensor.read(...), array)


def test_a_part_is_read(file):
    part = (slice(1, 3), slice(2, 5))
    found = open_tensors(file)["matrix"].read(part)
    np.testing.assert_array_equal(found, ARRAYS["matrix"][part])


def test_a_file_without_tensors(tmp_path):
    write_tensors(tmp_path / "none.safetensors", [])
    assert open_tensors(tmp_path / "none.safetensors") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "its header is said to have"),
        ((99).to_bytes(8, "little") + b"{}", "its header is said to have"),
        (encode(b"{"), "not JSON"),
        (encode(b"\xff\xfe{}"), "not JSON"),
        (encode(b"[" * 100_000), "not JSON"),
        (encode([]), "not a JSON object"),
        (encode({"__metadata__": {"a": 1}}), "__metadata__"),
        (encode({"x": 3}), "'x' has not exactly"),
        (encode({"x": entry("F31")}, bytes(8)), "dtype 'F31'"),
        (encode({"x": entry(shape=(-2,))}, bytes(8)), "shape"),
        (encode({"x": entry(shape=(True, 2))}, bytes(8)), "shape"),
        (encode({"x": entry(shape=(2.0,))}, bytes(8)), "shape"),
        (encode({"x": entry(shape=(2**62, 0), offsets=(0, 0))}), "shape"),
        (encode({"x": entry(shape=(3,))}, bytes(8)), "needs 12 bytes, has 8"),
        (encode({"x": entry(offsets=(8, 0))}, bytes(8)), "needs 8 bytes, has -8"),
        (encode({"x": entry()}, bytes(7)), "take 8 bytes, and 7 follow"),
        (encode({"x": entry()}, bytes(9)), "take 8 bytes, and 9 follow"),
        (encode({"x": entry(offsets=(4, 12))}, bytes(12)), "leaves a hole"),
        (encode({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
        (encode(b'{"x":1,"x":1}'), "given twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_malformed_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused(file):
    whole = file.read_bytes()
    for size in [*range(9), *range(9, len(whole), 5), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a sound safetensors file"):
            open_tensors(file)


def read_all(path) -> None:
    """Read what can be read; ValueError is the one way to fail."""
    try:
        tensors = open_tensors(path)
    except ValueError as error:
        assert "not a sound safetensors file" in str(error)
        return
    assert sum(tensor.read(...).nbytes for tensor in tensors.values()) <= path.stat().st_size


def test_flipped_bytes_never_crash_nor_allocate_much(file):
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path = file.with_name("flipped.safetensors")
    tracemalloc.start()
    for place in range(header):
        # The lowest bit, the letter's case, or the highest bit: all three kinds, all over it.
        mask = (0x01, 0x20, 0x80)[place % 3]
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        read_all(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


numbers = st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none()
anything = st.recursive(
    numbers | st.text(max_size=4),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "I64", 3]),
        "shape": st.lists(st.integers(0, 3) | numbers, max_size=40) | anything,
        "data_offsets": st.lists(st.integers(0, 40) | numbers, min_size=2, max_size=2) | anything,
    }
)


@given(
    header=st.dictionaries(st.text(max_size=3), entries | anything, max_size=3) | anything,
    data=st.binary(max_size=40),
)
def test_arbitrary_headers_never_crash(tmp_path_factory, header, data):
    path = tmp_path_factory.mktemp("headers") / "some.safetensors"
    path.write_bytes(encode(header, data))
    read_all(path)


def test_the_writer_refuses_what_it_cannot_write(tmp_path):
    path = tmp_path / "x.safetensors"
    one = from_array("x", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="'x' is given twice"):
        write_tensors(path, [one, one])
    with pytest.raises(ValueError, match="complex64"):
        write_tensors(path, [from_array("x", np.zeros(2, np.complex64))])
    with pytest.raises(ValueError, match="wider dtypes first"):
        write_tensors(path, [from_array("y", np.zeros(1, np.float16)), one])
    lying = LazyTensor("x", (3,), np.dtype(np.float32), one.read)
    with pytest.raises(ValueError, match=r"said to be float32 \(3,\)"):
        write_tensors(path, [lying])
    assert list(tmp_path.iterdir()) == []
