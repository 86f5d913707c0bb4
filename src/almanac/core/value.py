"""A value: frozen, printable, comparable, and written to JSON and back without loss.

Specs, techniques, initialisers and runs are all values. A value names its own class by *kind*, the import path below
``almanac`` (``nn.linear.Linear.Spec``), so that no registry has to be edited when a new one is written.

Fields that equal their default are left out, so a field added later changes no digest. Equal neighbours in a tuple are
written once with a count: thirty equal layers read as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from almanac.core.errors import FileFormatError

KIND = "kind"
REPEAT, OF = "repeat", "of"
MAX_REPEAT = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """Base of every frozen keyword-only dataclass that is saved with a model or a run."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__slots__" in cls.__dict__:  # dataclasses(slots=True) makes a second class and would break `kind`
            raise TypeError(f"{cls.__qualname__}: a value must not use slots")

    @classmethod
    def kind(cls) -> str:
        """The import path of this class, without the leading ``almanac.`` and a trailing ``.Spec``."""
        path = f"{cls.__module__.removeprefix('almanac.')}.{cls.__qualname__}"
        return path.removesuffix(".Spec")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the kind first; fields equal to their default are left out."""
        out: dict[str, Any] = {KIND: self.kind()}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is not dataclasses.MISSING and _same(value, field.default):
                continue
            out[field.name] = _encode(value)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The value that ``to_dict`` wrote.

        Raises:
            FileFormatError: unknown kind or field, a missing field, or a kind that is not a ``cls``.
        """
        value = _decode(data)
        if not isinstance(value, cls):
            raise FileFormatError(
                f"Expected a {cls.__qualname__}, found kind {data.get(KIND)!r}",
                remedy="Check that the file was written by almanac and is the one you meant.",
            )
        return value

    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, as 64 hex digits."""
        text = json.dumps(_canonical(self.to_dict()), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields replaced. Raises TypeError for a field that does not exist."""
        return dataclasses.replace(self, **changes)


def _same(left: Any, right: Any) -> bool:
    numbers = {type(left), type(right)} == {int, float}  # 16 and 16.0 are one; True and 1 are not
    return (numbers or type(left) is type(right)) and left == right


def _canonical(data: Any) -> Any:
    """The same data with whole floats as integers, so that values that compare equal have one digest."""
    if isinstance(data, dict):
        return {name: _canonical(item) for name, item in cast("dict[str, Any]", data).items()}
    if isinstance(data, list):
        return [_canonical(item) for item in cast("list[Any]", data)]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def _encode(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, tuple):
        return _encode_sequence(cast("tuple[Any, ...]", value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a value's field may be a number, a string, None, a value or a tuple of these, not {value!r}")


def _encode_sequence(items: tuple[Any, ...]) -> list[Any]:
    out: list[Any] = []
    index = 0
    while index < len(items):
        end = index + 1
        while end < len(items) and isinstance(items[index], Value) and items[end] == items[index]:
            end += 1
        encoded = _encode(items[index])
        out.append({REPEAT: end - index, OF: encoded} if end - index > 1 else encoded)
        index = end
    return out


def _decode(data: Any) -> Any:
    if isinstance(data, Mapping):
        return _decode_value(cast("Mapping[str, Any]", data))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _decode_sequence(cast("Sequence[Any]", data))
    return data


def _decode_sequence(items: Sequence[Any]) -> tuple[Any, ...]:
    out: list[Any] = []
    for item in items:
        if isinstance(item, Mapping) and REPEAT in item:
            count = cast("Mapping[str, Any]", item)[REPEAT]
            if type(count) is not int or not 1 <= count <= MAX_REPEAT:
                raise FileFormatError(
                    f"A repeat count of {count!r}", remedy="The saved value is damaged; fetch it again."
                )
            out.extend([_decode(item[OF])] * count)
        else:
            out.append(_decode(item))
    return tuple(out)


def _decode_value(data: Mapping[str, Any]) -> Value:
    from almanac.core.catalog import resolve  # the catalog knows values; values need it only while decoding

    remedy = "Check that the file was written by this version of almanac."
    kind = data.get(KIND)
    if not isinstance(kind, str):
        raise FileFormatError(f"A saved value without {KIND!r}: fields {sorted(data)[:5]}", remedy=remedy)
    cls = resolve(kind, of=Value)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields) - {KIND})
    if unknown:
        raise FileFormatError(f"{kind} has no field {unknown[0]!r}", remedy=remedy)
    try:
        return cls(**{name: _decode(item) for name, item in data.items() if name != KIND})
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{kind}: {error}", remedy=remedy) from error
