"""The error tree: drawn in the docstring, and every error a cause with a remedy."""

from __future__ import annotations

import re

import pytest

from almanac.core import errors
from almanac.core.errors import AlmanacError


def classes() -> dict[str, type[AlmanacError]]:
    return {name: item for name, item in vars(errors).items() if isinstance(item, type)}


def test_the_drawing_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in str(errors.__doc__).splitlines():
        found = re.match(r"^([│├└─ ]*)(\w*Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            parents = [*parents[:depth], found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {name: item.__bases__[0].__name__ for name, item in classes().items()}


@pytest.mark.parametrize("cls", classes().values())
def test_every_error_has_cause_and_remedy(cls: type[AlmanacError]) -> None:
    error = cls("It broke.", remedy="Mend it.")
    assert (error.cause, error.remedy) == ("It broke.", "Mend it.")
    assert str(error) == "It broke. Mend it."
    assert cls.__doc__
    with pytest.raises(TypeError):
        cls("It broke.")  # type: ignore[call-arg]
