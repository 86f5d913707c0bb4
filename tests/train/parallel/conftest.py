"""One group of processes of each size for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from train.parallel.group import Group, group_of


@pytest.fixture(scope="session")
def two() -> Iterator[Group]:
    with group_of(2) as group:
        yield group


@pytest.fixture(scope="session")
def four() -> Iterator[Group]:
    with group_of(4) as group:
        yield group
