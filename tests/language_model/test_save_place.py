"""Saving never takes the place of what is no model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from language_model import small

from almanac.core.errors import UnsupportedError


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("kept")
    with pytest.raises(UnsupportedError, match="no model folder"):
        small.language_model().save(tmp_path / "letters")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "kept"
    (tmp_path / "note").write_text("kept")
    with pytest.raises(UnsupportedError):
        small.language_model().save(tmp_path / "note")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "note"]


def test_an_empty_folder_and_an_older_model_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    small.language_model().save(tmp_path / "model")
    small.language_model(seed=3).save(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
