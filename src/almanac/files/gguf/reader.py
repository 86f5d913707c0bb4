"""Reading GGUF (versions 2 and 3, little-endian): all that the header declares is checked against the file first.

Layout (the `ggml` project's GGUF description): magic, version, number of tensors, number of metadata pairs; the pairs;
for each tensor name, dimensions (fastest first), type, offset; padding to `general.alignment`; the data. Tensors must
cover the data up to padding smaller than one alignment: nothing beyond the file, nothing twice, nothing undeclared.

Shapes: torch order (slowest first), the reverse of the file's; a tensor's rows are all its dimensions but the last.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.files.gguf.cursor import Cursor, fault
from almanac.files.gguf.format import Format
from almanac.files.gguf.formats import FORMATS, UNOFFERED
from almanac.files.mapped import map_file
from almanac.files.quoting import quoted
from almanac.files.refuse import refuse_content, refuse_name

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_HEADER_BYTES = 256 << 20
MAX_DIMS = 4
_INT64_MAX = 2**63 - 1
_LEAST_PAIR_BYTES, _LEAST_TENSOR_BYTES = 14, 33


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor, as declared and checked. `offset` counts bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int
    _file: Tensor = field(repr=False, compare=False)

    @property
    def type(self) -> str:
        """The name of the format, such as "Q4_1"."""
        return self.format.name

    def blocks(self) -> Tensor:
        """The packed rows, uint8 [rows, bytes_per_row], sharing the file's pages (see `mapped`)."""
        rows = math.prod(self.shape[:-1])
        return self._file[self.offset : self.offset + self.nbytes].view(rows, self.format.packed_bytes(self.shape[-1]))

    def dense(self) -> Tensor:
        """The values, float32 `shape`. F32 tensors share the file's pages; others are new."""
        return self.format.dequantize(self.blocks()).view(self.shape)


@dataclass(frozen=True, slots=True)
class GGUF:
    """An opened file. `types` gives each metadata value's kind as `write_gguf` takes it; see `values`."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, object]
    types: dict[str, str]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Read and check the header and map the tensors; their bytes are not touched.

    Raises:
        NotFoundError: nothing can be opened there.
        UnsafeFileError: by name or first bytes, a format that can carry code.
        FileFormatError: malformed, truncated, or declaring sizes that are not the file's.
        UnsupportedError: big-endian, a version other than 2 and 3, or a tensor type that is not offered.
    """
    refuse_name(path)
    data = map_file(path)
    view = data.numpy().data
    refuse_content(path, bytes(view[:512]))
    cursor = Cursor(path, view, min(len(view), MAX_HEADER_BYTES))
    version = _version(cursor)
    tensor_count, pair_count = cursor.number("Q", "the tensor count"), cursor.number("Q", "the metadata count")
    if pair_count * _LEAST_PAIR_BYTES + tensor_count * _LEAST_TENSOR_BYTES > cursor.remaining:
        raise fault(path, f"it declares {tensor_count} tensors and {pair_count} metadata pairs in {len(view)} bytes")
    metadata: dict[str, object] = {}
    types: dict[str, str] = {}
    for _ in range(pair_count):
        key = cursor.name("a metadata key")
        if key in metadata:
            raise fault(path, f"the metadata key {quoted(key)} appears twice")
        metadata[key], types[key] = cursor.value(f"metadata {quoted(key)}")
    alignment = _alignment(path, metadata, types)
    tensors: dict[str, GGUFTensor] = {}
    declared = [_tensor(cursor, data, alignment) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    for relative in declared:
        if relative.name in tensors:
            raise fault(path, f"the tensor name {quoted(relative.name)} appears twice")
        tensors[relative.name] = GGUFTensor(
            relative.name, relative.shape, relative.format, data_start + relative.offset, relative.nbytes, data
        )
    _check_coverage(path, list(tensors.values()), min(data_start, len(view)), len(view), alignment)
    return GGUF(Path(path), version, alignment, metadata, types, tensors)


def _version(cursor: Cursor) -> int:
    if bytes(cursor.take(4, "the magic number")) != MAGIC:
        raise fault(cursor.path, "it does not begin with GGUF")
    version = cursor.number("I", "the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            f"{quoted(cursor.path, limit=200)} is a big-endian GGUF file",
            remedy="Obtain or make the little-endian file; nearly all published ones are.",
        )
    if version not in (2, 3):
        raise UnsupportedError(
            f"{quoted(cursor.path, limit=200)} is GGUF version {version}; 2 and 3 are read here",
            remedy="Convert it with a current llama.cpp, or use a newer Almanac.",
        )
    return version


def _alignment(path: str | os.PathLike[str], metadata: dict[str, object], types: dict[str, str]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    kind = types.get("general.alignment", "uint32")
    if kind != "uint32" or not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise fault(
            path, f"its general.alignment is {quoted(alignment)} ({kind}), not a power of two from 8 on (uint32)"
        )
    return alignment


def _tensor(cursor: Cursor, data: Tensor, alignment: int) -> GGUFTensor:
    """One tensor as declared, its offset still counted from the start of the data."""
    path, name = cursor.path, cursor.name("a tensor name")
    what = f"tensor {quoted(name)}"
    dims = cursor.number("I", what)
    if not 1 <= dims <= MAX_DIMS:
        raise fault(path, f"{what} has {dims} dimensions, and 1 to {MAX_DIMS} are allowed")
    sizes = [cursor.number("Q", what) for _ in range(dims)]  # fastest first
    type_id, offset = cursor.number("I", what), cursor.number("Q", what)
    if type_id in UNOFFERED:
        raise UnsupportedError(
            f"{quoted(path, limit=200)} holds {what} as {UNOFFERED[type_id]}, which is not read here",
            remedy=f"Use a copy in one of {', '.join(entry.name for entry in FORMATS.values())}.",
        )
    if type_id not in FORMATS:
        raise fault(path, f"{what} is of the unknown type {type_id}")
    entry = FORMATS[type_id]
    if sizes[0] % entry.block_size:
        raise fault(path, f"{what} has rows of {sizes[0]}, not whole {entry.name} blocks of {entry.block_size}")
    product = math.prod(max(size, 1) for size in sizes)  # a zero must not hide a product that overflows
    if product * 4 > _INT64_MAX:
        raise fault(path, f"{what} has a shape that overflows")
    if offset % alignment:
        raise fault(path, f"{what} begins at {offset}, not at a multiple of {alignment}")
    nbytes = entry.packed_bytes(math.prod(sizes))
    return GGUFTensor(name, tuple(reversed(sizes)), entry, offset, nbytes, data)


def _check_coverage(
    path: str | os.PathLike[str], tensors: list[GGUFTensor], data_start: int, file_bytes: int, alignment: int
) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < position:
            raise fault(path, f"tensor {quoted(tensor.name)} overlaps the one before it")
        if tensor.offset - position >= alignment:
            raise fault(
                path, f"{tensor.offset - position} bytes before tensor {quoted(tensor.name)} belong to no tensor"
            )
        position = tensor.offset + tensor.nbytes
        if position > file_bytes:
            raise fault(path, f"tensor {quoted(tensor.name)} ends at byte {position} of {file_bytes}")
    if file_bytes - position >= alignment:
        raise fault(path, f"the last {file_bytes - position} bytes belong to no tensor")
