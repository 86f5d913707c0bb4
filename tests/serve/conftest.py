"""One assistant for all tests of the server; those that change its documents make their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from serve.world import assistant_in

from almanac.assistant.ask import Assistant


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return assistant_in(tmp_path_factory.mktemp("assistant"))


@pytest.fixture
def own_assistant(tmp_path: Path) -> Assistant:
    return assistant_in(tmp_path)
