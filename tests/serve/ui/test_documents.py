"""Documents on the page: listed, filtered, sorted, added with what became of each file, deleted after a question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from serve.ui.browsing import Visit
from serve.ui.stub import Json, StubDocument, answer, quoting, streamed

Begin = Callable[..., Visit]

DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) transfer.items.add(new File([text], name));
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


def file(name: str, content: bytes) -> dict[str, Any]:
    """A file for the picker."""
    return {"name": name, "mimeType": "text/plain", "buffer": content}


def titles(page: Any) -> list[str]:
    """The titles in the list, from the top."""
    found: list[str] = page.eval_on_selector_all(".document-title", "(all) => all.map((one) => one.textContent)")
    return found


def listed(visit: Begin) -> Visit:
    """The sample library, its list on show."""
    seen = visit()
    seen.open("#/documents").wait_for_selector(".documents-table")
    return seen


def test_the_list_tells_each_document_and_can_be_filtered_and_sorted(visit: Begin) -> None:
    seen = listed(visit)
    page = seen.page
    row = page.locator("tr", has_text="Electrical cabinets").inner_text()
    assert [
        part for part in row.split() if part
    ] == "Electrical cabinets plant/electrical.pdf 3 5 English 4,200 Nov 20, 2026 Delete Electrical cabinets".split()
    assert titles(page) == sorted(titles(page), key=str.lower)
    page.click("th[data-column=characters] button")
    sizes = [len(d.text) for title in titles(page) for d in seen.state.documents.values() if d.title == title]
    assert sizes == sorted(sizes, reverse=True)
    assert page.get_attribute("th[data-column=characters]", "aria-sort") == "descending"
    page.fill("#filter", "german")
    assert titles(page) == ["Prüfbericht 2025"]
    assert page.inner_text("#documents .facts") == "1 of 8 documents"
    page.fill("#filter", "plant PUMPS")
    assert titles(page) == ["Pumps and seals"]
    page.fill("#filter", "no such thing")
    assert "No document matches" in page.inner_text(".empty")
    seen.calm()


def test_files_are_added_one_by_one_with_what_became_of_each(visit: Begin) -> None:
    seen = listed(visit)
    page = seen.page
    page.set_input_files(
        "#picker", [file("night rules.md", b"# Night rules\n\nLock the gate."), file("photo.jpg", b"\xff")]
    )
    page.wait_for_selector(".upload[data-state=failed]")
    done, failed = page.locator(".upload").all_inner_texts()
    assert "Added: 1 passage" in done and "2 invisible characters removed" in done
    assert "photo.jpg is not text. Save it as UTF-8 and add it again." in failed
    page.wait_for_selector(".document-title:has-text('Night rules')")
    assert "PUT /v1/documents/night%20rules.md" in seen.state.requests
    page.set_input_files("#picker", file("night rules.md", b"# Night rules\n\nLock both gates."))
    page.wait_for_selector(".upload:has-text('Replaced: 1 passage')")
    page.click("text=Clear this list")
    assert page.is_hidden(".uploads")
    seen.view("Ask")
    assert "9 documents" in page.inner_text("#welcome")
    seen.calm()


def test_files_can_be_dropped(visit: Begin) -> None:
    seen = listed(visit)
    seen.page.evaluate(DROP, [["a.md", "# First\n\nx"], ["b.md", "# Second\n\ny"]])
    seen.page.wait_for_selector(".upload[data-state=done] >> nth=1")
    assert {"First", "Second"} <= set(titles(seen.page))
    seen.calm()


def test_a_busy_server_is_asked_again_and_a_full_one_is_not(visit: Begin) -> None:
    seen = listed(visit)
    busy = "Another document is being written. Wait a moment."
    seen.state.refusals += [(503, busy, {"Retry-After": "0"}), (409, busy, {"Retry-After": "0"})]
    seen.page.set_input_files("#picker", file("late.md", b"# Late\n\nx"))
    seen.page.wait_for_selector(".upload[data-state=done]")
    assert seen.state.requests.count("PUT /v1/documents/late.md") == 3
    seen.state.refusals.append((507, "The disk of the server is full. Free some space.", {}))
    seen.page.set_input_files("#picker", file("more.md", b"# More\n\nx"))
    seen.page.wait_for_selector(".upload[data-state=failed]:has-text('Free some space.')")
    assert seen.state.requests.count("PUT /v1/documents/more.md") == 1


def test_a_document_is_deleted_only_after_a_yes(visit: Begin) -> None:
    seen = listed(visit)
    page = seen.page
    page.click("button:has-text('Delete Evacuation')")
    assert "Evacuation (safety/evacuation.md)" in page.inner_text("#delete-dialog")
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Escape")
    assert "safety/evacuation.md" in seen.state.documents
    page.click("button:has-text('Delete Evacuation')")
    page.click("#delete-dialog >> text=Keep it")
    assert "safety/evacuation.md" in seen.state.documents
    page.click("button:has-text('Delete Evacuation')")
    page.click("#delete-dialog .danger")
    page.wait_for_selector("#documents .facts:has-text('7 documents')")
    assert "safety/evacuation.md" not in seen.state.documents
    assert "Evacuation" not in titles(page)
    seen.calm()


def test_a_deletion_that_fails_is_told(visit: Begin) -> None:
    seen = listed(visit)
    seen.state.refusals.append((409, "Another process is writing. Wait until it has ended.", {}))
    seen.page.click("button:has-text('Delete Evacuation')")
    seen.page.click("#delete-dialog .danger")
    seen.page.wait_for_selector(".upload[data-state=failed]:has-text('Wait until it has ended.')")
    assert "Evacuation" in titles(seen.page)


def test_a_name_that_would_be_another_address_is_refused_here(visit: Begin) -> None:
    """A browser folds ``..`` away even when it is escaped: such a name would reach another route."""
    seen = visit()
    seen.state.documents["../tickets"] = StubDocument("../tickets", "Traversal", "x")
    page = seen.open("#/documents")
    page.click(".document-title:has-text('Traversal')")
    page.wait_for_selector("#reader .problem:has-text('cannot be the name of a document')")
    assert not any("tickets" in request for request in seen.state.requests)
    page.evaluate(DROP, [["..", "x"]])
    page.wait_for_selector(".upload[data-state=failed]:has-text('cannot be the name')")


def test_an_answer_changes_with_the_documents(visit: Begin) -> None:
    """Added here, asked there, without loading the page again."""

    def script(question: str) -> Iterator[Json]:
        document = seen.state.documents["gate.md"]
        yield from streamed(answer(question, "At ten. [1]", [quoting(document, "Lock the gate at ten.")]))

    seen = listed(visit)
    seen.state.scripts["When is the gate locked?"] = script
    seen.page.set_input_files("#picker", file("gate.md", b"# Gate\n\nLock the gate at ten."))
    seen.page.wait_for_selector(".upload[data-state=done]")
    seen.view("Ask")
    turn = seen.ask("When is the gate locked?")
    turn.locator(".cite").click()
    assert seen.page.inner_text("#reader mark") == "Lock the gate at ten."
    seen.calm()


def test_many_documents_are_shown_in_steps(visit: Begin) -> None:
    seen = visit()
    seen.state.documents = {f"{n:04}.md": StubDocument(f"{n:04}.md", f"Document {n:04}", "x") for n in range(450)}
    page = seen.open("#/documents")
    page.wait_for_selector(".documents-table")
    assert len(titles(page)) == 200
    page.click("text=Show more")
    page.click("text=Show more")
    assert titles(page) == [f"Document {n:04}" for n in range(450)]
    assert page.locator("text=Show more").count() == 0


def test_the_card_and_the_figures_are_shown(visit: Begin) -> None:
    seen = visit()
    page = seen.open("#/about")
    page.wait_for_selector(".card")
    assert page.locator(".card h2").inner_text() == "Card of this assistant"
    assert page.locator(".card table tr").count() == 4
    assert page.locator(".card h1, #about h1").count() == 1
    facts = page.inner_text(".fact-list")
    assert "smollm2-135m-instruct" in facts and "Nov 19, 2026" in facts
    page.click("summary:has-text('Figures')")
    assert "after · assistant · answer f1\t0.71 (0.62–0.80)" in page.inner_text(".values[open]")
    with page.context.expect_page() as opened:
        page.click("text=Open the report")
    opened.value.wait_for_selector("h1:has-text('Report')")
    assert seen.state.requests[-1] == "GET /report"
