"""The main job end to end on a toy: documents in, an assistant out, asked, stopped and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.assistant.settings import BuildSettings
from almanac.cli.build import Making

PARTS = ("pump", "valve", "filter", "motor", "sensor", "gasket")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Six small handbooks."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for index, part in enumerate(PARTS):
        sections = "\n\n".join(
            f"## {topic} of the {part}\n\nThe {topic.lower()} of the {part} is done by team {letter}{index} every "
            f"{index + number} weeks. It takes {number} hours and needs tool number {10 * index + number}."
            for number, (topic, letter) in enumerate([("Cleaning", "A"), ("Repair", "B"), ("Inspection", "C")], start=2)
        )
        (folder / f"{part}.md").write_text(f"# Handbook of the {part}\n\n{sections}\n")
    return folder


def test_documents_become_an_assistant_that_cites_them(
    almanac: Callable[..., Any], blunt_model: Path, docs: Path, tmp_path: Path
) -> None:
    words = [
        "build",
        docs,
        "--output",
        tmp_path / "out",
        "--model",
        blunt_model,
        "--steps",
        "2",
        "--words-only",
        "--json",
    ]
    first = almanac(*words)
    assert first.code == 0, first.err
    events = [json.loads(line) for line in first.out.splitlines()]
    stages = list(dict.fromkeys(event["stage"] for event in events if event["event"] == "stage"))
    assert next(stage for stage in stages if stage != "model") == "read" and stages[-1] == "card"
    assert events[-1]["settings"]["steps"] == 2 and len(events[-1]["figures"]["answer_f1"]) == 2

    again = [json.loads(line) for line in almanac(*words).out.splitlines()]
    notes = {event["stage"]: event["note"] for event in again if event["event"] == "stage"}
    assert notes["adapt"] == notes["after"] == "done before"

    answer = json.loads(almanac("ask", tmp_path / "out", "Who cleans the pump?", "--json").out)
    assert set(answer) == {"question", "answer", "declined", "reason", "confidence", "citations", "passages"}
    for citation in answer["citations"]:
        assert citation["quote"] in (docs / citation["document"]).read_text()
    shown = almanac("ask", tmp_path / "out", "Who cleans the pump?")
    assert shown.code == 0 and shown.out.splitlines()[0] == answer["answer"]


def test_an_unfinished_assistant_says_how_to_finish_it(almanac: Callable[..., Any], tmp_path: Path) -> None:
    result = almanac("ask", tmp_path, "Who?")
    assert result.code == 2 and f"almanac build DOCS --output {tmp_path}" in result.err


def test_no_documents_are_the_users_error(almanac: Callable[..., Any], tmp_path: Path) -> None:
    assert almanac("build", tmp_path / "nothing", "--output", tmp_path / "out").code == 2


def test_the_help_tells_the_defaults_of_a_build() -> None:
    settings = BuildSettings()
    told = str(Making.__doc__)
    assert f"by default `{settings.model}`" in told and f"by default {settings.steps}" in told
    assert Making().settings() == settings
