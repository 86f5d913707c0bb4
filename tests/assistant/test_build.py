"""The main job on a toy model: all stages, citations that can be followed, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from language_model.small import language_model

from almanac.assistant.ask import open_assistant
from almanac.assistant.build import build
from almanac.assistant.settings import BuildSettings
from almanac.core.errors import AlmanacError, LockedError, NotFoundError, UnsupportedError
from almanac.files.stages import StageEvent
from almanac.files.store import Lock
from almanac.language_model.certify import verify_model

TOPICS = ("valve", "filter", "pump", "lamp", "motor", "fan")


class StoppedHere(Exception):
    """Stands for a kill between two progress reports."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model("llama", max_position_embeddings=1024).save(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for topic in TOPICS:
        (folder / f"{topic}.md").write_text(
            f"# The {topic}\n\nThe {topic} is a part of the engine that keeps the machine running.\n\n"
            f"## How to clean the {topic}\n\nTo clean the {topic}, use warm water and a soft brush.\n\n"
            f"## Life of the {topic}\n\nThe {topic} lasts for about seven years in normal service.\n"
        )
    (folder / "broken.md").write_bytes(bytes(range(256)) * 20)
    return folder


def settings(model: Path, **changes: object) -> BuildSettings:
    return BuildSettings(
        model=str(model), encoder="", steps=2, step_tokens=512, questions=3, answer_tokens=8, rank=2
    ).with_(**changes)


def test_build_makes_an_assistant_that_can_be_asked(model: Path, docs: Path, tmp_path: Path) -> None:
    events: list[StageEvent] = []
    out = build(docs, tmp_path / "assistant", settings=settings(model), report=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert [s for s in stages if s not in ("model", "card")] + ["card"] == [
        "read",
        "index",
        "examples",
        "before",
        "starter",
        "adapt",
        "compress",
        "after",
        "card",
    ]
    assert verify_model(out / "model")["new"] is False
    evaluations = json.loads((out / "evaluations.json").read_text())
    assert evaluations["before"]["questions"] == evaluations["after"]["questions"] > 0
    provenance = json.loads((out / "provenance.json").read_text())
    assert set(provenance["documents"]) == {f"{topic}.md" for topic in TOPICS}
    assert provenance["skipped"][0][0] == "broken.md"
    assert [step["step"] for step in provenance["compress"]["parity"]] == ["fold", "compress.quantize.int8"]
    assert "broken" not in (out / "card.md").read_text() and "1 skipped" in (out / "card.md").read_text()
    answer = open_assistant(out).ask("How to clean the pump?")
    assert answer.passages[0].document == "pump.md"
    for citation in answer.citations:
        text = open_assistant(out).index.document(citation.document).text
        assert text[citation.start : citation.end] == citation.quote
    nothing = open_assistant(out).ask("Zzyzx qwrtp?")
    assert nothing.declined and nothing.reason == "no passage matches the question"


def test_held_out_documents_are_never_trained_on(model: Path, docs: Path, tmp_path: Path) -> None:
    out = build(docs, tmp_path / "assistant", settings=settings(model))
    asked = {answer["question"] for answer in json.loads((out / "evaluations.json").read_text())["after"]["answers"]}
    from almanac.assistant.build import _Build

    again = _Build(docs, out, settings(model), lambda event: None)
    train, held_out = again._examples()
    documents = [{p.document for e in part if e.answerable for p in e.passages} for part in (train, held_out)]
    assert documents[0] and documents[1] and not documents[0] & documents[1]
    assert asked == {example.question for example in held_out}


@pytest.mark.parametrize("stage", ["index", "before", "adapt", "compress", "after"])
def test_a_stopped_build_goes_on_where_it_was(model: Path, docs: Path, tmp_path: Path, stage: str) -> None:
    chosen, out = settings(model), tmp_path / "assistant"

    def stopping(event: StageEvent) -> None:
        if event.stage == stage:
            raise StoppedHere

    with pytest.raises(StoppedHere):
        build(docs, out, settings=chosen, report=stopping)
    with pytest.raises(NotFoundError, match="no finished assistant"):
        open_assistant(out)
    done: list[str] = []
    build(docs, out, settings=chosen, report=lambda event: done.append(f"{event.stage} {event.note}"))
    before = ["read", "index", "examples", "before", "starter", "adapt", "compress", "after"]
    repeated = [name for name in before if f"{name} done before" in done]
    assert repeated == before[: before.index(stage)]
    straight = build(docs, tmp_path / "straight", settings=chosen)
    first, second = (json.loads((root / "evaluations.json").read_text()) for root in (out, straight))
    assert first["after"]["answers"] == second["after"]["answers"]


def test_a_second_build_repeats_nothing_and_a_changed_document_repeats_all(
    model: Path, docs: Path, tmp_path: Path
) -> None:
    out, chosen = tmp_path / "assistant", settings(model)
    build(docs, out, settings=chosen)
    notes: list[str] = []
    build(docs, out, settings=chosen, report=lambda event: notes.append(event.note))
    assert notes.count("done before") == 8
    (docs / "fan.md").write_text("# The fan\n\nThe fan is a wheel with five blades that moves the air.\n")
    notes.clear()
    before = {entry.path: entry.added for entry in open_assistant(out).index.documents}
    build(docs, out, settings=chosen, report=lambda event: notes.append(event.note))
    assert "done before" not in notes
    after = {entry.path: entry.added for entry in open_assistant(out).index.documents}
    assert {path for path in after if after[path] != before[path]} == {"fan.md"}  # the others were not touched


def test_errors_name_the_remedy_and_leave_nothing_open(model: Path, docs: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="int8, keep"):
        build(docs, tmp_path / "a", settings=settings(model, compression="zip"))
    with pytest.raises(NotFoundError):
        build(tmp_path / "nowhere", tmp_path / "b", settings=settings(model))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.md").write_text("# One\n\nOne short line.\n")
    with pytest.raises(AlmanacError, match="passages"):
        build(tmp_path / "one", tmp_path / "c", settings=settings(model))
    (tmp_path / "d" / ".build").mkdir(parents=True)
    with Lock(tmp_path / "d" / ".build"), pytest.raises(LockedError):
        build(docs, tmp_path / "d", settings=settings(model))


def test_keep_leaves_the_adapter_beside_the_base(model: Path, docs: Path, tmp_path: Path) -> None:
    out = build(docs, tmp_path / "assistant", settings=settings(model, compression="keep"))
    titles = [step.title for step in open_assistant(out).lm.plan.techniques]
    assert titles == ["adapt.lora"]
