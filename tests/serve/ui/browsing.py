"""A page in a real browser, watched: what it asks for, what it runs, what it complains about."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

from serve.ui.stub import State

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CANARY = "window.ran = []; window.pwned = (...what) => { window.ran.push(String(what)); };"
# No name resolves, whatever a page asks for; requests are counted where the page makes them.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
EXPECTED = ("Failed to load resource",)  # the browser's own note on every status of 400 and above


def executable() -> str | None:
    """The browser of this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Visit:
    """A page and what was seen of it. ``outside`` are requests that left the origin, none of them answered."""

    page: Any
    origin: str
    state: State
    outside: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    popups: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Notes requests, dialogs, errors, warnings and windows."""
        context = self.page.context
        context.on("request", self._request)
        context.add_init_script(CANARY)
        context.on("page", lambda page: self.popups.append(page.url))
        self.page.on("dialog", self._dialog)
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("websocket", lambda socket: self.outside.append(socket.url))
        self.page.on("console", self._console)

    def _request(self, request: Any) -> None:
        inside = request.url.startswith(f"{self.origin}/")
        (self.inside if inside else self.outside).append(request.url.removeprefix(self.origin))

    def _dialog(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(EXPECTED):
            self.trouble.append(f"console: {message.text}")

    def open(self, at: str = "") -> Any:
        """Loads the page and waits until it knows its assistant."""
        self.page.goto(f"{self.origin}/{at}")
        settled = "#welcome > :first-child, dialog[open], #banner:not([hidden])"
        self.page.wait_for_selector(settled, state="attached")  # by selector: the page's policy forbids what is eval'd
        return self.page

    def ask(self, question: str, state: str = "checked") -> Any:
        """Types a question, sends it, and waits until its turn has a state; gives the turn."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        turn = self.page.locator(".turn").last
        self.page.wait_for_selector(f".turn:last-child[data-state={state}]")
        return turn

    def view(self, name: str) -> None:
        """Goes to one of the three views by its link."""
        self.page.click(f"nav >> text={name}")

    def calm(self) -> None:
        """Nothing ran that was not ours, nothing left the origin, nothing complained."""
        assert self.page.evaluate("window.ran") == []
        assert self.outside == []
        assert self.trouble == []
