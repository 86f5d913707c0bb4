"""What every test shares: one thread per worker, seeded property tests, and a random state that no test inherits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and two workers share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tests draw the same numbers whatever ran before them."""
    torch.manual_seed(0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the checks of `parity.Parity` on every case of the class that has them."""
    cases = vars(metafunc.cls).get("cases") if metafunc.cls is not None else None
    if cases and "case" in metafunc.fixturenames:
        metafunc.parametrize("case", sorted(cases), scope="class")
