"""Documents come and go without training: the next answer is from what is there, and what went left nothing behind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from almanac.assistant.ask import open_assistant
from almanac.assistant.documents import add_document, get_document, list_documents, remove_document
from almanac.cli.main import run
from almanac.core.errors import FileFormatError, NotFoundError

SECRET = "The turbine of hall seven turns at 9173 revolutions."
QUESTION = "How fast does the turbine of hall seven turn?"


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_document_is_found_once_added_and_gone_once_removed(assistant_folder: Path, tmp_path: Path) -> None:
    weights = (assistant_folder / "model" / "model.safetensors").read_bytes()
    assistant = open_assistant(assistant_folder)
    assert not any("9173" in passage.text for passage in assistant.passages(QUESTION))
    file = tmp_path / "turbine.txt"
    file.write_text(f"{SECRET}\n\nIt was built in Linz.\n")
    added = add_document(assistant, file, "turbine.txt").to_dict()
    assert [entry["path"] for entry in added["documents"]] == ["turbine.txt"] and not added["replaced"]
    assert assistant.passages(QUESTION)[0].document == "turbine.txt"
    assert open_assistant(assistant_folder).passages(QUESTION)[0].document == "turbine.txt"
    assert SECRET in get_document(assistant, "turbine.txt")["text"]
    file.write_text("The turbine of hall seven stands still.\n")
    assert add_document(assistant, file, "turbine.txt").replaced
    assert "stands still" in assistant.passages(QUESTION)[0].text
    assert b"9173" not in bytes_below(assistant_folder / "index")
    remove_document(assistant, "turbine.txt")
    assert "turbine.txt" not in {entry["path"] for entry in list_documents(assistant)}
    assert b"turbine" not in bytes_below(assistant_folder / "index")
    with pytest.raises(NotFoundError):
        remove_document(assistant, "turbine.txt")
    assert (assistant_folder / "model" / "model.safetensors").read_bytes() == weights


def test_a_bad_file_is_refused_and_nothing_changes(assistant_folder: Path, tmp_path: Path) -> None:
    assistant = open_assistant(assistant_folder)
    before = list_documents(assistant)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(FileFormatError):
        add_document(assistant, bad, "bad.txt")
    assert list_documents(assistant) == before


def test_an_archive_gives_its_members(assistant_folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("one.md", "# One\n\nThe first note speaks of herons.\n")
        archive.writestr("two/three.txt", "The third note speaks of storks and cranes.\n")
    added = add_document(open_assistant(assistant_folder), tmp_path / "notes.zip", "notes.zip")
    assert [entry["path"] for entry in added.documents] == ["notes.zip/one.md", "notes.zip/two/three.txt"]


def test_personal_data_follows_the_policy_of_the_assistant(assistant_folder: Path, tmp_path: Path) -> None:
    assistant = open_assistant(assistant_folder)
    assistant.settings = assistant.settings.with_(policy="redact")
    file = tmp_path / "people.txt"
    file.write_text("Write to the keeper of the harbour at anna.kowalska@harbour-office.org about the lamp.\n")
    add_document(assistant, file, "people.txt")
    text = get_document(assistant, "people.txt")["text"]
    assert "kowalska" not in text and "harbour" in text
    assert b"kowalska" not in bytes_below(assistant_folder / "index")
    assistant.settings = assistant.settings.with_(policy="drop")
    with pytest.raises(FileFormatError, match="personal data"):
        add_document(assistant, file, "people2.txt")


def test_the_command_adds_lists_and_removes(
    assistant_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heron.txt").write_text("A heron stands at the weir every morning.\n")
    (tmp_path / "bad.txt").write_bytes(bytes(range(256)) * 40)
    folder = str(assistant_folder)
    assert run(["index", "add", folder, str(tmp_path / "heron.txt"), str(tmp_path / "bad.txt")]) == 1
    told = capsys.readouterr()
    assert "added heron.txt" in told.out and "bad.txt" in told.err
    assert run(["index", "list", folder, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["documents"]
    assert "heron.txt" in [entry["path"] for entry in listed]
    assert run(["index", "remove", folder, "heron.txt"]) == 0
    assert run(["index", "remove", folder, "heron.txt"]) == 1
    assert run(["index", "add", folder]) != 0


def test_the_evaluations_forget_a_document_that_was_removed(assistant_folder: Path) -> None:
    assistant = open_assistant(assistant_folder)
    stored = json.loads((assistant_folder / "evaluations.json").read_text())
    shown = {name for answer in stored["after"]["answers"] for name in answer["documents"]}
    name = sorted(shown)[0]
    topic = name.removesuffix(".md")
    assert f"clean the {topic}" in (assistant_folder / "report.html").read_text()
    remove_document(assistant, name)
    for place in ("evaluations.json", "report.html", ".build/stages.json"):
        assert f"clean the {topic}".encode() not in (assistant_folder / place).read_bytes()
    assert json.loads((assistant_folder / "evaluations.json").read_text())["after"]["questions"] > 0
