"""Formats that can run code, or that need an unpacker, are recognised by name and by first bytes and never opened.

This is a courtesy, not the defence: the defence is that no reader here evaluates anything, whatever a file is called.
The check only turns "malformed header" into the reason and the way out.
"""

from __future__ import annotations

import os
from pathlib import Path

from almanac.core.errors import UnsafeFileError
from almanac.files.quoting import quoted

REFUSED_SUFFIXES = frozenset(
    ".bin .pt .pth .ckpt .pkl .pickle .dill .npy .npz .joblib .h5 .hdf5 .keras .nemo .mar .t7".split()
)
_MAGIC = {
    b"PK\x03\x04": "a zip archive (a torch, keras or npz checkpoint)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x93NUMPY": "a numpy array file, which may hold pickles",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, whose Keras layers may hold code",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    **{b"\x80" + bytes([protocol]): "a pickle" for protocol in range(2, 6)},
}
_REMEDY = "Convert it to safetensors in an isolated environment that you trust with the file, then load that."


def refuse_name(path: str | os.PathLike[str]) -> None:
    """Raise UnsafeFileError if the name says that the file is of a refused kind. Touches nothing."""
    suffix = Path(path).suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise UnsafeFileError(
            f"{quoted(path, limit=200)} is a {suffix} file, a format that can run code when it is loaded",
            remedy=_REMEDY,
        )


def refuse_content(path: str | os.PathLike[str], head: bytes) -> None:
    """Raise UnsafeFileError if the first bytes (at least 9, better 512) are those of a refused format.

    A safetensors file begins with the length of its header, and a length may look like a magic number (640 is a
    pickle's), but its ninth byte opens a JSON object, which none of the others has there by rule.
    """
    if head[8:9] == b"{":
        return
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is not None:
        raise UnsafeFileError(f"{quoted(path, limit=200)} is {kind}, whatever its name says", remedy=_REMEDY)
