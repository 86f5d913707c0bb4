"""Writing GGUF version 3, little-endian, atomically; tensors are packed one at a time as they go to the disk."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, ShapeError
from almanac.files.gguf.format import Format
from almanac.files.gguf.formats import format_named
from almanac.files.gguf.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, read_gguf
from almanac.files.gguf.values import encode_text, encode_value, infer_kind
from almanac.files.quoting import quoted
from almanac.files.store import Sink, write_atomic

_MAX_NAME_BYTES = 63  # llama.cpp keeps 64 bytes for a tensor's name, the last a zero
_VERSION = 3


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Mapping[str, tuple[str, Tensor, Sequence[int]]],
    *,
    types: Mapping[str, str] | None = None,
) -> str:
    """Write a GGUF file and read its header back before it takes its name.

    Args:
        path: the file to make or replace.
        metadata: key -> truth value, number, text, list or one-dimensional numpy array, in the order to write.
            `general.alignment`, if given, is obeyed.
        tensors: name -> (format name, tensor, shape in torch order), in the order to write. A uint8 tensor is taken as
            already packed in that format; a floating one is quantised to it.
        types: kinds for metadata whose kind its value does not tell as wanted; see `values`.

    Returns:
        SHA-256 of the file, in hexadecimal.

    Raises:
        ShapeError: a tensor, its shape and its format do not fit together.
        FileFormatError: a value or name that GGUF cannot hold.
        UnsupportedError: a format that is not offered, or values that it cannot hold.
        NotFoundError, IntegrityError, OSError: as `write_atomic`.
    """
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise FileFormatError(f"general.alignment is {quoted(alignment)}", remedy="Give a power of two from 8 on.")
    plans = [_plan(name, *entry) for name, entry in tensors.items()]
    header = bytearray(MAGIC + _VERSION.to_bytes(4, "little"))
    header += len(plans).to_bytes(8, "little") + len(metadata).to_bytes(8, "little")
    for key, value in metadata.items():
        kind = (types or {}).get(key) or infer_kind(value, key)
        header += _encode_name(key, 65535) + encode_value(value, kind, key=key)
    offset = 0
    for name, entry, shape, _ in plans:
        header += _encode_name(name, _MAX_NAME_BYTES) + len(shape).to_bytes(4, "little")
        header += b"".join(size.to_bytes(8, "little") for size in reversed(shape))
        header += entry.ggml_id.to_bytes(4, "little") + offset.to_bytes(8, "little")
        offset += _padded(entry.packed_bytes(math.prod(shape)), alignment)
    header += bytes(_padded(len(header), alignment) - len(header))

    def write(sink: Sink) -> None:
        sink.write(bytes(header))
        for _, entry, shape, tensor in plans:
            packed = _packed(entry, shape, tensor)
            sink.write(packed.numpy().data)
            sink.write(bytes(_padded(packed.numel(), alignment) - packed.numel()))

    return write_atomic(path, write, verify=read_gguf)


def _plan(name: str, format_name: str, tensor: Tensor, shape: Sequence[int]) -> tuple[str, Format, list[int], Tensor]:
    entry, sizes = format_named(format_name), [int(size) for size in shape]
    if not 1 <= len(sizes) <= MAX_DIMS or min(sizes) < 0:
        raise ShapeError(f"Tensor {quoted(name)} has shape {sizes}", remedy=f"GGUF holds 1 to {MAX_DIMS} dimensions.")
    packed = tensor.dtype == torch.uint8
    row_bytes = entry.packed_bytes(sizes[-1])
    expected = math.prod(sizes[:-1]) * row_bytes if packed else math.prod(sizes)
    if tensor.numel() != expected or not (packed or tensor.is_floating_point()):
        raise ShapeError(
            f"Tensor {quoted(name)}, {tensor.dtype} {list(tensor.shape)}, is not {entry.name} of shape {sizes}",
            remedy="Give packed uint8 rows of that shape, or a floating tensor with as many elements.",
        )
    return name, entry, sizes, tensor


def _packed(entry: Format, shape: list[int], tensor: Tensor) -> Tensor:
    """uint8 [bytes] on the CPU."""
    blocks = tensor if tensor.dtype == torch.uint8 else entry.quantize(tensor.reshape(shape))
    return blocks.detach().cpu().contiguous().reshape(-1)


def _encode_name(name: str, limit_bytes: int) -> bytes:
    try:
        encoded = encode_text(name)
    except UnicodeEncodeError as error:
        raise FileFormatError(f"The name {quoted(name)} is not valid Unicode", remedy="Rename it.") from error
    if not 8 < len(encoded) <= 8 + limit_bytes:
        raise FileFormatError(f"The name {quoted(name)} is empty or over {limit_bytes} bytes", remedy="Rename it.")
    return encoded


def _padded(count_bytes: int, alignment: int) -> int:
    return -(-count_bytes // alignment) * alignment
