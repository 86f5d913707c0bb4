"""A model in one safetensors file, or in several with an index that says which tensor is where.

The index (`model.safetensors.index.json`, Hugging Face's convention) maps each tensor to a shard's file name. Shards
are plain names inside the folder, and index and shards must list the same tensors in the same places. Where both an
index and `model.safetensors` stand in the folder, the index counts: it is the pointer that `write_safetensors` moves.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from almanac.core.errors import FileFormatError, NotFoundError, UnsafeFileError
from almanac.files.quoting import quoted
from almanac.files.refuse import REFUSED_SUFFIXES
from almanac.files.safetensors.header import TensorEntry
from almanac.files.safetensors.reading import SafetensorsFile, open_safetensors
from almanac.files.store import safe_member
from almanac.files.strict_json import read_json

INDEX_SUFFIX = ".index.json"
_REMEDY = "The index and its shards do not belong together: obtain the whole folder again."


class ShardedSafetensors(Mapping[str, Tensor]):
    """Tensors by name over several files; as `SafetensorsFile` otherwise."""

    def __init__(self, shards: dict[str, SafetensorsFile], weight_map: dict[str, str]) -> None:
        self.shards = shards
        self._weight_map = weight_map

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of all shards together; a later shard's word counts."""
        return {key: text for shard in self.shards.values() for key, text in shard.metadata.items()}

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Dtype and shape of every tensor, without making it."""
        return {name: self.shards[shard].entries[name] for name, shard in self._weight_map.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.shards[self._weight_map[name]][name]

    def __contains__(self, name: object) -> bool:
        return name in self._weight_map

    def __iter__(self) -> Iterator[str]:
        return iter(self._weight_map)

    def __len__(self) -> int:
        return len(self._weight_map)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard file name from an index, every shard name checked to be a plain one inside its folder.

    Raises:
        FileFormatError: not an index. UnsafeFileError: a shard name that is not a plain safetensors file name.
    """
    tree = read_json(index)
    weight_map = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise FileFormatError(f"{quoted(index, limit=200)} has no weight_map from names to file names", remedy=_REMEDY)
    names: dict[str, str] = {}
    for shard in dict.fromkeys(weight_map.values()):
        safe_member(index.parent, shard)
        if "/" in shard or not shard.endswith(".safetensors"):
            raise UnsafeFileError(
                f"The index {quoted(index, limit=200)} names {quoted(shard)}, not a plain .safetensors file name",
                remedy="Use a model whose shards are safetensors files beside the index.",
            )
        twin = names.setdefault(unicodedata.normalize("NFKC", shard).casefold(), shard)
        if twin != shard:
            raise UnsafeFileError(
                f"The shard names {quoted(twin)} and {quoted(shard)} are one file on some systems", remedy=_REMEDY
            )
    return weight_map


def read_sharded(folder: str | os.PathLike[str], *, name: str = "model.safetensors") -> Mapping[str, Tensor]:
    """Open the weights of a model folder: the shards its index names, or the single file.

    Args:
        folder: the model folder.
        name: the single file's name; the index is that name with `.index.json` behind it.

    Returns:
        `ShardedSafetensors` or `SafetensorsFile`; both are mappings from name to tensor with `.entries`, `.metadata`.

    Raises:
        NotFoundError: no weights there, or a shard is missing.
        UnsafeFileError: only formats that can carry code are there, or the index leaves the folder.
        FileFormatError: a malformed file, or index and shards disagree.
    """
    root = Path(folder)
    index = root / f"{name}{INDEX_SUFFIX}"
    if not index.exists():
        if not (root / name).exists():
            _explain_absence(root, name)
        return open_safetensors(safe_member(root, name))
    weight_map = read_weight_map(safe_member(root, index.name))
    shards = {shard: open_safetensors(root / shard) for shard in sorted(set(weight_map.values()))}
    for shard, opened in shards.items():
        promised = {tensor for tensor, place in weight_map.items() if place == shard}
        if promised != set(opened):
            example = min(promised ^ set(opened))
            side = "the shard lacks it" if example in promised else "the index does not name it there"
            raise FileFormatError(
                f"{quoted(index, limit=200)} and its shard {quoted(shard)} disagree: {quoted(example)}, {side}",
                remedy=_REMEDY,
            )
    return ShardedSafetensors(shards, weight_map)


def _explain_absence(root: Path, name: str) -> None:
    unsafe = sorted(p.name for p in root.glob("*") if p.suffix.lower() in REFUSED_SUFFIXES)
    if unsafe:
        raise UnsafeFileError(
            f"{quoted(root, limit=200)} holds its weights only as {quoted(unsafe[0])}, a format that can run code",
            remedy="Convert it to safetensors in an isolated environment that you trust with the file.",
        )
    raise NotFoundError(
        f"{quoted(root, limit=200)} holds neither {name} nor {name}{INDEX_SUFFIX}",
        remedy="Name a folder that holds a model's safetensors files.",
    )
