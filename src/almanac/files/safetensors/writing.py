"""Writing safetensors: one file up to a size, beyond it shards and an index; every step atomic.

Within a file tensors are ordered by item size, then name, so that each starts aligned and equal tensors give equal
bytes. Over an older model the order of steps is: new shards under names not in use -> index (or single file) -> removal
of what the old index named. A reader therefore sees the old model or the new one at any moment; see `sharded`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from almanac.core.errors import AlmanacError, FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.files.safetensors.header import DTYPES, MAX_HEADER_BYTES, read_header
from almanac.files.safetensors.sharded import INDEX_SUFFIX, read_weight_map
from almanac.files.store import Sink, sync_folder, write_atomic, write_json

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write tensors to `path`, or to shards beside it with an index if they exceed `max_shard_bytes` together.

    Tensors may lie on any device and be views; each is written whole (tied weights twice: pass one of them). The
    metadata gets `format: pt` unless it says otherwise, without which some readers refuse the file.

    Returns:
        The files written; the index last.

    Raises:
        UnsupportedError: a tensor without bytes (meta, sparse) or of a dtype that the format has no name for.
        FileFormatError: names or metadata that are not valid text, or a header over its limit.
        NotFoundError, IntegrityError, OSError: as `write_atomic`.
    """
    target = Path(path)
    texts = {"format": "pt", **(metadata or {})}
    for name, tensor in tensors.items():
        _check_writable(name, tensor)
    if not all(isinstance(text, str) for pair in texts.items() for text in pair):
        raise FileFormatError("safetensors metadata must map text to text", remedy="Turn the values into text first.")
    groups = _plan(tensors, max_shard_bytes)
    index = target.with_name(target.name + INDEX_SUFFIX)
    outdated = _outdated_shards(target, index)
    if len(groups) == 1:
        _write_one(target, groups[0], texts)
        index.unlink(missing_ok=True)
        written = [target]
    else:
        shards = _shard_paths(target, len(groups))
        _write_shards(shards, groups, texts)
        weight_map = {name: shard.name for shard, group in zip(shards, groups, strict=True) for name in group}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        target.unlink(missing_ok=True)
        written = [*shards, index]
    sync_folder(target.parent)
    for shard in outdated:
        shard.unlink(missing_ok=True)
    return written


def _check_writable(name: str, tensor: Tensor) -> None:
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedError(
            f"Tensor {quoted(name)} has no plain bytes to write", remedy="Materialise it as a dense tensor first."
        )
    if tensor.dtype not in _CODES:
        raise UnsupportedError(
            f"Tensor {quoted(name)} is of {tensor.dtype}, which safetensors cannot name",
            remedy="Convert it to a dtype of the format, such as float32 or uint8.",
        )
    if name == "__metadata__":
        raise FileFormatError("A tensor is named __metadata__, the format's own word", remedy="Rename the tensor.")


def _plan(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[dict[str, Tensor]]:
    """Groups of tensors in the given order, each within the limit unless a single tensor exceeds it."""
    groups: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if groups[-1] and tensor.nbytes > room:
            groups.append({})
            room = max_shard_bytes
        groups[-1][name] = tensor
        room -= tensor.nbytes
    return groups


def _shard_paths(target: Path, count: int) -> list[Path]:
    """Conventional shard names; with a generation mark if one of them is taken."""
    generation = 1
    while True:
        mark = "" if generation == 1 else f"g{generation}-"
        names = [f"{target.stem}-{mark}{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if not any((target.parent / name).exists() for name in names):
            return [target.parent / name for name in names]
        generation += 1


def _outdated_shards(target: Path, index: Path) -> list[Path]:
    """Shards of ours that the present index names, to be removed once the new model stands."""
    ours = re.compile(rf"{re.escape(target.stem)}-(g\d+-)?\d{{5}}-of-\d{{5}}\.safetensors")
    try:
        names = set(read_weight_map(index).values())
    except AlmanacError:  # absent or unreadable: then nothing is known to be ours to remove
        return []
    return [target.parent / name for name in sorted(names) if ours.fullmatch(name)]


def _write_shards(shards: list[Path], groups: list[dict[str, Tensor]], texts: dict[str, str]) -> None:
    """All of them or, if one fails, none: without its index a shard is only lost space."""
    try:
        for shard, group in zip(shards, groups, strict=True):
            _write_one(shard, group, texts)
    except BaseException:
        for shard in shards:
            shard.unlink(missing_ok=True)
        raise


def _write_one(path: Path, tensors: Mapping[str, Tensor], texts: dict[str, str]) -> None:
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": texts}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except ValueError as error:
        raise FileFormatError("A tensor name or metadata text is not valid Unicode", remedy="Rename it.") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise FileFormatError(
            f"The header would take {len(text)} bytes, over the limit of {MAX_HEADER_BYTES}",
            remedy="Lower max_shard_bytes, or shorten the metadata.",
        )

    def write(sink: Sink) -> None:
        sink.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            sink.write(plain_bytes(tensor))

    write_atomic(path, write, verify=read_header)


def plain_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, as bytes on the CPU; without a copy where it lies so already."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
