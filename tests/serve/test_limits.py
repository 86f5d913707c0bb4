"""Every limit one below, at, and one above (R23), in-process: the bytes never reach a socket here."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from typing import Any

import pytest
from serve.world import Reply, call, running, scope_of

from almanac.assistant.ask import Assistant
from almanac.serve import limits as api_limits
from almanac.serve.app import create_app
from almanac.serve.limits import Limits
from almanac.serve.settings import ServeSettings

CHAT, COMPLETE, EMBED, ASK = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/ask"
USER = {"role": "user", "content": "Hi"}
BARE = {"model": "model", "max_tokens": 1}


def statuses(assistant: Assistant, calls: list[tuple[Any, ...]], **limits: Any) -> list[int]:
    """The status of each call, one after another, on a server with these limits."""

    async def all_of_them() -> list[int]:
        app = create_app(assistant, settings=ServeSettings(limits=Limits(**limits)))
        async with running(app):
            return [(await call(app, *item[:3], headers=item[3] if len(item) > 3 else None)).status for item in calls]

    return asyncio.run(all_of_them())


def nested(depth: int) -> bytes:
    """JSON whose deepest list lies ``depth`` levels down."""
    return b'{"question":"a","deep":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


JSON = {"content-type": "application/json"}


def test_sizes_of_headers_and_bodies(assistant: Assistant) -> None:
    fixed = sum(len(k) + len(v) + 4 for k, v in scope_of("GET", "/", {"x": ""})["headers"]) + len("/v1/models")
    headers = [("GET", "/v1/models", None, {"x": "a" * (1000 - fixed + more)}) for more in (-1, 0, 1)]
    assert statuses(assistant, headers, header_bytes=1000) == [200, 200, 431]
    texts = [json.dumps({"input": "a" * (n - len('{"input": ""}'))}).encode() for n in (199, 200, 201)]
    assert [len(text) for text in texts] == [199, 200, 201]
    assert statuses(assistant, [("POST", EMBED, text, JSON) for text in texts], body_bytes=200) == [200, 200, 413]


def test_a_body_larger_than_it_says_is_cut_off_where_it_passes_the_limit(assistant: Assistant) -> None:
    """Pieces of 100 bytes, for ever; a chunked body declares no length."""

    async def flood(declared: str | None) -> tuple[int, int]:
        app = create_app(assistant, settings=ServeSettings(limits=Limits(body_bytes=1000)))
        asked, reply = 0, Reply()

        async def receive() -> Any:
            nonlocal asked
            asked += 1
            return {"type": "http.request", "body": b" " * 100, "more_body": True}

        async def send(message: Any) -> None:
            reply.status = message.get("status", reply.status)

        headers = {**JSON, "transfer-encoding": "chunked"} if declared is None else {**JSON, "content-length": declared}
        await app(scope_of("POST", ASK, headers), receive, send)
        return reply.status, asked

    assert asyncio.run(flood(None)) == (413, 11)
    assert asyncio.run(flood("1001")) == (413, 0)
    assert asyncio.run(flood("1000")) == (413, 11)
    assert asyncio.run(flood("9" * 400)) == (413, 0)
    assert asyncio.run(flood("+5")) == (400, 0)
    assert asyncio.run(flood("-5")) == (400, 0)


def test_uploads(own_assistant: Assistant) -> None:
    octets = {"content-type": "application/octet-stream"}
    calls = [("PUT", f"/v1/documents/{n}.txt", b"word " * (n // 5) + b"." * (n % 5), octets) for n in (299, 300, 301)]
    assert statuses(own_assistant, calls, upload_bytes=300, body_bytes=10) == [201, 201, 413]
    assert not list((own_assistant.folder / ".uploads").iterdir())


def test_json_depth_and_count(assistant: Assistant) -> None:
    """What is too deep is refused before it is looked at; what is not is refused for its field."""

    async def messages() -> list[str]:
        app = create_app(assistant, settings=ServeSettings(limits=Limits(json_values=100)))
        many = [b'{"input":[' + b",".join([b'"a"'] * n) + b"]}" for n in (97, 98, 99)]
        bodies = [nested(63), nested(64), nested(65), *many]
        async with running(app):
            return [
                f"{reply.status} {reply.json['error']['message'][:40]}" if reply.status != 200 else "200"
                for reply in [await call(app, "POST", EMBED, body, headers=JSON) for body in bodies]
            ]

    found = asyncio.run(messages())
    assert [text[:3] for text in found] == ["400", "400", "400", "200", "200", "400"]
    assert "Field required" in found[0] and "Field required" in found[1]
    assert "deeper" in asyncio.run(_message(assistant, nested(65)))
    assert "more than" in asyncio.run(_message(assistant, b'{"input":[' + b",".join([b"1"] * 300_000) + b"]}"))


async def _message(assistant: Assistant, body: bytes) -> str:
    app = create_app(assistant, settings=ServeSettings())
    async with running(app):
        reply = await call(app, "POST", EMBED, body, headers=JSON)
    assert reply.status == 400
    return str(reply.json["error"]["message"])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"question":' + b"9" * 1_000_000 + b"}",
        b'{"question":"' + b"\\u0041" * 1_000_000 + b'"}',
        b'{"messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 40_000) + b"]}",
        b'{"stop":[' + b",".join([b'"a"'] * 1_000_000) + b"]}",
    ],
    ids=["open", "deep lists", "deep objects", "a long number", "escapes", "messages", "a million entries"],
)
def test_bombs_are_answered_within_a_second_and_little_memory(assistant: Assistant, body: bytes) -> None:
    async def one() -> tuple[int, float]:
        app = create_app(assistant, settings=ServeSettings())
        async with running(app):
            began = time.monotonic()
            reply = await call(app, "POST", CHAT, body, headers=JSON)
            return reply.status, time.monotonic() - began

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, seconds = asyncio.run(one())
    assert status == 400
    assert seconds < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("n", [0, 1, 8, 9], [400, 200, 200, 400]),
        ("stop", [[], ["x"] * 15, ["x"] * 16, ["x"] * 17], [200, 200, 200, 400]),
        ("stop", ["", "x" * 255, "x" * 256, "x" * 257], [400, 200, 200, 400]),
        ("top_logprobs", [-1, 0, 19, 20, 21], [400, 200, 200, 200, 400]),
        ("max_tokens", [-1, 0, 1, 2**63 - 1, 2**63], [400, 400, 200, 200, 400]),
        ("max_completion_tokens", [0, 1], [400, 200]),
        ("temperature", [-0.001, 0, 1e-6, 9e-7, 100, 100.001], [400, 200, 200, 400, 200, 400]),
        ("top_p", [0, 9e-7, 1e-6, 1, 1.001], [400, 400, 200, 200, 400]),
        ("min_p", [0, 1e-9, 1, 1.001], [400, 200, 200, 400]),
        ("top_k", [-1, 0, 1, 2**63 - 1, 2**63], [400, 400, 200, 200, 400]),
        ("repetition_penalty", [0, 0.009, 0.01, 100, 100.1], [400, 400, 200, 200, 400]),
        ("seed", [-(2**63) - 1, -(2**63), 2**63 - 1, 2**63], [400, 200, 200, 400]),
        ("user", ["u" * 255, "u" * 256, "u" * 257], [200, 200, 400]),
        ("frequency_penalty", [-0.1, 0, 0.1], [400, 200, 400]),
        ("logit_bias", [{}, {"1": 1}], [200, 400]),
        ("messages", [[], [USER], [USER] * 3], [400, 200, 200]),
    ],
)
def test_fields_of_a_chat(assistant: Assistant, field: str, values: list[Any], expected: list[int]) -> None:
    base = {**BARE, "messages": [USER], "logprobs": field == "top_logprobs"}
    if field == "max_tokens" and values:
        base["stop"] = ["e", "a", "i", "o", "u", " "]  # ends soon
    if field == "max_completion_tokens":
        base.pop("max_tokens")
    assert statuses(assistant, [("POST", CHAT, {**base, field: value}) for value in values]) == expected


def test_many_messages_parts_prompts_and_inputs(assistant: Assistant) -> None:
    most = api_limits.MAX_MESSAGES
    tiny = {"role": "user", "content": ""}
    chats = [("POST", CHAT, {**BARE, "messages": [tiny] * n}) for n in (most + 1,)]
    part = {"type": "text", "text": "a"}
    most = api_limits.MAX_PARTS
    chats += [("POST", CHAT, {**BARE, "messages": [{**USER, "content": [part] * n}]}) for n in (most, most + 1)]
    assert statuses(assistant, chats) == [400, 200, 400]
    most = api_limits.MAX_INPUTS
    inputs = [("POST", EMBED, {"input": ["a"] * n}) for n in (0, 1, most, most + 1)]
    assert statuses(assistant, inputs) == [400, 200, 200, 400]
    words = [("POST", EMBED, {"input": "a " * n}) for n in (31, 32, 33)]  # the encoder reads 32
    assert statuses(assistant, words) == [200, 200, 400]
    prompts = [("POST", COMPLETE, {**BARE, "prompt": ["a"] * k, "n": n}) for k, n in ((8, 1), (4, 2), (3, 3), (9, 1))]
    assert statuses(assistant, prompts) == [200, 200, 400, 400]
    logprobs = [("POST", COMPLETE, {**BARE, "prompt": "a", "logprobs": n}) for n in (-1, 0, 5, 6)]
    assert statuses(assistant, logprobs) == [400, 200, 200, 400]


def test_questions_and_the_context(assistant: Assistant) -> None:
    most = api_limits.MAX_QUESTION_CHARACTERS
    asked = [("POST", ASK, {"question": "zq " * (n // 3) + "?" * (n % 3)}) for n in (most - 1, most, most + 1)]
    assert statuses(assistant, asked) == [200, 200, 400]  # nothing matches, so nothing is written
    context = assistant.lm.network.context_length
    ids = [("POST", COMPLETE, {**BARE, "prompt": [5] * n}) for n in (context - 2, context - 1, context)]
    assert statuses(assistant, ids) == [200, 200, 400]
    known = assistant.lm.network.vocab_size
    rows = [("POST", COMPLETE, {**BARE, "prompt": [n]}) for n in (-1, 0, known - 1, known, 2**31)]
    assert statuses(assistant, rows) == [400, 200, 200, 400, 400]


def test_slow_bodies_are_bounded(assistant: Assistant) -> None:
    """One byte now and then: the pause is bounded, and so is the whole."""

    async def dribble(pause: float, path: str, method: str) -> tuple[int, float]:
        limits = Limits(body_idle_seconds=0.2, body_seconds=0.5)
        app = create_app(assistant, settings=ServeSettings(limits=limits))
        reply = Reply()

        async def receive() -> Any:
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            reply.status = message.get("status", reply.status)

        kind = "application/octet-stream" if method == "PUT" else "application/json"
        began = time.monotonic()
        headers = {"content-type": kind, "transfer-encoding": "chunked"}
        async with running(app):
            await app(scope_of(method, path, headers), receive, send)
        return reply.status, time.monotonic() - began

    for pause, path, method in ((0.4, ASK, "POST"), (0.1, ASK, "POST"), (0.4, "/v1/documents/a.txt", "PUT")):
        status, seconds = asyncio.run(dribble(pause, path, method))
        assert status == 408 and seconds < 1.5


def test_the_whole_request_is_bounded(assistant: Assistant) -> None:
    async def late() -> int:
        app = create_app(assistant, settings=ServeSettings(limits=Limits(total_seconds=0.2)))
        async with running(app):
            body = {"model": "model", "messages": [USER], "max_tokens": 900, "temperature": 0}
            reply = await call(app, "POST", CHAT, body)
            assert not app.service.slots.held
            for _ in range(100):
                if not app.service.engine.taken:
                    break
                await asyncio.sleep(0.01)
            assert app.service.engine.taken == 0
        return reply.status

    assert asyncio.run(late()) == 503


@pytest.mark.parametrize(
    "body",
    [
        '{"temperature": NaN, %s}',
        '{"temperature": Infinity, %s}',
        '{"temperature": -Infinity, %s}',
        '{"temperature": 1e999, %s}',
        '{"temperature": "1", %s}',
        '{"temperature": true, %s}',
        '{"temperature": [1], %s}',
        '{"max_tokens": 1.5, %s}',
        '{"max_tokens": 1e3, %s}',
        '{"max_tokens": -9223372036854775809, %s}',
        '{"seed": 1' + "0" * 5000 + ", %s}",
        '{"seed": 1' + "0" * 300 + ", %s}",
        '{"n": null, "n": 1, %s}',
        '{"unknown": 1, %s}',
        '{"tools": [], %s}',
        '{"stream": "yes", %s}',
        '{"stream_options": {"include_usage": true}, %s}',
        '{"top_logprobs": 1, %s}',
        '{"user": "\\ud800", %s}',
        '{"stop": "\\udfff\\ud800", %s}',
        "[%s]",
        '"%s"',
        "{%s} {}",
        "\xff%s",
    ],
)
def test_malformed_fields_are_the_clients_fault(assistant: Assistant, body: str) -> None:
    text = body % '"model": "model", "messages": [{"role": "user", "content": "a"}]'
    reply = asyncio.run(_raw(assistant, text.encode("latin-1")))
    assert reply.status == 400
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert ("Traceback" not in error["message"] and "/openapi.json" in error["message"]) or "Send" in error["message"]


async def _raw(assistant: Assistant, body: bytes) -> Reply:
    app = create_app(assistant, settings=ServeSettings())
    async with running(app):
        return await call(app, "POST", CHAT, body, headers=JSON)
