"""A folder in which the snippets of a page find what they talk about: a model, a GGUF file, documents, an assistant.

The alias of the embedded model leads to the toy as well, so that every snippet runs on every machine within seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from docs.pages import EMBEDDED
from docs.toy_model import language_model, write_documents

from almanac.assistant.build import build
from almanac.assistant.settings import BuildSettings
from almanac.files import hub
from almanac.files.store import write_json


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    lm = language_model()
    lm.save(folder / "my-model")
    lm.export(folder / "model.gguf", format="gguf", quantization="Q8_0")
    settings = BuildSettings(model=str(folder / "my-model"), encoder="", steps=1, questions=2)
    build(write_documents(folder / "handbook"), folder / "assistant", settings=settings)
    return folder


@pytest.fixture(scope="session")
def toy_cache(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model cache in which the toy passes for the embedded model."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / EMBEDDED).mkdir()
    file = cache / EMBEDDED / hub.PACKAGES[EMBEDDED].main
    shutil.copy(made / "model.gguf", file)
    status = file.stat()
    write_json(cache / EMBEDDED / hub.STAMP, {file.name: [status.st_size, status.st_mtime_ns]})
    return cache


@pytest.fixture
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy as the current folder."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def toys_only(toy_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias of the embedded model leads to the toy."""
    monkeypatch.setattr(hub, "cache_folder", lambda: toy_cache)
