"""JSON from untrusted files: bounded before it is parsed, and never two meanings.

Refused, beyond what is not JSON: duplicate keys (readers disagree on which one counts), NaN and infinities, numbers
that overflow to infinity, lone surrogates, nesting deeper than `max_depth`, more than `max_values` values. Depth and
count are found by a scan that allocates no more than the text itself, so a bomb is refused before objects are made.
"""

from __future__ import annotations

import json
import os
from typing import NoReturn

import numpy as np

from almanac.core.errors import FileFormatError
from almanac.files.mapped import read_at_most
from almanac.files.quoting import quoted

_REMEDY = "The file is damaged or was made to mislead: obtain it again from its source."
_CHUNK_BYTES = 1 << 20


class _Malformed(ValueError):
    """What a hook of the parser objects to; becomes FileFormatError in `parse_json`."""


def _unique_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Malformed(f"the key {quoted(key)} appears twice")
            seen.add(key)
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise _Malformed(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Malformed("a number is too large")
    return value


def _check_structure(data: bytes, max_depth: int, max_values: int) -> None:
    # With escaped backslashes and quotes gone, every quote opens or closes a string.
    codes = np.frombuffer(data.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), dtype=np.uint8)
    values, depth, in_string = 1, 0, np.False_
    for start in range(0, len(codes), _CHUNK_BYTES):
        piece = codes[start : start + _CHUNK_BYTES]
        inside = np.bitwise_xor.accumulate(piece == ord('"')) ^ in_string
        in_string = inside[-1]
        outside = piece[~inside]
        opens, closes = (outside == ord("[")) | (outside == ord("{")), (outside == ord("]")) | (outside == ord("}"))
        values += int(opens.sum()) + int((outside == ord(",")).sum())
        if values > max_values:
            raise _Malformed(f"it holds more than {max_values} values")
        depths = depth + np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int64)
        if depths.size and depths.max() > max_depth:
            raise _Malformed(f"it is nested deeper than {max_depth} levels")
        depth = int(depths[-1]) if depths.size else depth


def _check_surrogates(tree: object) -> None:
    pending: list[object] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            node.encode("utf-8")  # raises UnicodeEncodeError, a ValueError, on a lone surrogate
        elif isinstance(node, dict):
            pending.extend(node.keys())
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def parse_json(data: bytes, *, source: str, max_depth: int = 64, max_values: int = 1 << 22) -> object:
    """Parse UTF-8 JSON strictly.

    Args:
        data: the text's bytes.
        source: what to call it in errors.
        max_depth: deepest nesting of arrays and objects.
        max_values: most values (members of arrays and objects) in all.

    Raises:
        FileFormatError: it is not JSON, or is refused for one of the reasons at the head of this file.
    """
    try:
        _check_structure(data, max_depth, max_values)
        tree: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
        if b"\\u" in data:
            _check_surrogates(tree)
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8, bad JSON and over-long integers
        raise FileFormatError(f"{source} is not acceptable JSON: {str(error)[:200]}", remedy=_REMEDY) from error
    return tree


def read_json(path: str | os.PathLike[str], *, max_bytes: int = 256 << 20, max_depth: int = 64) -> object:
    """Read one JSON file strictly; see `parse_json`.

    Raises:
        NotFoundError: nothing can be opened there.
        FileFormatError: larger than `max_bytes`, or refused by `parse_json`.
    """
    data, size = read_at_most(path, max_bytes)
    if size > max_bytes:
        raise FileFormatError(
            f"{quoted(path, limit=200)} holds {size} bytes, more than the {max_bytes} allowed for it", remedy=_REMEDY
        )
    return parse_json(data, source=quoted(path, limit=200), max_depth=max_depth)
