"""A browser for the tests of the page, and a fresh page per test on a stub of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from serve.ui.browsing import ARGUMENTS, Visit, executable
from serve.ui.sample import library
from serve.ui.stub import State, serving

TIMEOUT_MS = 20_000  # a busy machine is no failure of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium per file of tests: its event loop must not outlive them."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the tests of the page need playwright")
    path = executable()
    if path is None:
        pytest.skip("the tests of the page need a Chromium (chromium-headless-shell, chromium or google-chrome)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """A function that serves a state (the sample library by default) and gives a watched page on it, not yet open."""
    with ExitStack() as stack:

        def begin(state: State | None = None, **context: Any) -> Visit:
            known = library() if state is None else state
            origin = stack.enter_context(serving(known))
            options = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **context}
            opened = browser.new_context(**options)
            stack.callback(opened.close)
            opened.set_default_timeout(TIMEOUT_MS)
            made = Visit(opened.new_page(), origin, known)
            made.watch()
            return made

        yield begin
