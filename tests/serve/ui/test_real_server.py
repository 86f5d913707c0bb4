"""The page on the real server: what the other files show on the stub holds there too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serve.ui.browsing import Visit
from serve.ui.payloads import leaks, scripts
from serve.ui.stub import POLICY, State

from almanac.assistant.ask import Answer, Assistant
from almanac.assistant.grounding import ground
from almanac.data.grounded import Passage
from almanac.serve.settings import ServeSettings

pages = pytest.importorskip("almanac.serve.pages", reason="needs the extra 'serve'", exc_type=ImportError)
world = pytest.importorskip("serve.world", reason="needs the extra 'serve'", exc_type=ImportError)

QUESTION, QUOTE = "How long does the valve last?", "The valve lasts for about seven years."
Begin = Callable[..., Visit]


@pytest.fixture
def assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assistant:
    """An assistant whose toy model is taken at a better word than it wrote; the check of that word is the real one."""
    made = world.assistant_in(tmp_path)

    def conclude(question: str, passages: Sequence[Passage], events: object) -> Answer:
        found = ground(f"{QUOTE} [1]", question, passages)
        return Answer(question, found.text, found.declined, found.citations, tuple(passages), found.reason)

    monkeypatch.setattr(made, "conclude", conclude)
    return made


@pytest.fixture
def on(browser: Any, visit: Begin) -> Iterator[Callable[[int], Visit]]:
    """A function that gives a watched page on the real server of a port."""

    def begin(port: int) -> Visit:
        seen = visit(State())
        seen.origin = f"http://127.0.0.1:{port}"
        return seen

    yield begin


def test_the_stub_has_the_real_policy() -> None:
    assert POLICY == pages.PAGE_POLICY


def test_ask_cite_add_delete(assistant: Assistant, on: Callable[[int], Visit]) -> None:
    with world.served(assistant) as (port, _):
        seen = on(port)
        page = seen.open()
        seen.ask(QUESTION).locator(".cite").click()
        page.wait_for_selector("#reader mark")
        assert page.inner_text("#reader mark") == QUOTE
        assert page.inner_text("#reader .path") == "valve.md"
        page.keyboard.press("Escape")
        assert seen.ask("Who painted the sky green?", "declined").locator(".declined").count() == 1
        seen.view("Documents")
        added = {"name": "new (1) #2.md", "mimeType": "text/plain", "buffer": b"# The gate\n\nThe gate is shut at ten."}
        broken = {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 nothing"}
        page.set_input_files("#picker", [added, broken])
        page.wait_for_selector(".upload[data-state=done]")
        page.wait_for_selector(".upload[data-state=failed]")
        page.click(".document-title:has-text('The gate')")
        page.wait_for_selector("#reader .text:has-text('The gate is shut at ten.')")
        page.keyboard.press("Escape")
        page.click("button:has-text('Delete The gate')")
        page.click("#delete-dialog .danger")
        page.wait_for_selector("#documents .facts:has-text('4 documents')")
        seen.view("About")
        page.wait_for_selector(".card")
        with page.context.expect_page() as opened:
            page.click("text=Open the report")
        opened.value.wait_for_load_state()
        assert opened.value.title() == "Report"
        seen.calm()


def test_token_and_ticket(assistant: Assistant, on: Callable[[int], Visit], tmp_path: Path) -> None:
    settings = ServeSettings(port=0, token_file=str(world.token_file(tmp_path)))
    with world.served(assistant, settings) as (port, _):
        seen = on(port)
        page = seen.open()
        page.fill("#token-field", world.TOKENS["ada"])
        page.click("text=Use this token")
        page.wait_for_selector(".recent")
        seen.ask(QUESTION)
        seen.view("About")
        with page.context.expect_page() as opened:
            page.click("text=Open the report")
        opened.value.wait_for_load_state()
        assert opened.value.title() == "Report"
        seen.calm()


def test_hostile_card_and_answer(
    assistant: Assistant, on: Callable[[int], Visit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34 on the real headers: the card and the answer are all the payloads at once."""
    text = "\n\n".join([*scripts(), *leaks()])
    (assistant.folder / "card.md").write_text(text)
    real = assistant.conclude
    monkeypatch.setattr(assistant, "conclude", lambda *args: dataclasses.replace(real(*args), text=f"{text} [1]"))
    with world.served(assistant) as (port, _):
        seen = on(port)
        page = seen.open()
        seen.ask(QUESTION)
        seen.view("About")
        page.wait_for_selector(".card")
        page.wait_for_timeout(200)
        assert page.locator("main :is(img, script, iframe, style, svg:not(.icon), object, embed, link)").count() == 0
        seen.calm()
