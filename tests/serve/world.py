"""A whole small assistant, its application, and ways to call it: in-process as an ASGI server would, or over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from language_model.small import language_model

from almanac.assistant.ask import Assistant
from almanac.assistant.settings import BuildSettings
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.index.settings import IndexSettings
from almanac.retrieve.index.store import DocumentIndex
from almanac.retrieve.read.folder import read_folder
from almanac.serve.app import Application, create_app, listen
from almanac.serve.monitor import create_monitor
from almanac.serve.protocol import protocol_for
from almanac.serve.settings import ServeSettings

TOPICS = ("valve", "filter", "pump", "lamp")
CONTEXT = 1024
TOKENS = {"ada": "a" * 43, "bob": "b" * 43}


class Encoder:
    """Vectors of letters: enough to be told apart, and made without weights."""

    name = "letters"
    dim = 26
    max_tokens = 32
    digest = "0" * 64

    def embed(self, texts: Sequence[str], *, tell: Any = lambda done, total: None) -> np.ndarray:
        rows = []
        for index, text in enumerate(texts):
            tell(index, len(texts))
            counts = np.array([text.lower().count(chr(97 + i)) for i in range(26)], dtype=np.float32) + 0.01
            rows.append(counts / np.linalg.norm(counts))
        return np.stack(rows)

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def assistant_in(folder: Path, *, context: int = CONTEXT) -> Assistant:
    """An assistant over four short documents, with a toy model that has a template."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    for topic in TOPICS:
        (docs / f"{topic}.md").write_text(
            f"# The {topic}\n\nThe {topic} is a part of the engine.\n\n## Life of the {topic}\n\n"
            f"The {topic} lasts for about seven years.\n"
        )
    home = folder / "assistant"
    home.mkdir()
    lm = language_model("llama", max_position_embeddings=context)
    index = DocumentIndex.create(home / "index", embedder=None, settings=IndexSettings())
    documents = read_folder(docs).documents
    index.add([(d, chunk_document(d, count_tokens=lambda text: len(text.split()))) for d in documents])
    settings = BuildSettings(encoder="", answer_tokens=8, model="toy")
    (home / "settings.json").write_text(json.dumps(settings.to_dict()))
    (home / "card.md").write_text("# Card\n")
    (home / "report.html").write_text("<!doctype html><title>Report</title>")
    return Assistant(lm, index, settings, Encoder(), None, home)  # type: ignore[arg-type]


def token_file(folder: Path, **owners: str) -> Path:
    """A token file with these owners, mode 0600."""
    path = folder / "tokens"
    path.write_text("".join(f"{name} {token}\n" for name, token in (owners or TOKENS).items()))
    path.chmod(0o600)
    return path


@dataclass
class Reply:
    """What an in-process call gave."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    closed: int | None = None  # a websocket's code

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream's ``data:`` lines, without the end mark."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def scope_of(method: str, path: str, headers: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """The scope of a request from this machine; a header given as None is left out."""
    bare, _, query = path.partition("?")
    from urllib.parse import unquote

    given = {"host": "localhost", **{name.lower(): value for name, value in (headers or {}).items()}}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(bare),
        "raw_path": bare.encode("ascii", "surrogateescape"),
        "query_string": query.encode("ascii", "surrogateescape"),
        "root_path": "",
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items() if v is not None],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        **changes,
    }


async def call(
    app: Any, method: str, path: str, body: Any = None, *, headers: dict[str, Any] | None = None, **changes: Any
) -> Reply:
    """One whole request. ``body``: bytes as they are, anything else as JSON with its type declared."""
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        given.setdefault("content-type", "application/json")
    if body:
        given.setdefault("content-length", str(len(body)))
    messages = [{"type": "http.request", "body": body or b"", "more_body": False}]
    reply = Reply()
    over = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "websocket.close":
            reply.closed = message["code"]
        else:
            reply.body += message["body"]

    await app(scope_of(method, path, given, **changes), receive, send)
    over.set()
    return reply


@contextlib.asynccontextmanager
async def running(app: Application) -> AsyncIterator[Application]:
    """The application between its start and its end, as a server's lifespan does it."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put)
    )
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        yield app
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await task


@contextlib.contextmanager
def served(assistant: Assistant, settings: ServeSettings | None = None) -> Iterator[tuple[int, Application]]:
    """A real server on a free port of this machine, in a thread; gives the port and its application."""
    settings = settings or ServeSettings(port=0)
    app = create_app(assistant, settings=settings)
    with listening(app, settings) as port:
        yield port, app


@contextlib.contextmanager
def shown_runs(folder: Path, *, token_file: str = "") -> Iterator[int]:
    """A real server of training runs; gives its port."""
    settings = ServeSettings(port=0, token_file=token_file)
    with listening(create_monitor(folder, settings=settings), settings) as port:
        yield port


@contextlib.contextmanager
def listening(app: Application, settings: ServeSettings) -> Iterator[int]:
    """A server in a thread, on a free port of this machine."""
    sockets = listen(settings)
    limits = settings.limits
    config = uvicorn.Config(
        app, http=protocol_for(limits), loop="asyncio", ws="none", log_config=None, access_log=False, proxy_headers=False,
        h11_max_incomplete_event_size=limits.header_bytes, limit_concurrency=limits.connections,
        timeout_graceful_shutdown=1, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    app.server = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(15)
        for item in sockets:
            item.close()
        assert not thread.is_alive()
