"""The conversation: streaming, citations that open at the right characters, refusals, failures, nothing typed lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from serve.ui.browsing import Visit
from serve.ui.sample import QUESTION, QUOTE, SECOND, SLOW, UNKNOWN, handbook
from serve.ui.stub import Json, StubDocument, answer, quoting, streamed

Begin = Callable[..., Visit]


def marked(seen: Visit) -> str:
    """The highlighted text of the open document."""
    seen.page.wait_for_selector("#reader mark")
    return "".join(seen.page.locator("#reader mark").all_text_contents())


def test_a_draft_is_shown_as_a_draft_and_replaced_by_the_answer(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    page.fill("#question", SLOW)
    page.press("#question", "Enter")
    page.wait_for_selector("[data-state=drafting] .draft")
    turn = page.locator(".turn").last
    assert "Draft, not checked yet" in turn.inner_text()
    assert turn.get_attribute("aria-busy") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("[data-state=stopped]")
    assert "this draft is not an answer" in turn.inner_text()
    assert page.input_value("#question") == SLOW  # what was asked stands in the box again
    turn = seen.ask(QUESTION)
    assert turn.locator(".draft").count() == 0
    assert "I think" not in turn.inner_text()
    assert QUOTE in turn.inner_text()
    assert turn.locator(".state").inner_text() == "Checked against the cited passages, confidence 91 %"
    assert turn.locator("strong").inner_text() == "24 hours"
    assert "Answer:" in page.inner_text("#announcer")
    seen.calm()


def test_the_stop_button_ends_the_request(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    page.fill("#question", SLOW)
    page.click(".send")
    page.wait_for_selector(".draft")
    page.click("button:has-text('Stop')")
    page.wait_for_selector("[data-state=stopped]")
    length = len(page.inner_text(".draft"))
    page.wait_for_timeout(120)
    assert len(page.inner_text(".draft")) == length  # no piece came after the stop
    assert page.is_visible("button:has-text('Ask again')")
    assert page.evaluate("document.activeElement.id") == "question"
    seen.calm()


def test_a_citation_opens_its_document_at_the_quoted_characters(visit: Begin) -> None:
    """Offsets count characters: the document holds characters beyond the basic plane before the quotation."""
    seen = visit()
    page = seen.open()
    turn = seen.ask(QUESTION)
    turn.locator(".cite").nth(0).click()
    assert marked(seen) == QUOTE
    panel = page.locator("#reader")
    assert "Safety valves" in panel.locator(".place").inner_text()
    assert "page 2" in panel.locator(".place").inner_text()
    assert panel.locator(".path").inner_text() == "plant/boiler room.pdf"
    box, frame = page.locator("#reader mark").bounding_box(), page.locator("#reader-page").bounding_box()
    assert frame["y"] <= box["y"] and box["y"] + box["height"] <= frame["y"] + frame["height"]
    assert [words.strip() for words in panel.locator(".page-break").all_inner_texts()] == ["Page 1", "Page 2", "Page 3"]
    order = panel.locator(".page > *").all_inner_texts()
    assert order.index("Page 2") < order.index("Safety valves") < order.index("Page 3")
    page.click(".step-on")
    assert marked(seen) == SECOND
    assert page.inner_text("#reader .steps > span") == "Source 2 of 2"
    page.keyboard.press("Escape")
    assert page.is_hidden("#reader")
    assert page.evaluate("document.activeElement.className") == "cite"
    turn.locator(".source").nth(1).click()
    assert marked(seen) == SECOND
    seen.calm()


def test_a_quotation_over_blocks_is_marked_whole(visit: Begin) -> None:
    """Across a paragraph, a page break, inline code and a table: every character of it, and no other."""
    seen = visit()
    boiler = handbook()
    start, end = boiler.text.index("Its result"), boiler.text.index("| V-102")
    quote = boiler.text[start:end].strip()
    cited = [quoting(boiler, quote)]
    seen.state.scripts["over blocks"] = lambda question: streamed(answer(question, "Yes. [1]", cited))
    seen.open()
    seen.ask("over blocks").locator(".cite").click()

    def plain(text: str) -> str:
        return re.sub(r"[\s|]+", "", text)

    assert plain(marked(seen)) == plain(quote)


def test_of_equal_sentences_the_cited_one_is_marked(visit: Begin) -> None:
    """Six characters of two units each stand before three sentences of six: counted in units, the second would be hit."""
    seen = visit()
    text = "𝒑" * 6 + " Same. Same. Same."
    document = StubDocument("same.md", "Same", text)
    start = len(text) - len("Same.")
    seen.state.documents["same.md"] = document
    cited = [{**quoting(document, "Same."), "start": start, "end": len(text)}]
    seen.state.scripts["same"] = lambda question: streamed(answer(question, "Same. [1]", cited))
    page = seen.open()
    seen.ask("same").locator(".cite").click()
    assert marked(seen) == "Same."
    assert page.evaluate("document.querySelector('#reader mark').previousSibling.data") == text[:start]


def test_a_moved_passage_is_found_and_a_lost_one_is_said_to_be(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    turn = seen.ask(QUESTION)
    boiler = seen.state.documents["plant/boiler room.pdf"]
    text = f"A new foreword.\n\n{boiler.text.replace(SECOND, 'Gone.')}"
    seen.state.documents[boiler.path] = StubDocument(boiler.path, boiler.title, text)
    turn.locator(".cite").nth(0).click()
    assert marked(seen) == QUOTE
    page.click(".step-on")
    page.wait_for_selector("#reader .problem")
    assert "has changed since this answer" in page.inner_text("#reader .problem")
    del seen.state.documents[boiler.path]
    page.keyboard.press("Escape")
    page.evaluate("document.dispatchEvent(new CustomEvent('documents-changed'))")
    turn.locator(".cite").nth(0).click()
    page.wait_for_selector("#reader .problem:has-text('no longer here')")


def test_a_long_document_opens_in_its_middle_and_goes_on_both_ways(visit: Begin) -> None:
    seen = visit()
    text = "\n\n".join(f"Paragraph {number} of a long book." for number in range(6000))
    book = StubDocument("book.txt", "Book", text)
    seen.state.documents["book.txt"] = book
    cited = [quoting(book, "Paragraph 3000 of a long book.")]
    seen.state.scripts["where"] = lambda question: streamed(answer(question, "There. [1]", cited))
    page = seen.open()
    seen.ask("where").locator(".cite").click()
    assert marked(seen) == "Paragraph 3000 of a long book."
    assert page.locator("#reader .text").count() < 400
    page.click("text=Show the text before")
    page.click("text=Show more of the text")
    numbers = [int(words.split()[1]) for words in page.locator("#reader .text").all_inner_texts()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] < 2800 and numbers[-1] > 3300


def test_a_declined_answer_looks_different_and_says_so(visit: Begin) -> None:
    seen = visit()
    nearest = [quoting(handbook(), QUOTE)]
    reason = "no passage is about the question"
    seen.state.scripts[UNKNOWN] = lambda question: streamed(
        answer(question, "The documents do not tell.", [], declined=True, reason=reason, passages=nearest)
    )
    page = seen.open()
    turn = seen.ask(UNKNOWN, "declined")
    assert "Declined: not in the documents" in turn.inner_text()
    assert reason in turn.inner_text()
    assert turn.locator(".cite").count() == 0
    assert turn.locator(".answer").count() == 0
    turn.locator("summary").click()
    turn.locator(".source").click()
    assert marked(seen) == QUOTE
    assert "Declined" in page.inner_text("#announcer") or "Opened" in page.inner_text("#announcer")
    seen.calm()


def test_a_mark_without_its_citation_stays_text(visit: Begin) -> None:
    seen = visit()
    cited = [quoting(handbook(), QUOTE)]
    seen.state.scripts["marks"] = lambda question: streamed(answer(question, "One [1], none [7], word[1].", cited))
    seen.open()
    turn = seen.ask("marks")
    assert turn.locator(".cite").all_inner_texts() == ["1", "1"]
    assert "none [7]" in turn.inner_text()


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "1"}), (503, {}), (400, {})])
def test_a_refusal_is_told_and_can_be_tried_again(visit: Begin, status: int, headers: dict[str, str]) -> None:
    seen = visit()
    page = seen.open()
    seen.state.refusals.append((status, "Eight requests are under way. Wait until one has ended.", headers))
    turn = seen.ask(QUESTION, "failed")
    assert "Wait until one has ended." in turn.inner_text()
    assert page.input_value("#question") == QUESTION
    again = turn.locator(".retry")
    if headers:
        assert again.is_disabled()
        assert "Try again in 1 s" in again.inner_text()
    again.click()  # waits until it may be clicked
    page.wait_for_selector("[data-state=checked]")
    assert page.input_value("#question") == ""
    assert page.locator(".turn").count() == 1
    seen.calm()


def test_a_stream_that_breaks_off_is_no_answer(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    seen.state.cut_off = True
    turn = seen.ask(QUESTION, "failed")
    assert "ended before the answer was checked" in turn.inner_text()
    assert "I think" not in turn.inner_text()
    assert page.input_value("#question") == QUESTION


def test_an_error_inside_the_stream_is_told(visit: Begin) -> None:
    def script(question: str) -> Iterator[Json]:
        yield {"type": "draft", "text": "The valve"}
        yield {
            "type": "error",
            "error": {"message": "The engine stopped. Start the server again.", "type": "server_error"},
        }

    seen = visit()
    seen.state.scripts["engine"] = script
    seen.open()
    turn = seen.ask("engine", "failed")
    assert "The engine stopped. Start the server again." in turn.inner_text()
    assert turn.locator(".draft").count() == 0


def test_a_server_that_is_gone_is_told(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    page.context.set_offline(True)
    turn = seen.ask(QUESTION, "failed")
    assert "cannot be reached" in turn.inner_text()
    assert page.is_visible("#banner")
    assert page.input_value("#question") == QUESTION
    page.context.set_offline(False)
    turn.locator(".retry").click()
    page.wait_for_selector("[data-state=checked]")
    page.wait_for_selector("#banner", state="hidden")


def test_characters_cut_by_the_network_arrive_whole(visit: Begin) -> None:
    """The stream's bytes may be cut anywhere, in a character too: fed to the reader one byte at a time."""
    seen = visit()
    page = seen.open()
    read = """async () => {
      const { readEvents } = await import("/ui/events.js");
      const bytes = new TextEncoder().encode(': note\\r\\ndata: {"a":"é𝒑"}\\r\\n\\r\\ndata:x\\ndata: y\\n\\ndata: cut');
      const body = new ReadableStream({ start(control) {
        for (const byte of bytes) control.enqueue(Uint8Array.of(byte));
        control.close();
      } });
      const found = [];
      for await (const data of readEvents(body)) found.push(data);
      return found;
    }"""
    assert page.evaluate(read) == ['{"a":"é𝒑"}', "x\ny"]


def test_a_new_conversation_forgets_the_old_one(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    seen.ask(QUESTION)
    page.click("button:has-text('New conversation')")
    assert page.locator(".turn").count() == 0
    assert page.is_visible("#welcome")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert QUESTION not in kept and QUOTE not in kept
    assert page.evaluate("document.cookie") == ""


def test_an_address_opens_only_by_a_click_that_names_its_host(visit: Begin) -> None:
    seen = visit()
    text = "Read [the rules](https://docs.example/rules?a=1) or https://bank.example@evil.example/x. [1]"
    seen.state.scripts["links"] = lambda question: streamed(answer(question, text, [quoting(handbook(), QUOTE)]))
    page = seen.open()
    turn = seen.ask("links")
    assert "the rules https://docs.example/rules?a=1 open" in turn.inner_text()
    assert turn.locator("a").count() == 0
    labels = [button.get_attribute("aria-label") for button in turn.locator(".open-link").all()]
    assert labels == ["open docs.example in a new tab", "open evil.example in a new tab"]
    assert seen.outside == []
    with page.context.expect_page() as opened:
        turn.locator(".open-link").first.click()
    assert opened.value.evaluate("window.opener") is None
    assert seen.outside[0].startswith("https://docs.example/rules")


def test_a_turn_can_be_copied_and_printed_alone(visit: Begin) -> None:
    seen = visit(permissions=["clipboard-read", "clipboard-write"])
    page = seen.open()
    seen.ask(UNKNOWN, "declined")
    turn = seen.ask(QUESTION)
    turn.locator("button:has-text('Copy')").click()
    page.wait_for_selector("button:has-text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert QUESTION in copied and "[2] Boiler room handbook" in copied and SECOND in copied
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate(
        "document.body.classList.add('printing'); document.querySelector('.turn:last-child').classList.add('printed')"
    )
    assert page.is_hidden(".bar") and page.is_hidden("#composer") and page.is_hidden(".turn:first-child")
    assert turn.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.answer')).color") == "rgb(24, 33, 31)"
