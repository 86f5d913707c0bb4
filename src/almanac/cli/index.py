"""``almanac index``: documents go into an assistant and out of it, without training anything again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note, table
from almanac.core.errors import AlmanacError, RequestError


def index(action: Literal["add", "remove", "list"], assistant: Path, /, *files: str, json: Json = False) -> int:
    """Add, remove or list the documents of an assistant.

    Adding reads the file as `almanac build` does and puts it in the index under its name; a document of that name is
    replaced. Removing takes a document out so that no byte of it is left in the index; what the weights learned of it at
    the last build stays until the next. Nothing is trained again: the next answer is from the documents as they are.

    ```
    almanac index list assistant
    almanac index add assistant handbook.pdf notes.zip
    almanac index remove assistant handbook.pdf
    ```

    Args:
        action: What to do.
        assistant: A folder made by `almanac build`.
        files: Files to add, or names of documents to remove, as `list` shows them.
    """
    if (action == "list") == bool(files):
        remedy = "Leave the names out." if files else "Name at least one."
        raise RequestError(f"index {action} with {len(files)} files", remedy=remedy)
    from almanac.assistant.ask import open_assistant
    from almanac.assistant.documents import add_document, list_documents, remove_document

    opened = open_assistant(assistant)
    if action == "list":
        entries = list_documents(opened)
        if json:
            emit({"documents": entries})
            return 0
        rows = [(e["path"], e["title"], e["pages"] or "-", e["chunks"], e["language"] or "-") for e in entries]
        table(("document", "title", "pages", "passages", "language"), rows)
        return 0
    done, failed = [], []
    for name in files:
        try:
            if action == "add":
                added = add_document(opened, Path(name), Path(name).name).to_dict()
                done += added["documents"]
                for text in added["notes"]:
                    note(f"{name}: {text}")
            else:
                remove_document(opened, name)
                done.append({"path": name})
        except AlmanacError as error:
            failed.append([name, str(error)])
    if json:
        emit({"action": action, "documents": done, "failed": failed})
    else:
        for entry in done:
            line(f"{'added' if action == 'add' else 'removed'} {entry['path']}")
        for name, reason in failed:
            note(f"{name}: {reason}")
    return 1 if failed else 0
