"""Checkpoints whose weights are written in fewer bits than a float: what a method's tensors stand for, as dense ones.

``quantization_config`` of config.json names the method. One that is read here is one file, ``packed_<method>.py``, that
declares a ``PACKING`` and is found by import, so that adding one edits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core.errors import FileFormatError
from almanac.models.family import Fields, declared

SETTINGS = "quantization_config"


@dataclass(frozen=True)
class Packing:
    """A method.

    - ``method``: its ``quant_method``
    - ``read(settings, source) -> tensors``: those of the files -> those that an unquantized folder of the same family would
      hold, each made when asked for. Raises UnsupportedError for settings that are known and not read, FileFormatError for
      tensors that do not fit them.
    """

    method: str
    read: Callable[[Fields, Mapping[str, Tensor]], Mapping[str, Tensor]]


class Made(Mapping[str, Tensor]):
    """Tensors by name, each made when asked for, and each time anew."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def packings() -> dict[str, Packing]:
    """All methods by name."""
    return {packing.method: packing for packing in declared("PACKING", Packing)}


def packing_of(config: Mapping[str, Any], folder: Path, known: Mapping[str, Packing]) -> Packing | None:
    """How the weights of a folder are packed; None where they are plain. Raises FileFormatError for one not ``known``."""
    if not (told := config.get(SETTINGS) or config.get("compression_config")):
        return None
    method = told.get("quant_method") if isinstance(told, dict) else told
    if config.get(SETTINGS) and isinstance(told, dict) and isinstance(method, str) and method in known:
        return known[method]
    read = f"Read are {' and '.join(sorted(known))}; else fetch" if known else "Fetch"
    raise FileFormatError(
        f"{folder} holds weights quantized by {method!r}, which this reader would take for something else",
        remedy=f"{read} the unquantized model or a GGUF file of it.",
    )


def unpacked(config: Mapping[str, Any], folder: Path, source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The dense tensors of a folder that holds ``source``. Raises as `packing_of` and as the method's own reader."""
    if (packing := packing_of(config, folder, packings())) is None:
        return source
    return packing.read(Fields(config[SETTINGS], f"{folder / 'config.json'}: {SETTINGS}"), source)
