"""Many clients at once on a real server (R20, short): nobody gets another's words, and everything goes back to rest.

Of 64 clients, 30 % go away in the middle, some read slowly, some send nonsense, some half a request. Every answer is held
against the one computed beforehand with nothing else running.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from serve.world import Reply, call, running, scope_of, served

from almanac.assistant.ask import Assistant
from almanac.generate.sampling import sampling
from almanac.serve.app import Application, create_app
from almanac.serve.limits import Limits
from almanac.serve.settings import ServeSettings

SECONDS, CLIENTS, CANARIES = 7.0, 64, 24
CHAT = "/v1/chat/completions"


def body_of(index: int, **more: Any) -> dict[str, Any]:
    words = [{"role": "user", "content": f"Canary {index}: which ship?"}]
    return {"model": "model", "messages": words, "seed": index, "max_tokens": 4 + index % 9, **more}


def answer(assistant: Assistant, index: int) -> str:
    """What a canary is to be told, computed alone."""
    lm, body = assistant.lm, body_of(index)
    draw = sampling(temperature=1.0, seed=index)
    request = lm.request(lm.chat_tokens(body["messages"]), max_tokens=body["max_tokens"], sampling=draw)
    return "".join(event.text for event in lm.engine().submit(request))


class Wire:
    """A connection that speaks HTTP by hand, so that it can speak it badly."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Wire:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return

    async def ask(self, path: str, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, bytes]:
        raw = await self.reader.read()
        head, _, body = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        return status, _unchunked(body) if b"chunked" in head.lower() else body


def _unchunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        out, data = out + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return out


async def one_client(port: int, rng: random.Random, right: list[str], tally: Counter[str]) -> None:
    index = rng.randrange(CANARIES)
    kind = rng.choices(["whole", "stream", "gone", "slow", "bad", "half"], [30, 25, 30, 5, 7, 3])[0]
    async with Wire(port) as wire:
        if kind == "half":
            wire.writer.write(b"POST /v1/ask HTTP/1.1\r\nHost: lo")
            await asyncio.sleep(0.2)
        elif kind == "bad":
            await wire.ask(CHAT, rng.choice([b"{", b"[]", b'{"n": 99999999999999999999}', b"\xff", b'{"a":' * 999]))
            status, data = await wire.reply()
            assert status == 400 and "error" in json.loads(data), (status, data)
        elif kind == "gone":
            long = rng.random() < 0.5
            await wire.ask(CHAT, body_of(index, stream=rng.random() < 0.5, **({"max_tokens": 800} if long else {})))
            await asyncio.sleep(rng.random() * 0.1)
        else:
            await wire.ask(CHAT, body_of(index, stream=kind != "whole"))
            if kind == "slow":
                for _ in range(5):
                    await asyncio.sleep(0.05)
            status, data = await wire.reply()
            kind = _judge(status, data, right[index], kind)
    tally[kind] += 1


def _judge(status: int, data: bytes, right: str, kind: str) -> str:
    if status in (429, 503):
        assert json.loads(data)["error"]["code"] == "busy"
        return "turned away"
    assert status == 200, (status, data)
    if kind == "whole":
        text = json.loads(data)["choices"][0]["message"]["content"]
    else:
        events = Reply(body=data).events
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == right
    return kind


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def load(port: int, app: Application, right: list[str]) -> tuple[Counter[str], list[float], int]:
    tally: Counter[str] = Counter()
    waits: list[float] = []
    most = 0
    end = time.monotonic() + SECONDS

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            await one_client(port, rng, right, tally)

    async def health() -> None:
        nonlocal most
        while time.monotonic() < end:
            most = max(most, app.service.engine.taken)
            began = time.monotonic()
            _, writer = reader_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in await reader_writer[0].read()
            writer.close()
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    await asyncio.gather(health(), *(client(number) for number in range(CLIENTS)))
    return tally, waits, most


def test_64_clients_get_their_own_words_and_leave_nothing_behind(assistant: Assistant) -> None:
    right = [answer(assistant, index) for index in range(CANARIES)]
    limits = Limits(rows=6, queue=24, concurrency=CLIENTS, header_seconds=1)
    with served(assistant, ServeSettings(port=0, limits=limits)) as (port, app):
        asyncio.run(_warm(port, right))
        gc.collect()
        before, threads = open_files(), threading.active_count()
        tally, waits, most = asyncio.run(load(port, app, right))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (app.service.engine.taken or app.service.slots.held):
            time.sleep(0.01)
        assert app.service.engine.taken == 0 and not app.service.slots.held
        assert asyncio.run(_tasks_at_rest(port)) is None
        while time.monotonic() < deadline + 3 and open_files() > before:
            gc.collect()
            time.sleep(0.05)
        assert open_files() <= before
        assert threading.active_count() <= threads + 4  # the pool's threads come with the first work
        asyncio.run(_warm(port, right))
    assert most <= limits.rows + limits.queue
    for kind in ("whole", "stream", "gone", "slow", "bad", "half"):
        assert tally[kind] > 0, tally
    assert tally["whole"] + tally["stream"] >= 30, tally
    assert len(waits) > 2 and max(waits) < 5, waits  # no hang; how quick it is, `benchmarks/serve.py` measures


async def _warm(port: int, right: list[str]) -> None:
    async with Wire(port) as wire:
        await wire.ask(CHAT, body_of(3))
        assert _judge(*await wire.reply(), right[3], "whole") == "whole"


async def _tasks_at_rest(port: int) -> None:
    async with Wire(port) as wire:
        wire.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await wire.reply())[0] == 200


def in_tests_loop(limits: Limits, assistant: Assistant) -> Application:
    return create_app(assistant, settings=ServeSettings(limits=limits))


class Interrupted:
    """Runs a request and cancels it after so many turns of the event loop, at whatever await it then stands."""

    def __init__(self, app: Application, path: str, body: dict[str, Any]) -> None:
        self.app, self.path = app, path
        self.data = json.dumps(body).encode()
        self.asked = 0

    async def after(self, turns: int, *, by: str) -> bool:
        """Whether the request was still under way. ``by``: the client's leaving, or the server's own cancelling."""
        gone = asyncio.Event()
        read = False

        async def receive() -> Any:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": self.data, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        headers = {"content-type": "application/json", "content-length": str(len(self.data))}
        task = asyncio.create_task(self.app(scope_of("POST", self.path, headers), receive, send))
        for _ in range(turns):
            await asyncio.sleep(0)
        under_way = not task.done()
        if by == "client":
            gone.set()
        else:
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, f"still running {turns} turns on"
        return under_way


@pytest.mark.parametrize("by", ["client", "server"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, body_of(3, n=2)),
        (CHAT, body_of(4, stream=True, max_tokens=6)),
        ("/v1/ask", {"question": "How long does the pump last?", "stream": True}),
        ("/v1/embeddings", {"input": ["a", "b"]}),
    ],
    ids=["whole", "stream", "ask", "embeddings"],
)
def test_a_cancel_at_any_await_leaves_nothing_taken(
    assistant: Assistant, path: str, body: dict[str, Any], by: str
) -> None:
    """After 0, 1, 2, ... turns of the event loop, until the request ends by itself: the first awaits all, later ones
    ever more thinly."""

    right = answer(assistant, 5)

    async def story() -> int:
        app = in_tests_loop(Limits(), assistant)
        async with running(app):
            tasks = len(asyncio.all_tasks())
            turns, met = 0, 0
            while turns < 4000:
                if not await Interrupted(app, path, body).after(turns, by=by):
                    break
                met += 1
                turns += 1 if turns < 24 else turns // 5
                for _ in range(500):
                    if not (app.service.engine.taken or app.service.slots.held or len(asyncio.all_tasks()) > tasks):
                        break
                    await asyncio.sleep(0.002)
                assert app.service.engine.taken == 0
                assert not app.service.slots.held
                assert len(asyncio.all_tasks()) == tasks
            reply = await call(app, "POST", CHAT, body_of(5))
            assert reply.json["choices"][0]["message"]["content"] == right
        return met

    assert asyncio.run(story()) > 4


def test_a_plain_answer_is_not_computed_for_a_client_that_left(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    really = assistant.lm.network.hidden

    def counted(*args: Any) -> Any:
        nonlocal computed
        computed += 1
        time.sleep(0.002)
        return really(*args)

    monkeypatch.setattr(assistant.lm.network, "hidden", counted)

    async def story() -> None:
        app = in_tests_loop(Limits(), assistant)
        async with running(app):
            asked = Interrupted(app, CHAT, body_of(1, max_tokens=900, temperature=0))
            assert await asked.after(50, by="client")
            while app.service.engine.taken:
                await asyncio.sleep(0.001)

    asyncio.run(story())
    assert computed < 60


def test_a_token_may_compute_so_many_things_at_once(assistant: Assistant) -> None:
    async def story() -> list[list[int]]:
        app = in_tests_loop(Limits(concurrency=3, rows=8), assistant)
        found = []
        async with running(app):
            for count in (2, 3, 4):
                replies = await asyncio.gather(*(call(app, "POST", CHAT, body_of(i)) for i in range(count)))
                found.append(sorted(reply.status for reply in replies))
                for reply in replies:
                    assert reply.status == 200 or int(reply.headers["retry-after"]) > 0
        return found

    assert asyncio.run(story()) == [[200] * 2, [200] * 3, [200] * 3 + [429]]


def test_slow_headers_are_cut_off(assistant: Assistant) -> None:
    """Slow loris: on a new connection, on one that was kept after an answer, and on one that never says anything."""

    async def dribble(port: int, first: bytes, then: bytes = b"a") -> float:
        async with Wire(port) as wire:
            wire.writer.write(first)
            began = time.monotonic()
            reading = asyncio.create_task(wire.reader.read())  # ends with the connection
            while not reading.done() and time.monotonic() - began < 4:
                wire.writer.write(then)
                await asyncio.sleep(0.05)
            reading.cancel()
            await asyncio.wait([reading])
            return time.monotonic() - began

    with served(assistant, ServeSettings(port=0, limits=Limits(header_seconds=0.4))) as (port, _):
        assert 0.3 < asyncio.run(dribble(port, b"GET / HTTP/1.1\r\nX: ")) < 2
        kept = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert 0.3 < asyncio.run(dribble(port, kept + b"GET / HTTP/1.1\r\nX: ")) < 2
        assert 0.3 < asyncio.run(dribble(port, b"", b"")) < 2
        huge = asyncio.run(_first_line(port, b"GET / HTTP/1.1\r\nX: " + b"a" * 3_000_000))
        assert huge.startswith(b"HTTP/1.1 4"), huge


async def _first_line(port: int, data: bytes) -> bytes:
    async with Wire(port) as wire:
        wire.writer.write(data)
        return await wire.reader.readline()


def test_a_client_that_does_not_read_is_cut_off(own_assistant: Assistant) -> None:
    (own_assistant.folder / "card.md").write_text("word " * 800_000)

    async def unread(port: int, server: Any) -> tuple[int, int]:
        plain = socket.create_connection(("127.0.0.1", port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with plain:
            plain.sendall(b"GET /v1/assistant HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
            await asyncio.sleep(0.3)
            before = len(server.server_state.connections)
            for _ in range(60):
                await asyncio.sleep(0.05)
                if not server.server_state.connections:
                    break
            return before, len(server.server_state.connections)

    limits = Limits(idle_write_seconds=0.6)
    with served(own_assistant, ServeSettings(port=0, limits=limits)) as (port, app):
        assert asyncio.run(unread(port, app.server)) == (1, 0)  # type: ignore[attr-defined]


def test_connections_are_bounded(assistant: Assistant) -> None:
    async def statuses(port: int) -> tuple[int, int]:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(Wire(port))
            await asyncio.sleep(0.1)
            async with Wire(port) as wire:
                await wire.ask(CHAT, body_of(1))
                full, _ = await wire.reply()
        await asyncio.sleep(0.2)
        async with Wire(port) as wire:
            await wire.ask(CHAT, body_of(1))
            return full, (await wire.reply())[0]

    with served(assistant, ServeSettings(port=0, limits=Limits(connections=4))) as (port, _):
        assert asyncio.run(statuses(port)) == (503, 200)
