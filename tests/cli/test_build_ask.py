"""``almanac build`` and ``almanac ask`` over small stand-ins for the assistant: what is passed on and what is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from almanac.assistant.ask import Answer
from almanac.assistant.grounding import Citation
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import TrainingError
from almanac.data.grounded import Passage

FIGURES = {
    "before": {"assistant": {"answer_f1": {"mean": 0.25, "low": 0.1, "high": 0.4}, "exact_match": None}},
    "after": {"assistant": {"answer_f1": {"mean": 0.5, "low": 0.4, "high": 0.6}, "exact_match": None}},
}
CITATION = Citation(
    number=1, document="pump.md", title="Pumps", heading=("Care", "Filter"), page=4, quote="Change it every two months.",
    start=10, end=37, support=0.8,
)  # fmt: skip
PASSAGE = Passage("p1", "pump.md", "Pumps", ("Care", "Filter"), "Use water. Change it every two months.", 4, 0)
ANSWER = Answer("When?", "Every two months [1]", False, (CITATION,), (PASSAGE,), confidence=0.75)
DECLINED = Answer("Why?", "They do not tell.", True, (), (), "no passage matches")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An assistant that answers one way, and what it heard."""
    heard = SimpleNamespace(answer=ANSWER, folder=None, question=None)

    def ask(question: str, on_text: Callable[[str], None] | None = None) -> Any:
        heard.question = question
        if on_text is not None:
            on_text("a draft that nobody checked")
        return heard.answer

    def open_assistant(folder: Path) -> Any:
        heard.folder = folder
        return SimpleNamespace(ask=ask)

    module = ModuleType("almanac.assistant.ask")
    vars(module)["open_assistant"] = open_assistant
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return heard


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A build that reports two stages and writes its figures."""
    heard = SimpleNamespace(docs=None, settings=None, interrupt=False, stopped_run=False, ctrl_c=False)

    def build(docs: Path, output: Path, *, settings: BuildSettings, report: Callable[[Any], None]) -> Path:
        heard.docs, heard.settings = docs, settings
        report(SimpleNamespace(stage="read", done=1, total=1, note="done", seconds=0.1))
        if heard.interrupt:
            raise KeyboardInterrupt
        if heard.stopped_run:
            before = signal.signal(signal.SIGINT, lambda number, frame: None)
            if heard.ctrl_c:
                signal.raise_signal(signal.SIGINT)
            signal.signal(signal.SIGINT, before)
            raise TrainingError("The run was stopped", remedy="Start it again.")
        report(SimpleNamespace(stage="adapt", done=60, total=60, note="done", seconds=3.0))
        output.mkdir()
        (output / "evaluations.json").write_text(json.dumps(FIGURES))
        return output

    module = ModuleType("almanac.assistant.build")
    vars(module)["build"] = build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return heard


def test_a_build_shows_its_stages_and_its_figures(
    almanac: Callable[..., Any], built: SimpleNamespace, tmp_path: Path
) -> None:
    result = almanac("build", tmp_path, "--output", tmp_path / "out")
    assert (result.code, built.docs, built.settings) == (0, tmp_path, BuildSettings())
    assert result.err.splitlines() == ["read: done (0.1 s)", "adapt: 60/60 done (3.0 s)"]
    assert result.out.splitlines()[1:3] == ["answer_f1           0.25    0.50", "exact_match         -       -"]
    assert f'almanac ask {tmp_path / "out"} "..."' in result.out


def test_every_dial_of_a_build_is_passed_on(
    almanac: Callable[..., Any], built: SimpleNamespace, tmp_path: Path
) -> None:
    words = ["--model", "my-model", "--steps", "7", "--seed", "3"]
    result = almanac("build", tmp_path, "--output", tmp_path / "out", *words, "--json")
    assert built.settings == BuildSettings(model="my-model", steps=7, seed=3)
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["event"] for event in events] == ["stage", "stage", "done"]
    assert events[-1]["output"] == str(tmp_path / "out")
    assert events[-1]["figures"] == {"answer_f1": [0.25, 0.5], "exact_match": [None, None]}
    assert result.err == ""


def test_no_steps_are_no_build(almanac: Callable[..., Any], built: SimpleNamespace, tmp_path: Path) -> None:
    result = almanac("build", tmp_path, "--output", tmp_path / "out", "--steps", "0")
    assert result.code == 2 and "--steps" in result.err and built.settings is None


def test_a_stopped_build_says_that_it_goes_on(
    almanac: Callable[..., Any], built: SimpleNamespace, tmp_path: Path
) -> None:
    built.interrupt = True
    result = almanac("build", tmp_path, "--output", tmp_path / "out")
    assert result.code == 130
    assert "read: done" in result.err and "goes on where it was" in result.err


@pytest.mark.parametrize(("ctrl_c", "code"), [(True, 130), (False, 1)])
def test_a_run_that_took_ctrl_c_as_a_request_counts_as_interrupted(
    almanac: Callable[..., Any], built: SimpleNamespace, tmp_path: Path, ctrl_c: bool, code: int
) -> None:
    built.stopped_run = True
    built.ctrl_c = ctrl_c
    result = almanac("build", tmp_path, "--output", tmp_path / "out")
    assert result.code == code and ("goes on where it was" in result.err) is ctrl_c


def test_an_answer_comes_with_its_sources_and_never_with_its_draft(
    almanac: Callable[..., Any], asked: SimpleNamespace, tmp_path: Path
) -> None:
    result = almanac("ask", tmp_path, "When must the filter be changed?")
    assert (result.code, asked.folder, asked.question) == (0, tmp_path, "When must the filter be changed?")
    assert result.out.splitlines() == [
        "Every two months [1]", "", "[1] pump.md > Care > Filter, page 4", '    "Change it every two months."',
    ]  # fmt: skip
    assert "draft" not in result.out + result.err


def test_an_answer_for_machines_has_every_field(
    almanac: Callable[..., Any], asked: SimpleNamespace, tmp_path: Path
) -> None:
    found = json.loads(almanac("ask", tmp_path, "When?", "--json").out)
    assert {name: found[name] for name in ("question", "answer", "declined", "reason", "confidence")} == {
        "question": "When?", "answer": "Every two months [1]", "declined": False, "reason": "", "confidence": 0.75,
    }  # fmt: skip
    assert found["citations"] == [
        {
            "number": 1, "document": "pump.md", "title": "Pumps", "heading": ["Care", "Filter"], "page": 4,
            "quote": "Change it every two months.", "start": 10, "end": 37, "score": 0.8,
        }
    ]  # fmt: skip
    assert found["passages"][0]["text"] == PASSAGE.text and found["passages"][0]["end"] == len(PASSAGE.text)


def test_a_declined_answer_says_why(almanac: Callable[..., Any], asked: SimpleNamespace, tmp_path: Path) -> None:
    asked.answer = DECLINED
    result = almanac("ask", tmp_path, "Why?")
    assert (result.code, result.out) == (0, "They do not tell.\n(no passage matches)\n")


def test_a_question_may_come_through_stdin(
    almanac: Callable[..., Any], asked: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("When?\n"))
    almanac("ask", tmp_path, "-")
    assert asked.question == "When?"


def test_documents_cannot_command_the_terminal(
    almanac: Callable[..., Any], asked: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    citation = dataclasses.replace(CITATION, quote="a\x1b]0;owned\x07b")
    asked.answer = dataclasses.replace(ANSWER, citations=(citation,))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    almanac("ask", tmp_path, "When?")
    assert "\x1b" not in screen.getvalue() and "owned" in screen.getvalue()
