"""One way to open a foreign file: a regular file, sized by its own descriptor, mapped copy-on-write.

The mapping is private and writable: tensors over it cost no memory until they are read, an in-place change stays in
this process, and the file on disk is never altered. It is made from the descriptor whose size was checked, so a file
swapped in between cannot slip past the checks. A file that another process cuts short while it is mapped would end
this process with SIGBUS; writers that replace files whole (`store.write_atomic`) never do that.
"""

from __future__ import annotations

import mmap
import os
import platform
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, NotFoundError, UnsupportedError
from almanac.files.quoting import quoted

# Without it the kernel counts a private writable mapping against memory and refuses a file larger than RAM.
# Python 3.11 does not export the flag; 0x4000 is its value on these machines.
_NO_RESERVE = 0x4000 if sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64", "riscv64"} else 0


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[int, int]]:
    """Open a regular file for reading; gives (descriptor, size in bytes) and closes it afterwards.

    Raises:
        NotFoundError: nothing can be opened there.
        FileFormatError: it is a folder, device, pipe or socket.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"{quoted(path, limit=200)} cannot be opened: {error.args[-1]}",
            remedy="Check the path and your permission to read it.",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{quoted(path, limit=200)} is not a regular file", remedy="Name a file.")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_at_most(path: str | os.PathLike[str], count_bytes: int) -> tuple[bytes, int]:
    """The first `count_bytes` bytes of a regular file (fewer if it is shorter) and its size in bytes."""
    with open_regular(path) as (descriptor, size), os.fdopen(os.dup(descriptor), "rb") as stream:
        return stream.read(min(count_bytes, size)), size


def map_file(path: str | os.PathLike[str]) -> Tensor:
    """The whole file as a uint8 tensor [file_bytes], without reading it; changes to it never reach the disk.

    Raises:
        NotFoundError: nothing can be opened there.
        FileFormatError: it is empty or not a regular file.
        UnsupportedError: this machine stores numbers big end first, or its limits forbid so large a mapping.
    """
    if sys.byteorder != "little":
        raise UnsupportedError(
            "Model files store numbers little end first and this machine does not",
            remedy="Convert and run the model on a little-endian machine.",
        )
    with open_regular(path) as (descriptor, size):
        if size == 0:
            raise FileFormatError(f"{quoted(path, limit=200)} is empty", remedy="Obtain the file again.")
        try:
            view = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise UnsupportedError(
                f"{quoted(path, limit=200)} with its {size} bytes cannot be mapped here: {error.strerror}",
                remedy="Raise this process's address-space limit (ulimit -v), or use a smaller file.",
            ) from error
    return torch.frombuffer(view, dtype=torch.uint8)  # keeps the mapping alive
