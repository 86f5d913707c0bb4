"""Asking, and the documents that answers come from: uploaded, replaced, read and removed while the server runs."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from serve.world import Reply, call, running, scope_of

from almanac.assistant.ask import Assistant
from almanac.core.errors import IntegrityError
from almanac.serve import documents as documents_module
from almanac.serve.app import Application, create_app
from almanac.serve.documents import UPLOADS, remove_old_uploads
from almanac.serve.golden import check_engine
from almanac.serve.limits import Limits
from almanac.serve.settings import ServeSettings
from almanac.serve.stream import event, padded

OCTETS = {"content-type": "application/octet-stream"}
QUESTION = "How long does the pump last?"
TEXT = "# The boiler\n\nThe boiler holds forty litres of water.\n"


def with_app(assistant: Assistant, story: Callable[[Application], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """What ``story`` gives, with the application running."""

    async def whole() -> Any:
        async with running(create_app(assistant, settings=ServeSettings(**settings))) as app:
            return await story(app)

    return asyncio.run(whole())


def test_an_answer_whole_and_streamed_is_the_assistants(assistant: Assistant) -> None:
    async def story(app: Application) -> tuple[Reply, Reply]:
        whole = await call(app, "POST", "/v1/ask", {"question": QUESTION})
        return whole, await call(app, "POST", "/v1/ask", {"question": QUESTION, "stream": True})

    whole, streamed = with_app(assistant, story)
    wanted = assistant.ask(QUESTION).to_dict()
    assert whole.json == wanted
    kinds = [item["type"] for item in streamed.events]
    assert kinds[0] == "passages" and kinds[-1] == "answer" and set(kinds[1:-1]) == {"draft"}
    assert streamed.events[0]["passages"] == wanted["passages"]
    assert streamed.events[-1]["answer"] == wanted
    draft = "".join(item["text"] for item in streamed.events if item["type"] == "draft")
    parts: list[str] = []
    assistant.ask(QUESTION, on_text=parts.append)
    assert draft == "".join(parts)
    for passage in wanted["passages"]:
        text = assistant.index.document(passage["document"]).text
        assert text[passage["start"] : passage["end"]] == passage["text"]


def test_a_question_without_passages_is_declined_and_an_empty_one_refused(assistant: Assistant) -> None:
    async def story(app: Application) -> list[Reply]:
        questions = [{"question": "Zzyzx qwrtp?"}, {"question": "Zzyzx qwrtp?", "stream": True}]
        questions += [{"question": " "}, {"question": " ", "stream": True}, {}]
        return [await call(app, "POST", "/v1/ask", body) for body in questions]

    declined, streamed, *refused = with_app(assistant, story)
    assert declined.json["declined"] and not declined.json["passages"]
    assert [item["type"] for item in streamed.events] == ["passages", "answer"]
    assert [reply.status for reply in refused] == [400, 400, 400]


def test_an_error_after_the_beginning_is_the_last_event(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a secret of a user")

    monkeypatch.setattr(type(assistant), "conclude", broken)
    reply = with_app(assistant, lambda app: call(app, "POST", "/v1/ask", {"question": QUESTION, "stream": True}))
    last = reply.events[-1]
    assert last["type"] == "error" and last["error"]["type"] == "server_error"
    whole = with_app(assistant, lambda app: call(app, "POST", "/v1/ask", {"question": QUESTION}))
    assert whole.status == 500
    for text in (reply.body.decode(), whole.body.decode(), caplog.text):
        assert "secret" not in text
    assert "ZeroDivisionError" in caplog.text and "ZeroDivision" not in whole.body.decode()


def test_a_document_changes_answers_at_once(own_assistant: Assistant) -> None:
    async def story(app: Application) -> list[Any]:
        ask = {"question": "How much water does the boiler hold?"}
        found: list[Any] = []

        async def put(text: str) -> int:
            return (await call(app, "PUT", "/v1/documents/new/boiler.md", text.encode(), headers=OCTETS)).status

        async def passages() -> str:
            reply = (await call(app, "POST", "/v1/ask", ask)).json
            return " ".join(passage["text"] for passage in reply["passages"])

        found += [await put(TEXT), "forty litres" in await passages()]
        found += [await put(TEXT.replace("forty", "ninety")), "ninety litres" in await passages()]
        read = await call(app, "GET", "/v1/documents/new/boiler.md")
        assert "ninety" in read.json["text"]
        for section in read.json["sections"]:
            assert 0 <= section["start"] <= section["end"] <= len(read.json["text"])
        listed = (await call(app, "GET", "/v1/documents")).json["data"]
        assert [entry["id"] for entry in listed].count("new/boiler.md") == 1
        removed = await call(app, "DELETE", "/v1/documents/new/boiler.md")
        assert removed.json == {"id": "new/boiler.md", "object": "document.deleted", "deleted": True}
        found += ["litres" in await passages()]
        found += [(await call(app, "GET", "/v1/documents/new/boiler.md")).status]
        return [*found, (await call(app, "DELETE", "/v1/documents/new/boiler.md")).status]

    assert with_app(own_assistant, story) == [201, True, 200, True, False, 404, 404]
    room = own_assistant.folder / UPLOADS
    assert room.stat().st_mode & 0o777 == 0o700 and not list(room.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"no pdf"),
        ("a.docx", b"PK\x03\x04"),
        ("a.exe", b"MZ\x00\x01"),
        ("a.md", b""),
    ],
)
def test_what_cannot_be_read_is_a_422_and_leaves_nothing(own_assistant: Assistant, name: str, content: bytes) -> None:
    reply = with_app(own_assistant, lambda app: call(app, "PUT", f"/v1/documents/{name}", content, headers=OCTETS))
    assert reply.status == 422, reply
    assert not list((own_assistant.folder / UPLOADS).iterdir())
    assert len(own_assistant.index.documents) == 4


def test_uploads_are_bounded_and_a_broken_one_leaves_nothing(own_assistant: Assistant) -> None:
    """Two that never end fill the places; a third is turned away; when their clients leave, the places are free."""

    async def story(app: Application) -> list[Any]:
        leave = asyncio.Event()

        def endless() -> Any:
            sent = 0

            async def receive() -> Any:
                nonlocal sent
                sent += 1
                if sent < 4:
                    return {"type": "http.request", "body": b"a" * 1000, "more_body": True}
                await leave.wait()
                return {"type": "http.disconnect"}

            return receive

        async def nowhere(message: Any) -> None:
            del message

        headers = {**OCTETS, "transfer-encoding": "chunked"}
        tasks = [
            asyncio.create_task(app(scope_of("PUT", f"/v1/documents/{i}.md", headers), endless(), nowhere))
            for i in range(2)
        ]
        await asyncio.sleep(0.1)
        under_way = sum(file.suffix == ".upload" for file in (own_assistant.folder / UPLOADS).iterdir())
        modes = {file.stat().st_mode & 0o777 for file in (own_assistant.folder / UPLOADS).iterdir()}
        full = await call(app, "PUT", "/v1/documents/c.md", TEXT.encode(), headers=OCTETS)
        leave.set()
        await asyncio.gather(*tasks)
        after = await call(app, "PUT", "/v1/documents/c.md", TEXT.encode(), headers=OCTETS)
        return [
            under_way,
            modes,
            full.status,
            "retry-after" in full.headers,
            after.status,
            dict(app.service.slots.held),
        ]

    assert with_app(own_assistant, story) == [2, {0o600}, 429, True, 201, {}]
    assert not list((own_assistant.folder / UPLOADS).iterdir())
    assert {entry.path for entry in own_assistant.index.documents} >= {"c.md"}
    assert not {"0.md", "1.md"} & {entry.path for entry in own_assistant.index.documents}


def test_a_document_that_arrived_whole_is_added_though_its_client_left(
    own_assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file must outlive the request that brought it, and go when it was read."""
    begun, go = threading.Event(), threading.Event()
    really = documents_module.add_document

    def slow(*args: Any) -> Any:
        begun.set()
        assert go.wait(5)
        return really(*args)

    monkeypatch.setattr(documents_module, "add_document", slow)

    async def story(app: Application) -> bool:
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": TEXT.encode(), "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def nowhere(message: Any) -> None:
            del message

        task = asyncio.create_task(app(scope_of("PUT", "/v1/documents/b.md", OCTETS), receive, nowhere))
        await asyncio.to_thread(begun.wait, 5)
        gone.set()
        await task
        still = len(list((own_assistant.folder / UPLOADS).iterdir())) == 1 and app.service.uploads.held["all"] == 1
        go.set()
        return still

    assert with_app(own_assistant, story)
    assert "b.md" in {entry.path for entry in own_assistant.index.documents}
    assert not list((own_assistant.folder / UPLOADS).iterdir())


def test_old_uploads_of_a_killed_server_go(own_assistant: Assistant) -> None:
    room = own_assistant.folder / UPLOADS
    room.mkdir()
    for name, age in (("old", 90_000), ("young", 60)):
        file = room / f"{name}.upload"
        file.write_text("x")
        os.utime(file, (time.time() - age,) * 2)
    remove_old_uploads(own_assistant.folder)
    assert [file.name for file in room.iterdir()] == ["young.upload"]


def test_the_log_holds_no_words_of_anybody(own_assistant: Assistant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="almanac")

    async def story(app: Application) -> None:
        await call(app, "POST", "/v1/ask", {"question": "sesame sesame?"})
        await call(app, "PUT", "/v1/documents/sesame.md", b"# sesame\n\nA sesame is a seed.\n", headers=OCTETS)
        await call(app, "GET", "/v1/documents/sesame.md?sesame=1", headers={"user-agent": "sesame"})
        await call(app, "POST", "/v1/ask", b'{"sesame": ', headers={"content-type": "application/json"})
        await call(app, "GET", "/sesame")

    with_app(own_assistant, story)
    lines = [record.getMessage() for record in caplog.records if record.name == "almanac.serve"]
    assert len(lines) == 5 and "sesame" not in "".join(lines)
    assert lines[0].startswith("POST /v1/ask 200") and "/v1/documents/{path:path} 200" in lines[2]


def test_the_page_and_what_it_tells(assistant: Assistant) -> None:
    async def story(app: Application) -> list[Reply]:
        page = await call(app, "GET", "/")
        again = await call(app, "GET", "/", headers={"if-none-match": page.headers["etag"]})
        script = await call(app, "GET", "/ui/app.js")
        others = [await call(app, "GET", path) for path in ("/ui/none.js", "/ui/..%2fapp.py", "/docs", "/redoc")]
        return [page, again, script, await call(app, "GET", "/v1/assistant"), *others]

    page, again, script, about, *others = with_app(assistant, story)
    assert page.headers["content-type"].startswith("text/html") and b"<html" in page.body
    assert again.status == 304 and not again.body
    assert script.headers["content-type"].startswith("text/javascript")
    assert about.json["notice"] == "You are talking to a machine."
    assert about.json["card"] == "# Card\n" and about.json["documents"] == 4 and about.json["passages"] == 8
    assert about.json["has_report"] and about.json["settings"]["shown"] == assistant.settings.shown
    assert [reply.status for reply in others] == [404] * 4


def test_blocks_hide_the_size_of_a_piece(assistant: Assistant) -> None:
    for size in range(1, 300):
        whole = padded(event("a" * size), 64)
        assert len(whole) % 64 == 0 and whole.startswith(event("a" * size))
        rest = whole[len(event("a" * size)) :]
        assert not rest or (rest.startswith(b":") and rest.endswith(b"\n\n") and rest.count(b"\n") == 2)
    assert padded(b"abc", 0) == b"abc"
    sizes: list[int] = []

    async def story(app: Application) -> str:
        body = json.dumps({"question": QUESTION, "stream": True}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sizes.append(len(message.get("body", b"")))

        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await app(scope_of("POST", "/v1/ask", headers), receive, send)
        return ""

    with_app(assistant, story, stream_block_bytes=256)
    assert sum(sizes) > 0 and all(size % 256 == 0 for size in sizes)


def test_a_wrong_engine_is_not_served(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start-up check finds company that changes an answer, and numbers that are none."""
    check_engine(assistant.lm)
    network = assistant.lm.network
    really = network.logits

    def mixed(hidden: Any) -> Any:
        logits = really(hidden)
        return logits.roll(1, 0) if logits.shape[0] > 1 else logits  # a row gets its neighbour's words

    for wrong in (mixed, lambda hidden: really(hidden) * float("nan")):
        monkeypatch.setattr(network, "logits", wrong)
        with pytest.raises(IntegrityError, match="in company"):
            check_engine(assistant.lm)


def test_reading_waits_for_no_writer(own_assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(documents_module, "add_document", lambda *args: go.wait(5) and _added())

    async def story(app: Application) -> list[int]:
        put = asyncio.create_task(call(app, "PUT", "/v1/documents/b.md", b"x", headers=OCTETS))
        await asyncio.sleep(0.05)
        read = [await call(app, "GET", "/v1/documents"), await call(app, "POST", "/v1/ask", {"question": QUESTION})]
        go.set()
        return [reply.status for reply in (*read, await put)]

    assert with_app(own_assistant, story, limits=Limits(uploads=1)) == [200, 200, 201]


def _added() -> Any:
    from almanac.assistant.documents import Added

    return Added((), False, ())
