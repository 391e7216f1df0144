"""GGUF files: metadata, and lazy tensors dequantised by the gguf package as they are read.

The header is parsed here, not by the package's reader, which trusts it: every count and length is
held against what is left of the file before anything is made of it.
Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2, 3).
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from kd_jax.formats.tensors import Index, LazyTensor, bounds, count, plausible

_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("<u1"),  # bool
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NESTING = 4
_TYPES = gguf.GGMLQuantizationType
_PLAIN = {
    _TYPES.F32: np.dtype("<f4"),
    _TYPES.F16: np.dtype("<f2"),
    _TYPES.F64: np.dtype("<f8"),
    _TYPES.I8: np.dtype("<i1"),
    _TYPES.I16: np.dtype("<i2"),
    _TYPES.I32: np.dtype("<i4"),
    _TYPES.I64: np.dtype("<i8"),
}


class GGUFFile(NamedTuple):
    """metadata: Python scalars, strings, lists of strings, NumPy arrays of numbers.

    tensors: by name; quantised ones read as float32. Shapes are NumPy's, outermost axis first:
        the reverse of the order in the file.
    """

    metadata: dict[str, Any]
    tensors: dict[str, LazyTensor]


def open_gguf(path: str | Path) -> GGUFFile:
    """The metadata and tensors of a GGUF file, no tensor read yet.

    ValueError, naming file and fault, for a file that is truncated, malformed, big-endian, of
    another version than 2 or 3, or with a quantisation that the gguf package cannot undo.
    """
    path = Path(path)
    if path.stat().st_size < 24:
        raise ValueError(f"{path}: not a sound GGUF file: too short for a header")
    data = np.memmap(path, np.uint8, "r")
    try:
        return _parse(_Cursor(data))
    except _Fault as error:
        raise ValueError(f"{path}: not a sound GGUF file: {error}") from None


class _Fault(Exception):
    """What is wrong with a file."""


class _Cursor:
    """A position in a file, which never reads past the end."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self.view = data.data  # a memoryview: slices of it are cheap
        self.at = 0

    def need(self, size: int, what: str) -> int:
        """Step over `size` bytes; where they start."""
        start = self.at
        if size > len(self.view) - start:
            raise _Fault(f"{what} needs {size} bytes at {start}, the file has {len(self.view)}")
        self.at += size
        return start

    def number(self, code: str, what: str) -> int:
        start = self.need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.view, start)[0]

    def text(self, what: str) -> str:
        size = self.number("Q", what)
        start = self.need(size, what)
        try:
            return str(self.view[start : start + size], "utf-8")
        except UnicodeDecodeError:
            raise _Fault(f"{what} is not UTF-8") from None


def _parse(cursor: _Cursor) -> GGUFFile:
    if bytes(cursor.view[:4]) != b"GGUF":
        raise _Fault("it does not begin with GGUF")
    cursor.at = 4
    version = cursor.number("I", "version")
    if version not in (2, 3):
        kind = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise _Fault(f"version {version}{kind}, known are 2 and 3")
    tensors, pairs = cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count")
    left = len(cursor.view) - cursor.at
    # A pair has at least a name's length, type and value; a tensor length, axes, type, offset.
    if pairs * 13 > left or tensors * 24 > left:
        raise _Fault(f"{tensors} tensors and {pairs} metadata entries do not fit into {left} bytes")

    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        name = cursor.text("a metadata name")
        if name in metadata:
            raise _Fault(f"metadata {name!r} is given twice")
        metadata[name] = _value(cursor, cursor.number("I", name), name, 0)

    infos = [_tensor_info(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _Fault(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    _check_spans(infos, max(len(cursor.view) - start, 0), alignment)
    return GGUFFile(metadata, {info.name: _lazy(info, cursor.data, start) for info in infos})


def _value(cursor: _Cursor, kind: int, name: str, depth: int) -> Any:
    what = f"metadata {name!r}"
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        inner, length = cursor.number("I", what), cursor.number("Q", what)
        return _array(cursor, inner, length, name, depth)
    return _numbers(cursor, kind, 1, what).tolist()[0]


def _numbers(cursor: _Cursor, kind: int, length: int, what: str) -> np.ndarray:
    if kind not in _SCALARS:
        raise _Fault(f"{what} has the unknown type {kind}")
    dtype = _SCALARS[kind]
    start = cursor.need(length * dtype.itemsize, what)
    # A copy, so that it is aligned and does not hold the map.
    found = cursor.data[start : cursor.at].view(dtype).copy()
    if kind != _BOOL:
        return found
    if (found > 1).any():
        raise _Fault(f"{what} has a truth value that is neither 0 nor 1")
    return found.astype(np.bool_)


def _array(cursor: _Cursor, kind: int, length: int, name: str, depth: int) -> Any:
    what = f"metadata {name!r}"
    if kind not in (_STRING, _ARRAY):
        return _numbers(cursor, kind, length, what)
    if depth == _MAX_NESTING:
        raise _Fault(f"{what} is nested more than {_MAX_NESTING} deep")
    least = 8 if kind == _STRING else 12
    if length * least > len(cursor.view) - cursor.at:
        raise _Fault(f"{what} is said to have {length} entries, more than the file can hold")
    return [_value(cursor, kind, name, depth + 1) for _ in range(length)]


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


def _tensor_info(cursor: _Cursor) -> _Info:
    name = cursor.text("a tensor's name")
    what = f"tensor {name!r}"
    dims = cursor.number("I", what)
    if dims > _MAX_DIMS:
        raise _Fault(f"{what} has {dims} axes, at most {_MAX_DIMS} are known")
    shape = tuple(cursor.number("Q", what) for _ in range(dims))[::-1]
    code, offset = cursor.number("I", what), cursor.number("Q", what)
    if 0 in shape or not plausible(shape):
        raise _Fault(f"{what} has shape {shape}")
    if code not in (known.value for known in _TYPES):
        raise _Fault(f"{what} has the unknown type {code}")
    kind = _TYPES(code)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    last = shape[-1] if shape else 1
    if last % block:
        raise _Fault(f"{what} has rows of {last}, not a multiple of {kind.name}'s {block}")
    return _Info(name, shape, kind, offset, count(shape) // block * block_bytes)


def _check_spans(infos: list[_Info], size: int, alignment: int) -> None:
    names = [info.name for info in infos]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _Fault(f"tensor {twice!r} is given twice")
    at = 0
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            raise _Fault(f"tensor {info.name!r} at {info.offset} is not aligned to {alignment}")
        if info.offset < at:
            raise _Fault(f"tensor {info.name!r} at {info.offset} overlaps another")
        at = info.offset + info.nbytes
        if at > size:
            raise _Fault(f"tensor {info.name!r} ends at {at}, the file's data at {size}")
    for kind in {info.kind for info in infos} - set(_PLAIN):
        sample = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            gguf.dequantize(sample, kind)
        except NotImplementedError:
            raise _Fault(f"the gguf package cannot undo the quantisation {kind.name}") from None


def _lazy(info: _Info, data: np.ndarray, start: int) -> LazyTensor:
    begin = start + info.offset
    raw = data[begin : begin + info.nbytes]
    plain = _PLAIN.get(info.kind)
    if plain is not None:
        dtype, read = plain, _reader(raw, plain, info.shape)
    else:
        dtype, read = np.dtype(np.float32), _dequantiser(raw, info)
    return LazyTensor(info.name, info.shape, dtype, read)


def _reader(
    raw: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]
) -> Callable[[Index], np.ndarray]:
    return lambda index: raw.view(dtype).reshape(shape)[index]


def _dequantiser(raw: np.ndarray, info: _Info) -> Callable[[Index], np.ndarray]:
    """Reads the rows asked for, and of them the blocks that cover the columns asked for."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[info.kind]
    rows = raw.reshape(*info.shape[:-1], -1)

    def read(index: Index) -> np.ndarray:
        *outer, inner = bounds(index, info.shape)
        shape = tuple(part.stop - part.start for part in (*outer, inner))
        if 0 in shape:
            return np.zeros(shape, np.float32)
        first, last = inner.start // block, -(-inner.stop // block)
        cut = rows[(*outer, slice(first * block_bytes, last * block_bytes))]
        values = gguf.dequantize(np.ascontiguousarray(cut), info.kind)
        return values[..., inner.start - first * block : inner.stop - first * block]

    return read
