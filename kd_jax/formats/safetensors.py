"""The safetensors format: lazy tensors over a memory map, and a writer that streams.

A file is the header's length (u64, little endian), the header (JSON: name -> dtype, shape,
data_offsets relative to the header's end), and the data, without holes. A memory map at the
offsets holds one copy of what is read; slices through the safetensors package hold two.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from kd_jax.formats.tensors import Index, LazyTensor, Place, count, plausible

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_tensors(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by name, none of them read yet.

    ValueError, naming file and fault, for a file that is truncated or malformed in any way: the
    header's length, its JSON, names given twice, unknown dtypes, sizes that do not agree with
    shapes, and offsets that overlap, leave holes or do not end where the file does.
    """
    path = Path(path)
    entries, start = _read_header(path)
    if start == path.stat().st_size:  # nothing to map
        data = np.zeros(0, np.uint8)
    else:
        data = np.memmap(path, np.uint8, "r", offset=start)
    return {
        name: _lazy(name, data, dtype, shape, begin, Place(path, start + begin))
        for name, (dtype, shape, begin) in entries.items()
    }


def _lazy(
    name: str,
    data: np.ndarray,
    dtype: np.dtype,
    shape: tuple[int, ...],
    begin: int,
    place: Place,
) -> LazyTensor:
    end = begin + count(shape) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        return data[begin:end].view(dtype).reshape(shape)[index]

    return LazyTensor(name, shape, dtype, read, place)


def _read_header(path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], int]:
    """({name: (dtype, shape, begin)}, where the data starts), all of it checked."""

    def fault(what: str) -> ValueError:
        return ValueError(f"{path}: not a sound safetensors file: {what}")

    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise fault(f"{size} bytes, too short for the header's length")
        length = int.from_bytes(prefix, "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise fault(
                f"its header is said to have {length} bytes; the file has {size}, and headers may "
                f"have {MAX_HEADER_BYTES}"
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise fault(f"its header is not JSON as it should be ({error})") from None
    if not isinstance(header, dict):
        raise fault("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise fault("__metadata__ is not an object of strings")

    entries = {}
    spans = []
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(name, entry, fault)
        entries[name] = (dtype, shape, begin)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            kind = "overlaps another" if begin < at else "leaves a hole before it"
            raise fault(f"tensor {name!r} at {begin} {kind}, {at} was expected")
        at = end
    if at != size - 8 - length:
        raise fault(f"its tensors take {at} bytes, and {size - 8 - length} follow the header")
    return entries, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _check_entry(name: str, entry: Any, fault: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a header's entry."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault(f"tensor {name!r} has not exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise fault(f"tensor {name!r} has dtype {code!r}, known are {', '.join(_DTYPES)}")
    dtype = _DTYPES[code]
    if not _naturals(shape) or not plausible(tuple(shape)):
        raise fault(f"tensor {name!r} has shape {shape}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise fault(f"tensor {name!r} has data_offsets {offsets}")
    begin, end = offsets
    needs = count(tuple(shape)) * dtype.itemsize
    if end - begin != needs:
        raise fault(f"tensor {name!r} of {code} {shape} needs {needs} bytes, has {end - begin}")
    return dtype, tuple(shape), begin, end


def _naturals(values: Any) -> bool:
    """Whether this is a list of non-negative integers (True and False are none)."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def make_header(
    tensors: Sequence[tuple[str, np.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """What a file of these tensors (name, dtype, shape) starts with; their data follows in order.

    metadata defaults to {"format": "pt"}. ValueError: a name given twice; a dtype the format has
    no name for; an order in which a tensor would not be aligned to its item size (give wider dtypes
    first).
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    at = 0
    for name, dtype, shape in tensors:
        code = _NAMES.get(dtype.newbyteorder("<"))
        if name in header:
            raise ValueError(f"tensors: {name!r} is given twice")
        if code is None:
            raise ValueError(f"tensors: {name!r} is {dtype}, which has no name here")
        if at % dtype.itemsize:
            raise ValueError(f"tensors: {name!r} is not aligned, put wider dtypes first")
        end = at + count(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"tensors: their header has {len(text)} bytes, over {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: str | Path, tensors: Sequence[LazyTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to one file, in this order, reading one at a time.

    The file is written beside `path` under another name and then renamed: it appears whole or not
    at all. metadata defaults to {"format": "pt"}, which transformers asks for.

    ValueError: what `make_header` refuses; a tensor whose data is not what its shape and dtype say.
    """
    path = Path(path)
    head = make_header([(x.name, x.dtype, x.shape) for x in tensors], metadata)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(head)
            for tensor in tensors:
                _write_data(file, tensor)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_data(file: BinaryIO, tensor: LazyTensor) -> None:
    array = np.asarray(tensor.read(...))
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(
            f"tensors: {tensor.name!r} is said to be {tensor.dtype} {tensor.shape}, "
            f"its data is {array.dtype} {array.shape}"
        )
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
