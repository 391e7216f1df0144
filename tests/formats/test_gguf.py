import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.formats.gguf import open_gguf

TYPES = gguf.GGMLQuantizationType
PLAIN = {
    "f32": np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32),
    "f16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "i32": np.arange(4, dtype=np.int32),
}
QUANTISED = {"q8": TYPES.Q8_0, "q4": TYPES.Q4_1, "bf16": TYPES.BF16}
VALUES = np.random.RandomState(1).standard_normal((6, 96)).astype(np.float32)


def write(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve 🙂")
    writer.add_array("a.texts", ["x", "", "yé"])
    writer.add_array("a.numbers", [3, 1, 2])
    for name, array in PLAIN.items():
        writer.add_tensor(name, array)
    for name, kind in QUANTISED.items():
        writer.add_tensor(name, gguf.quantize(VALUES, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "some.gguf")


def header_size(path) -> int:
    return gguf.GGUFReader(path).data_offset


def test_metadata(file):
    metadata = open_gguf(file).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["a.count"] == 7
    assert metadata["a.float"] == 0.5
    assert metadata["a.flag"] is True
    assert metadata["a.text"] == "naïve 🙂"
    assert metadata["a.texts"] == ["x", "", "yé"]
    np.testing.assert_array_equal(metadata["a.numbers"], [3, 1, 2])


def test_tensors_are_those_of_the_gguf_package(file):
    found = open_gguf(file).tensors
    assert set(found) == {*PLAIN, *QUANTISED}
    for name, array in PLAIN.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name].read(...), array)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, kind in QUANTISED.items():
        whole = gguf.dequantize(theirs[name].data, kind)
        assert (found[name].shape, found[name].dtype) == (VALUES.shape, np.float32)
        np.testing.assert_array_equal(found[name].read(...), whole)
        assert np.abs(whole - VALUES).max() < 0.5  # and they are the values that went in


@given(st.tuples(*[st.integers(0, 6)] * 2), st.tuples(*[st.integers(0, 96)] * 2))
def test_parts_are_cut_inside_blocks(tmp_path_factory, rows, columns):
    path = tmp_path_factory.mktemp("parts") / "some.gguf"
    found = open_gguf(write(path)).tensors
    part = (slice(*sorted(rows)), slice(*sorted(columns)))
    for name in (*QUANTISED, "q4"):
        tensor = found[name]
        np.testing.assert_array_equal(tensor.read(part), tensor.read(...)[part])


def test_steps_and_other_ranks_are_refused(file):
    tensor = open_gguf(file).tensors["q8"]
    with pytest.raises(ValueError, match="step 1"):
        tensor.read((slice(None, None, 2), slice(None)))
    with pytest.raises(ValueError, match="one for each axis"):
        tensor.read((slice(None),))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor_info(name="x", dims=(2,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(pairs=(), infos=(), data=b"", version=3, counts=None) -> bytes:
    counts = counts or (len(infos), len(pairs))
    content = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *infos))
    return content + bytes(-len(content) % 32) + data


def nested(depth: int) -> bytes:
    return pair("deep", 9, struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0))


HUGE = 2**63
FAULTS = [
    (b"", "too short"),
    (b"GGML" + bytes(28), "does not begin with GGUF"),
    (build(version=1), "version 1, known are 2 and 3"),
    (build(version=3 << 24), "big-endian"),
    (build(counts=(HUGE, 0)), "do not fit"),
    (build(counts=(0, HUGE)), "do not fit"),
    (build([struct.pack("<Q", HUGE) + bytes(20)]), "needs 9223372036854775808 bytes"),
    (build([pair("t", 8, struct.pack("<Q", HUGE))]), "'t' needs"),
    (build([pair("t", 8, struct.pack("<Q", 2) + b"\xff\xff")]), "not UTF-8"),
    (build([pair("t", 99, bytes(8))]), "unknown type 99"),
    (build([pair("t", 7, b"\x02")]), "neither 0 nor 1"),
    (build([pair("t", 9, struct.pack("<IQ", 8, 2**40))]), "more than the file can hold"),
    (build([pair("t", 9, struct.pack("<IQ", 9, 2**40))]), "more than the file can hold"),
    (build([pair("t", 9, struct.pack("<IQ", 0, 2**40))]), "needs 1099511627776 bytes"),
    (build([nested(6)]), "nested more than"),
    (build([pair("t", 0, b"\0"), pair("t", 0, b"\0")]), "'t' is given twice"),
    (build([pair("general.alignment", 4, struct.pack("<I", 3))]), "not a power of two"),
    (build([pair("general.alignment", 6, struct.pack("<f", 32))]), "not a power of two"),
    (build([], [tensor_info(dims=(1,) * 5)], bytes(64)), "has 5 axes"),
    (build([], [tensor_info(dims=(2**40, 2**40))], bytes(64)), "has shape"),
    (build([], [tensor_info(dims=(0,))], bytes(64)), "has shape"),
    (build([], [tensor_info(kind=77)], bytes(64)), "unknown type 77"),
    (build([], [tensor_info(kind=8)], bytes(64)), "rows of 2, not a multiple of Q8_0's 32"),
    (build([], [tensor_info(dims=(17,))], bytes(64)), "ends at 68, the file's data at 64"),
    (build([], [tensor_info(offset=HUGE)], bytes(64)), "ends at"),
    (build([], [tensor_info(offset=8)], bytes(64)), "not aligned"),
    (build([], [tensor_info(), tensor_info("y")], bytes(64)), "overlaps"),
    (build([], [tensor_info(), tensor_info(offset=32)], bytes(64)), "'x' is given twice"),
    (build([], [tensor_info(dims=(256,), kind=15)], bytes(640)), None),  # Q8_K has no way back
]


@pytest.mark.parametrize(
    ("content", "message"), FAULTS, ids=lambda value: value if isinstance(value, str) else "file"
)
def test_malformed_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message or "cannot undo") as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


def test_what_the_faults_are_made_of_is_sound(tmp_path):
    path = tmp_path / "good.gguf"
    infos = [tensor_info(dims=(2, 3)), tensor_info("y", (32,), 8, offset=32)]
    path.write_bytes(build([pair("t", 7, b"\x01"), nested(3)], infos, bytes(96)))
    found = open_gguf(path)
    assert found.metadata["t"] is True
    assert {name: t.shape for name, t in found.tensors.items()} == {"x": (3, 2), "y": (32,)}


def read_all(path) -> None:
    """Read what can be read; ValueError is the one way to fail."""
    try:
        tensors = open_gguf(path).tensors
    except ValueError as error:
        assert "not a sound GGUF file" in str(error)
        return
    # Four bits a number, at the least.
    assert sum(t.read(...).nbytes for t in tensors.values()) <= 8 * path.stat().st_size


def test_truncated_files_are_refused(file):
    whole = file.read_bytes()
    for size in [*range(0, len(whole) - 64, 23), *range(len(whole) - 64, len(whole) - 31, 4)]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a sound GGUF file"):
            open_gguf(file)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scales that became infinite or NaN
def test_flipped_bytes_never_crash_nor_allocate_much(file):
    whole = file.read_bytes()
    header = header_size(file)
    path = file.with_name("flipped.gguf")
    tracemalloc.start()
    for place in range(header):
        # The lowest bit, the letter's case, or the highest bit: all three kinds, all over it.
        mask = (0x01, 0x20, 0x80)[place % 3]
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        read_all(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.data())
def test_numbers_written_over_a_header_never_crash(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("numbers") / "some.gguf")
    header = header_size(path)
    whole = bytearray(path.read_bytes())
    extreme = st.sampled_from([0, 1, 31, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header - 8))
        whole[place : place + 8] = struct.pack("<Q", data.draw(extreme | st.integers(0, 2**64 - 1)))
    path.write_bytes(whole)
    read_all(path)
