"""A safetensors file as a mapping from name to tensor, over one copy-on-write mapping of the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError
from almanac.files.mapped import map_file
from almanac.files.quoting import quoted
from almanac.files.refuse import refuse_name
from almanac.files.safetensors.header import Header, TensorEntry, header_length, parse_header


class SafetensorsFile(Mapping[str, Tensor]):
    """Tensors by name, each made when asked for, on the CPU, sharing the file's pages.

    Changing a tensor in place changes this process's copy of the page only, and later look-ups of the same tensor see
    it; the file stays as it is. A missing name is a KeyError, as in any mapping.
    """

    def __init__(self, header: Header, data: Tensor) -> None:
        self.header = header
        self._data = data  # uint8 [file_bytes]

    @property
    def metadata(self) -> dict[str, str]:
        """The header's texts."""
        return self.header.metadata

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Dtype and shape of every tensor, without making it."""
        return self.header.tensors

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.tensors[name]
        start = self.header.data_start + entry.start
        raw = self._data[start : self.header.data_start + entry.end]
        if entry.dtype is torch.bool and raw.numel() and int(raw.max()) > 1:
            raise FileFormatError(
                f"BOOL tensor {quoted(name)} of {quoted(self.header.path, limit=200)} holds bytes other than 0 and 1",
                remedy="The file is damaged: obtain it again.",
            )
        if start % entry.dtype.itemsize:
            raw = raw.clone()  # torch cannot look at, say, a float that starts at an odd address
        return raw.view(entry.dtype).reshape(entry.shape)

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Map a safetensors file after checking its whole header. Nothing but the header is read.

    Raises:
        NotFoundError, UnsafeFileError, FileFormatError, UnsupportedError: as `read_header`.
    """
    refuse_name(path)
    data = map_file(path)
    size = data.numel()
    length = header_length(path, data[:512].numpy().tobytes(), file_bytes=size)
    return SafetensorsFile(parse_header(path, data[8 : 8 + length].numpy().tobytes(), file_bytes=size), data)
