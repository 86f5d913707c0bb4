"""The libraries that bear witness: optional, and quiet while they are imported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is an oracle (extra 'oracles' or 'bench')")


@pytest.fixture(scope="session")
def transformers() -> Any:
    return _imported("transformers")


@pytest.fixture(scope="session")
def peft(transformers: Any) -> Any:
    return _imported("peft")


@pytest.fixture(scope="session")
def gguf() -> Any:
    return _imported("gguf")


@pytest.fixture(scope="session")
def llama_cpp() -> Iterator[Any]:
    module = _imported("llama_cpp")
    yield module
    module._utils.outnull_file.close()  # it opens them on import and never closes them
    module._utils.errnull_file.close()
