"""GGUF metadata values and their kinds: how one is named, found from a Python value, and put into bytes.

A kind is a text: "uint8" ... "float64", "bool", "string", or "array:" before another kind. Kinds matter because readers
insist on them ("uint32" for a layer count) while a Python number has none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from almanac.core.errors import FileFormatError
from almanac.files.quoting import quoted

STRING_ID, ARRAY_ID, BOOL_ID = 8, 9, 7
MAX_ARRAY_DEPTH = 4
# number in the file -> (kind, struct code); numpy names its dtypes by the same kinds
SCALARS: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    BOOL_ID: ("bool", "B"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_IDS = {kind: number for number, (kind, _) in SCALARS.items()} | {"string": STRING_ID}
_CODES = dict(SCALARS.values())
_INTEGER_RANGES = (("int32", -(2**31), 2**31), ("uint32", 0, 2**32), ("int64", -(2**63), 2**63), ("uint64", 0, 2**64))


def infer_kind(value: object, key: str) -> str:
    """The kind to write `value` as when nobody says: numpy's own; uint32, int32 or wider for whole numbers; float32.

    Raises:
        FileFormatError: an empty list, mixed lists, or a value that GGUF has no kind for.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.name in _CODES:
        return f"array:{value.dtype.name}"
    if isinstance(value, np.generic) and value.dtype.name in _CODES:
        return value.dtype.name
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _integer_kind([value], key, narrow="uint32")
    if isinstance(value, float):
        return "float32"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return "array:" + _integer_kind(value, key, narrow="int32")
        kinds = {infer_kind(item, key) for item in value}
        if len(kinds) == 1:
            return f"array:{kinds.pop()}"
    raise FileFormatError(
        f"The kind of metadata {quoted(key)} cannot be told from its value {quoted(value)}",
        remedy='Name it in types, such as {"key": "array:string"}.',
    )


def _integer_kind(values: Sequence[int], key: str, *, narrow: str) -> str:
    low, high = min(values), max(values)
    ranges = sorted(_INTEGER_RANGES, key=lambda entry: entry[0] != narrow)
    for kind, start, stop in ranges:
        if start <= low and high < stop:
            return kind
    raise FileFormatError(f"Metadata {quoted(key)} holds a number beyond 64 bits", remedy="Store it as text.")


def encode_value(value: object, kind: str, *, key: str) -> bytes:
    """The bytes of a metadata value, its kind's number included. Raises FileFormatError if it does not fit the kind."""
    parts: list[bytes] = []
    try:
        parts.append(_kind_id(kind))
        _encode_body(value, kind, parts, depth=0)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(
            f"Metadata {quoted(key)} = {quoted(value)} cannot be written as {quoted(kind)}: {str(error)[:200]}",
            remedy="Give a value and a kind that go together.",
        ) from error
    return b"".join(parts)


def _kind_id(kind: str) -> bytes:
    number = ARRAY_ID if kind.startswith("array:") else _IDS.get(kind)
    if number is None:
        raise ValueError("there is no such kind")
    return number.to_bytes(4, "little")


def encode_text(text: str) -> bytes:
    """A GGUF string: u64 length, then UTF-8."""
    data = text.encode("utf-8")
    return len(data).to_bytes(8, "little") + data


def _encode_body(value: object, kind: str, parts: list[bytes], depth: int) -> None:
    if kind == "string":
        if not isinstance(value, str):
            raise TypeError("it is not text")
        parts.append(encode_text(value))
    elif kind.startswith("array:"):
        if depth == MAX_ARRAY_DEPTH or not isinstance(value, list | tuple | np.ndarray):
            raise TypeError(f"it is not a list, or nested deeper than {MAX_ARRAY_DEPTH}")
        inner = kind.removeprefix("array:")
        parts.append(_kind_id(inner) + len(value).to_bytes(8, "little"))
        if isinstance(value, np.ndarray) and value.dtype.name == inner:
            parts.append(np.ascontiguousarray(value).tobytes())
        else:
            for item in value:
                _encode_body(item, inner, parts, depth + 1)
    else:
        if kind == "bool" and not isinstance(value, bool | np.bool_):
            raise TypeError("it is neither True nor False")
        if kind != "bool" and isinstance(value, bool | np.bool_):
            raise TypeError("it is a truth value")
        number = value.item() if isinstance(value, np.generic) else value
        parts.append(struct.pack("<" + _CODES[kind], number))
