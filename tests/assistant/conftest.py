"""A toy assistant, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from language_model.small import language_model

from almanac.assistant.build import build
from almanac.assistant.settings import BuildSettings

TOPICS = ("valve", "filter", "pump", "lamp", "motor", "fan")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assistant on six documents, its model a toy; not to be changed."""
    root = tmp_path_factory.mktemp("built")
    model = language_model("llama", max_position_embeddings=1024).save(root / "toy")
    (root / "docs").mkdir()
    for topic in TOPICS:
        (root / "docs" / f"{topic}.md").write_text(
            f"# The {topic}\n\nThe {topic} is a part of the engine that keeps the machine running.\n\n"
            f"## How to clean the {topic}\n\nTo clean the {topic}, use warm water and a soft brush.\n"
        )
    settings = BuildSettings(
        model=str(model), encoder="", steps=1, step_tokens=512, questions=2, answer_tokens=8, rank=2
    )
    return build(root / "docs", root / "assistant", settings=settings)


@pytest.fixture
def assistant_folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(built, tmp_path / "assistant"))
