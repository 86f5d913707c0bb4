"""A server with the API that the page uses, in the standard library alone: documents and answers are what a test says.

It stands in for the real one where a test needs an answer to be just so: hostile, slow, broken off, refused. Its
security headers are the real server's.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

UI = Path(__file__).parents[3] / "src" / "almanac" / "serve" / "ui"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Json = dict[str, Any]
Script = Callable[[str], Iterator[Json]]


@dataclass
class StubDocument:
    """A document as the page sees it; ``pages`` and sections' offsets count characters, not UTF-16 units."""

    path: str
    title: str
    text: str
    pages: Sequence[int] = ()
    sections: Sequence[Json] = ()
    language: str = "en"
    added: str = "2026-11-20T09:00:00+00:00"

    def entry(self) -> Json:
        """What the list says of it."""
        return {
            "id": self.path, "object": "document", "path": self.path, "title": self.title, "pages": len(self.pages),
            "chunks": max(1, len(self.text) // 800), "characters": len(self.text), "language": self.language,
            "digest": "0" * 64, "added": self.added,
        }  # fmt: skip

    def body(self) -> Json:
        """The document itself."""
        whole = [{"heading": [], "level": 0, "start": 0, "end": len(self.text)}]
        return {
            "path": self.path, "title": self.title, "digest": "0" * 64, "language": self.language,
            "pages": list(self.pages), "sections": list(self.sections) or whole, "text": self.text,
        }  # fmt: skip


def quoting(document: StubDocument, quote: str, *, number: int = 1, page: int | None = None) -> Json:
    """A citation (and, by its ``text``, a passage) of a quotation in a document."""
    start = document.text.index(quote)
    end = start + len(quote)
    heading = next((s["heading"] for s in document.sections if s["start"] <= start < s["end"]), [])
    return {
        "number": number, "id": f"{document.path}#{number}", "document": document.path, "title": document.title,
        "heading": heading, "page": page, "quote": quote, "text": quote, "start": start, "end": end, "score": 0.9,
    }  # fmt: skip


def answer(question: str, text: str, citations: Sequence[Json] = (), **more: Any) -> Json:
    """An Answer as the API gives it."""
    found = list(citations)
    return {"question": question, "answer": text, "declined": False, "reason": "", "citations": found,
            "passages": found, **more}  # fmt: skip


def streamed(final: Json, draft: str | None = None, *, pause_seconds: float = 0.0) -> Iterator[Json]:
    """The events that lead to an answer, the draft in pieces of a few characters."""
    yield {"type": "passages", "passages": final["passages"]}
    words = final["answer"] if draft is None else draft
    for start in range(0, len(words), 7):
        yield {"type": "draft", "text": words[start : start + 7]}
        time.sleep(pause_seconds)
    yield {"type": "answer", "answer": final}


@dataclass
class State:
    """What the stub knows. ``scripts`` maps a question to its events; ``refusals`` are sent first, oldest first."""

    documents: dict[str, StubDocument] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    otherwise: Script = field(default_factory=lambda: declined)  # for a question without a script
    card: str = "# Card\n\nMade for a test."
    name: str = "handbook"
    token: str | None = None
    refusals: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)
    settings: Json = field(default_factory=dict)
    evaluations: Json = field(default_factory=dict)
    extra_pages: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tickets: set[str] = field(default_factory=set)
    cut_off: bool = False  # the next stream ends before its answer

    def about(self) -> Json:
        """The answer of /v1/assistant."""
        return {
            "name": self.name, "created": "2026-11-19T10:00:00+00:00", "base_model": "smollm2-135m-instruct",
            "card": self.card, "has_report": True, "documents": len(self.documents),
            "passages": sum(d.entry()["chunks"] for d in self.documents.values()), "settings": self.settings,
            "evaluations": self.evaluations, "notice": "You are talking to a machine.",
        }  # fmt: skip


def declined(question: str) -> Iterator[Json]:
    """What the stub says to a question nobody scripted."""
    words = "The documents do not tell."
    yield from streamed(answer(question, words, declined=True, reason="no passage is about the question"))


class Handler(BaseHTTPRequestHandler):
    """One request. The state hangs on the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every piece of a stream waits for the one before it
    state: State

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        path = self.begin()
        if path in self.state.extra_pages:
            return self.reply(self.state.extra_pages[path].encode(), kind="text/html", headers={})
        if path == "/" or path.startswith("/ui/"):
            return self.static("index.html" if path == "/" else path.removeprefix("/ui/"))
        if path == "/report":
            return self.report()
        if not self.allowed():
            return None
        if path == "/v1/assistant":
            return self.json(self.state.about())
        if path == "/v1/documents":
            return self.json({"object": "list", "data": [d.entry() for d in self.state.documents.values()]})
        found = self.state.documents.get(unquote(path.removeprefix("/v1/documents/")))
        return self.json(found.body()) if found else self.error(404, f"No document {unquote(path)}. Look at the list.")

    def do_POST(self) -> None:
        path, body = self.begin(), self.body()
        if not self.allowed():
            return None
        if path == "/v1/tickets":
            self.state.tickets.add("once")
            return self.json({"ticket": "once"})
        question = json.loads(body)["question"]
        return self.stream(self.state.scripts.get(question, self.state.otherwise)(question))

    def do_PUT(self) -> None:
        path, body = unquote(self.begin().removeprefix("/v1/documents/")), self.body()
        if not self.allowed():
            return None
        if self.headers["Content-Type"] != "application/octet-stream":
            return self.error(415, "The content type is not application/octet-stream. Send the file's bytes.")
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return self.error(422, f"{path} is not text. Save it as UTF-8 and add it again.")
        known = path in self.state.documents
        made = StubDocument(path, text.splitlines()[0].lstrip("# "), text, added="2026-11-22T09:00:00+00:00")
        self.state.documents[path] = made
        added = {"documents": [made.entry()], "replaced": known, "notes": ["2 invisible characters removed"]}
        return self.json(added, 200 if known else 201)

    def do_DELETE(self) -> None:
        path = unquote(self.begin().removeprefix("/v1/documents/"))
        if not self.allowed():
            return None
        if self.state.documents.pop(path, None) is None:
            return self.error(404, f"No document {path}. Look at the list.")
        return self.json({"id": path, "object": "document.deleted", "deleted": True})

    def begin(self) -> str:
        """The path of the request, noted."""
        self.state.requests.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path

    def body(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def allowed(self) -> bool:
        """Answers with an error where the token is missing or a refusal is due."""
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self.error(401, "A token is needed. Send it as a bearer token.")
            return False
        if self.command != "GET" and self.state.refusals:
            status, message, headers = self.state.refusals.pop(0)
            self.error(status, message, headers)
            return False
        return True

    def report(self) -> None:
        """The report, against a ticket where a token is set."""
        ticket = urlsplit(self.path).query.removeprefix("ticket=")
        if self.state.token and ticket not in self.state.tickets:
            return self.error(401, "The ticket is used or too old. Open the report again.")
        self.state.tickets.discard(ticket)
        return self.reply(b"<!doctype html><title>Report</title><h1>Report</h1>", kind="text/html", headers={})

    def static(self, name: str) -> None:
        """A file of the page."""
        file = UI / name
        if file.parent != UI or not file.is_file():
            return self.error(404, f"No file {name}. Load the page again.")
        return self.reply(file.read_bytes(), kind=TYPES[file.suffix], headers=HEADERS)

    def json(self, value: Json, status: int = 200) -> None:
        """A JSON answer."""
        self.reply(json.dumps(value).encode(), status=status, kind="application/json", headers=HEADERS)

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """An error in the OpenAI form."""
        body = {"error": {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": None}}
        more = {**HEADERS, **(headers or {})}
        self.reply(json.dumps(body).encode(), status=status, kind="application/json", headers=more)

    def reply(self, body: bytes, *, kind: str, headers: dict[str, str], status: int = 200) -> None:
        """One whole response."""
        self.send_response(status)
        for name, value in {**headers, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, events: Iterator[Json]) -> None:
        """Server-sent events, until they end or the page hangs up."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        cut, self.state.cut_off = self.state.cut_off, False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for event in events:
                if cut and event["type"] == "answer":
                    return
                self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")


class Quiet(ThreadingHTTPServer):
    """A server whose connections do not outlive it, and that takes a hung-up browser calmly."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A page that leaves in the middle of an answer is no error."""


@contextlib.contextmanager
def serving(state: State) -> Iterator[str]:
    """Serves a state on a free port of the loopback; yields the origin."""
    server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
