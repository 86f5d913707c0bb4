"""A position in a GGUF header that cannot leave it: every length is compared with what is left before it is used."""

from __future__ import annotations

import os
import struct

import numpy as np

from almanac.core.errors import FileFormatError
from almanac.files.gguf.values import ARRAY_ID, BOOL_ID, MAX_ARRAY_DEPTH, SCALARS, STRING_ID
from almanac.files.quoting import quoted

MAX_ARRAY_STRINGS = 1 << 24
MAX_NAME_BYTES = 65535  # the format's limit for keys, used for tensor names too
REMEDY = "The file is damaged, incomplete or made to mislead: obtain it again from its source and compare its digest."


def fault(path: str | os.PathLike[str], what: str) -> FileFormatError:
    """The error for a file that is not what it claims."""
    return FileFormatError(f"{quoted(path, limit=200)} is not a sound GGUF file: {what}", remedy=REMEDY)


class Cursor:
    """Reads little-endian values from `view` (bytes), advancing `position`, never beyond `end`."""

    def __init__(self, path: str | os.PathLike[str], view: memoryview, end: int) -> None:
        self.path = path
        self.view = view
        self.end = end
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return self.end - self.position

    def take(self, count_bytes: int, what: str) -> memoryview:
        """The next bytes. Raises FileFormatError if fewer are left."""
        if count_bytes > self.remaining:
            raise fault(self.path, f"{what} takes {count_bytes} bytes and {self.remaining} are left for the header")
        start = self.position
        self.position += count_bytes
        return self.view[start : self.position]

    def number(self, code: str, what: str) -> int:
        """One number of the struct code `code`."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize(code), what))
        return value

    def name(self, what: str) -> str:
        """A key or tensor name: 1 to 65535 bytes of UTF-8."""
        length = self.number("Q", what)
        if not 1 <= length <= MAX_NAME_BYTES:
            raise fault(self.path, f"{what} is {length} bytes long, and 1 to {MAX_NAME_BYTES} are allowed")
        return self._decode(self.take(length, what), what)

    def value(self, what: str) -> tuple[object, str]:
        """A metadata value with its kind before it: (value, kind); see `values` for kinds.

        Numbers and truth values become Python's, strings `str`, arrays of numbers numpy arrays (copies), other arrays
        lists.
        """
        return self._body(self.number("I", what), what, depth=0)

    def _body(self, type_id: int, what: str, depth: int) -> tuple[object, str]:
        if type_id == STRING_ID:
            return self._decode(self.take(self.number("Q", what), what), what), "string"
        if type_id == ARRAY_ID:
            return self._array(what, depth)
        if type_id not in SCALARS:
            raise fault(self.path, f"{what} is of the unknown kind {type_id}")
        kind, code = SCALARS[type_id]
        number = self.number(code, what)
        if type_id == BOOL_ID:
            if number > 1:
                raise fault(self.path, f"{what} is a truth value of {number}")
            return bool(number), kind
        return number, kind

    def _array(self, what: str, depth: int) -> tuple[object, str]:
        type_id, count = self.number("I", what), self.number("Q", what)
        if type_id == STRING_ID:
            return self._strings(count, what), "array:string"
        if type_id == ARRAY_ID:
            return self._nested(count, what, depth)
        if type_id not in SCALARS:
            raise fault(self.path, f"{what} is an array of the unknown kind {type_id}")
        kind, _ = SCALARS[type_id]
        stored = np.dtype(np.uint8 if type_id == BOOL_ID else kind)
        numbers = np.frombuffer(self.take(count * stored.itemsize, what), dtype=stored.newbyteorder("<"))
        if type_id == BOOL_ID and numbers.size and numbers.max() > 1:
            raise fault(self.path, f"{what} holds a truth value of {numbers.max()}")
        return numbers.astype(kind), f"array:{kind}"

    def _nested(self, count: int, what: str, depth: int) -> tuple[object, str]:
        if depth + 1 >= MAX_ARRAY_DEPTH:
            raise fault(self.path, f"{what} is nested deeper than {MAX_ARRAY_DEPTH} arrays")
        members = [self._array(what, depth + 1) for _ in range(count)]
        kinds = sorted({kind for _, kind in members})
        if len(kinds) > 1:
            raise fault(self.path, f"{what} mixes arrays of different kinds")
        return [value for value, _ in members], f"array:{kinds[0] if kinds else 'array:uint8'}"

    def _strings(self, count: int, what: str) -> list[str]:
        """`count` strings; written out as one loop, because a vocabulary has a hundred thousand of them."""
        if count > MAX_ARRAY_STRINGS or count * 8 > self.remaining:
            raise fault(self.path, f"{what} declares {count} strings and {self.remaining} bytes are left")
        view, position, end = self.view, self.position, self.end
        length_at = struct.Struct("<Q").unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                (length,) = length_at(view, position)
                start = position + 8
                position = start + length
                if position > end:
                    raise fault(self.path, f"a string of {what} is {length} bytes long and {end - start} are left")
                strings.append(str(view[start:position], "utf-8"))
        except (struct.error, UnicodeDecodeError) as error:
            raise fault(self.path, f"{what} holds a string that is cut off or not UTF-8") from error
        self.position = position
        return strings

    def _decode(self, data: memoryview, what: str) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise fault(self.path, f"{what} is not UTF-8") from error
