"""For everybody: the token, the keyboard alone, contrast, names, narrow windows, zoom, themes, motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serve.ui.browsing import Visit
from serve.ui.sample import QUESTION, QUOTE, SLOW, UNKNOWN
from serve.ui.stub import StubDocument, answer, streamed

Begin = Callable[..., Visit]

CHECKS = Path(__file__).parent / "checks"
CONTRAST, NAMES, OVERFLOW = ((CHECKS / f"{name}.js").read_text() for name in ("contrast", "names", "overflow"))


STATES = ("welcome", "conversation", "reader", "documents", "about", "delete")


def go(seen: Visit, state: str) -> None:
    """Brings the page into one of the states, in their order: together all that it can show."""
    page = seen.page
    if state == "conversation":
        seen.ask(UNKNOWN, "declined")
        seen.state.refusals.append((503, "Too many questions. Wait a moment.", {"Retry-After": "30"}))
        seen.ask("refused", "failed")
        page.fill("#question", SLOW)
        page.press("#question", "Enter")
        page.wait_for_selector(".draft")
        page.keyboard.press("Escape")
        seen.ask(QUESTION)
    elif state == "reader":
        page.click(".turn:last-child .cite >> nth=0")
        page.wait_for_selector("#reader mark")
    elif state == "documents":
        page.keyboard.press("Escape")
        seen.view("Documents")
        page.set_input_files("#picker", [
            {"name": "a.md", "mimeType": "text/plain", "buffer": b"# A\n\nx"},
            {"name": "b.jpg", "mimeType": "text/plain", "buffer": b"\xff"},
        ])  # fmt: skip
        page.wait_for_selector(".upload[data-state=failed]")
    elif state == "about":
        seen.view("About")
        page.wait_for_selector(".card")
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    elif state == "delete":
        seen.view("Documents")
        page.click(".documents-table .remove >> nth=0")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_and_names_hold_everywhere(visit: Begin, theme: str) -> None:
    seen = visit(color_scheme=theme)
    page = seen.open()
    texts = 0
    for state in STATES:
        go(seen, state)
        count, poor = page.evaluate(CONTRAST)
        assert poor == [], state
        assert page.evaluate(NAMES) == [], state
        texts += count
    assert texts > 200
    seen.calm()


@pytest.mark.parametrize("width", [320, 360, 640, 901])
def test_no_width_scrolls_sideways(visit: Begin, width: int) -> None:
    """From a phone (and 1,280 pixels at 400 %) up, with names and words that do not break."""
    seen = visit(viewport={"width": width, "height": 640})
    long = "Betriebssicherheitsverordnung" * 8
    seen.state.documents[f"{long}.md"] = StubDocument(f"{long}.md", long, long)
    seen.state.scripts["long"] = lambda question: streamed(
        answer(question, f"{long} `{long}`\n\n- {long}\n\n| {long} | b |\n|---|---|")
    )
    page = seen.open()
    for state in STATES:
        go(seen, state)
        if state == "conversation":
            seen.ask("long")
            seen.ask(long, "declined")
            seen.ask(QUESTION)
        assert page.evaluate(OVERFLOW) == [], state


def test_a_window_at_200_percent_shows_question_and_answer(visit: Begin) -> None:
    seen = visit(viewport={"width": 640, "height": 360}, device_scale_factor=2)
    page = seen.open()
    turn = seen.ask(QUESTION)
    for part in (
        page.locator("#question"),
        turn.locator(".question"),
        turn.locator(".answer"),
        page.locator(".notice"),
    ):
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 640
        assert 0 <= box["y"] < 340
    turn.locator(".cite").nth(1).click()
    page.wait_for_selector("#reader mark")
    assert page.locator("#reader .close").bounding_box()["y"] >= 0
    assert page.locator("#reader mark").bounding_box()["y"] < 360


def test_on_a_phone_the_sheet_keeps_the_focus_and_gives_it_back(visit: Begin) -> None:
    seen = visit(viewport={"width": 360, "height": 740})
    page = seen.open()
    turn = seen.ask(QUESTION)
    turn.locator(".cite").nth(0).click()
    page.wait_for_selector("#reader mark")
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.getElementById('reader').contains(document.activeElement)"
        )
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "cite"


def focused(page: Any) -> str:
    """The name of what has the focus, which must be seen to have it."""
    shown = page.evaluate("""() => {
      const element = document.activeElement;
      const marked = element.id === "question" ? element.closest(".box") : element;
      const style = getComputedStyle(marked);
      const words = element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent;
      return [words.trim().slice(0, 40), style.outlineStyle !== "none" && Number.parseFloat(style.outlineWidth) >= 2];
    }""")
    assert shown[1], f"no focus to be seen on {shown[0]}"
    return str(shown[0])


def tab_to(page: Any, words: str) -> None:
    """Presses Tab until something of that name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused(page).startswith(words):
            return
    pytest.fail(f"Tab does not reach {words}")


def test_everything_can_be_done_with_the_keyboard(visit: Begin) -> None:
    seen = visit()
    page = seen.open()
    page.focus(".brand")
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("/")
    assert focused(page) == "Your question"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second / line")
    assert page.input_value("#question") == "first line\nsecond / line"
    page.keyboard.press("Control+A")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-state=checked]")
    page.evaluate("document.querySelector('.brand').focus()")
    order = []
    for _ in range(11):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == [
        "Ask", "Documents", "About", "New conversation", "Dark theme", "Source 1: Boiler room handbook, Boiler ro"[:40],
        "Source 2: Boiler room handbook, Boiler ro"[:40], order[7], order[8], "Copy", "Print",
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reader mark")
    tab_to(page, "Previous source")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#reader mark:has-text('{QUOTE}')")
    tab_to(page, "Text of the document")
    page.keyboard.press("Escape")
    assert focused(page).startswith("2")
    page.evaluate("document.querySelector('.brand').focus()")
    tab_to(page, "Documents")
    page.keyboard.press("Enter")
    page.wait_for_selector(".documents-table")
    tab_to(page, "Delete Boiler room handbook")
    page.keyboard.press("Enter")
    tab_to(page, "Delete")
    page.keyboard.press("Enter")
    page.wait_for_selector("#documents .facts:has-text('7 documents')")
    seen.calm()


def test_the_theme_follows_the_system_until_chosen(visit: Begin) -> None:
    seen = visit(color_scheme="dark")
    page = seen.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    light = page.evaluate(ground)
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))
    page.reload()
    assert page.evaluate(ground) == light
    assert page.evaluate("JSON.stringify({...localStorage})") == '{"almanac.theme":"light"}'


def test_motion_stops_where_it_is_not_wanted(visit: Begin) -> None:
    for motion, running in (("reduce", 0), ("no-preference", 1)):
        seen = visit(reduced_motion=motion)
        page = seen.open()
        page.fill("#question", SLOW)
        page.press("#question", "Enter")
        page.wait_for_selector(".draft")
        assert page.evaluate("document.getAnimations().length") == running
        page.keyboard.press("Escape")


def test_the_notice_is_always_to_be_seen(visit: Begin) -> None:
    seen = visit(viewport={"width": 360, "height": 640})
    page = seen.open()
    for view in ("Ask", "Documents", "About"):
        seen.view(view)
        box = page.locator(
            ".notice", has_text="You are talking to a machine; answers come from your documents."
        ).bounding_box()
        assert box["y"] + box["height"] <= 640


def test_a_token_is_asked_for_kept_for_the_tab_and_sent(visit: Begin) -> None:
    seen = visit()
    seen.state.token = "s3cret"
    page = seen.open()
    assert page.evaluate("document.activeElement.id") == "token-field"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-refused:not([hidden])")
    page.fill("#token-field", "s3cret")
    page.click("text=Use this token")
    page.wait_for_selector(".recent")
    seen.ask(QUESTION)
    assert page.evaluate("sessionStorage.getItem('almanac.token')") == "s3cret"
    assert page.evaluate("JSON.stringify({...localStorage})") == "{}"
    seen.view("Documents")
    page.set_input_files("#picker", {"name": "a.md", "mimeType": "text/plain", "buffer": b"# A\n\nx"})
    page.wait_for_selector(".upload[data-state=done]")
    seen.view("About")
    with page.context.expect_page() as opened:
        page.click("text=Open the report")
    opened.value.wait_for_selector("h1:has-text('Report')")
    assert seen.state.requests[-1] == "GET /report?ticket=once"
    assert not any("s3cret" in path for path in seen.inside)
    seen.state.token = "changed"
    seen.view("Ask")
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    page.wait_for_selector("#token-dialog[open]")
    page.click("#token-cancel")
    page.wait_for_selector("[data-state=failed]")
    assert page.input_value("#question") == QUESTION
    assert seen.outside == [] and seen.trouble == []
