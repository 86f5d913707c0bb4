"""The header of a safetensors file, checked completely before anything is allocated from its figures.

Format (Hugging Face, 2022, the `safetensors` project's format notes): a little-endian u64 `n`, `n` bytes of JSON
`{"name": {"dtype", "shape", "data_offsets": [start, end]}, ..., "__metadata__": {text: text}}`, then the data, which
the offsets (relative to its start) cover without hole, overlap or rest. Stricter than the notes: no duplicate keys, no
unknown fields, no shape whose product exceeds 2^63 - 1 even when a zero hides it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.mapped import open_regular
from almanac.files.quoting import quoted
from almanac.files.refuse import refuse_content, refuse_name
from almanac.files.strict_json import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader
MAX_DIMS = 64
_INT64_MAX = 2**63 - 1
_REMEDY = "The file is damaged, incomplete or made to mislead: obtain it again from its source and compare its digest."

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_SUB_BYTE = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as declared: `start` and `end` are bytes from the start of the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `tensors` is in the order of the file's bytes; the data begins at `data_start`."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header; the tensors' bytes are not touched.

    Raises:
        NotFoundError: nothing can be opened there.
        UnsafeFileError: by name or first bytes, a format that can carry code.
        FileFormatError: malformed, truncated, or declaring sizes that are not the file's.
        UnsupportedError: a dtype smaller than a byte.
    """
    refuse_name(path)
    with open_regular(path) as (descriptor, size), os.fdopen(os.dup(descriptor), "rb") as stream:
        head = stream.read(512)
        length = header_length(path, head, file_bytes=size)
        rest = stream.read(max(0, 8 + length - len(head)))
    return parse_header(path, (head + rest)[8 : 8 + length], file_bytes=size)


def header_length(path: str | os.PathLike[str], head: bytes, *, file_bytes: int) -> int:
    """The header's length in bytes, from the first bytes (up to 512) of a file of `file_bytes`."""
    refuse_content(path, head)
    if len(head) < 8:
        raise _fault(path, f"it has {file_bytes} bytes and a header needs at least 10")
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _fault(path, f"it declares a header of {length} bytes, over the limit of {MAX_HEADER_BYTES}")
    if length < 2 or 8 + length > file_bytes:
        raise _fault(path, f"it declares a header of {length} bytes and has {file_bytes} in all")
    if head[8:9] != b"{":
        raise _fault(path, "its header does not begin with a JSON object")
    return length


def parse_header(path: str | os.PathLike[str], text: bytes, *, file_bytes: int) -> Header:
    """Check a header's JSON against a file of `file_bytes`. Raises FileFormatError or UnsupportedError."""
    tree = parse_json(text, source=f"The header of {quoted(path, limit=200)}", max_depth=3)
    if not isinstance(tree, dict):
        raise _fault(path, "its header is not a JSON object")
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _fault(path, "its __metadata__ is not an object of texts")
    entries = [_entry(path, name, fields) for name, fields in tree.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    data_start = 8 + len(text)
    position = 0
    for entry in entries:
        if entry.start != position:
            kind = "overlaps the one before it" if entry.start < position else "leaves a hole before it"
            raise _fault(path, f"tensor {quoted(entry.name)} {kind}")
        position = entry.end
    if position != file_bytes - data_start:
        raise _fault(path, f"its tensors cover {position} bytes and the file holds {file_bytes - data_start} for them")
    return Header(Path(path), {entry.name: entry for entry in entries}, metadata, data_start, file_bytes)


def _entry(path: str | os.PathLike[str], name: str, fields: object) -> TensorEntry:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fault(path, f"tensor {quoted(name)} is not described by exactly dtype, shape and data_offsets")
    shape, offsets = fields["shape"], fields["data_offsets"]
    dtype = _dtype(path, name, fields["dtype"])
    if not _is_counts(shape) or len(shape) > MAX_DIMS:
        raise _fault(path, f"the shape of tensor {quoted(name)} is not a list of at most {MAX_DIMS} whole numbers")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _fault(path, f"the data_offsets of tensor {quoted(name)} are not a start and an end")
    nbytes = dtype.itemsize
    for size in shape:
        nbytes *= max(size, 1)  # a zero must not hide a product that overflows
        if nbytes > _INT64_MAX:
            raise _fault(path, f"the shape of tensor {quoted(name)} overflows")
    if 0 in shape:
        nbytes = 0
    if offsets[1] - offsets[0] != nbytes:
        raise _fault(path, f"tensor {quoted(name)} needs {nbytes} bytes and declares {offsets[1] - offsets[0]}")
    return TensorEntry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _dtype(path: str | os.PathLike[str], name: str, code: object) -> torch.dtype:
    if isinstance(code, str) and code in DTYPES:
        return DTYPES[code]
    if isinstance(code, str) and code in _SUB_BYTE:
        raise UnsupportedError(
            f"Tensor {quoted(name)} of {quoted(path, limit=200)} has dtype {code}, smaller than a byte",
            remedy="Use a copy of the model in BF16, F16 or an FP8 type.",
        )
    raise _fault(path, f"tensor {quoted(name)} has the unknown dtype {quoted(code)}")


def _is_counts(value: object) -> bool:
    """A list of whole numbers in 0 .. 2^63 - 1; True and 1.0 are neither."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _INT64_MAX for item in value)


def _fault(path: str | os.PathLike[str], what: str) -> FileFormatError:
    return FileFormatError(f"{quoted(path, limit=200)} is not a sound safetensors file: {what}", remedy=_REMEDY)
