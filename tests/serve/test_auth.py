"""Who gets in (R19): every route of the application under every way to ask wrongly, and what comes before what."""

from __future__ import annotations

import asyncio
import hmac
import os
from pathlib import Path
from typing import Any

import pytest
from serve.world import TOKENS, Reply, call, running, scope_of, token_file

from almanac.assistant.ask import Assistant
from almanac.core.errors import NotFoundError, RequestError
from almanac.serve import app as app_module
from almanac.serve import tokens as tokens_module
from almanac.serve.app import Application, create_app, routes_of
from almanac.serve.errors import RefusedError
from almanac.serve.limits import Limits
from almanac.serve.policies import POLICIES, Policy, policy_of
from almanac.serve.settings import ServeSettings
from almanac.serve.tickets import Tickets
from almanac.serve.tokens import TokenFile, make_token_file

ADA = {"authorization": f"Bearer {TOKENS['ada']}"}


@pytest.fixture
def app(assistant: Assistant, tmp_path: Path) -> Application:
    return create_app(assistant, settings=ServeSettings(token_file=str(token_file(tmp_path))))


def every_route(app: Application) -> list[tuple[str, str]]:
    """Method and a concrete path of every route, read from the application."""
    found = []
    for route in sorted(routes_of(app.api)):
        method, _, path = route.partition(" ")
        for name, value in {"{file}": "app.js", "{path:path}": "a/b.md", "{model}": "model"}.items():
            path = path.replace(name, value)
        assert "{" not in path
        found.append((method, path))
    return found


class Untouched:
    """``receive`` of a client whose body must not be asked for."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> Any:
        self.calls += 1
        raise AssertionError("the body was asked for")


async def refused(app: Application, method: str, path: str, headers: dict[str, Any], **changes: Any) -> Reply:
    """A request whose body must stay unread; with a declared body, so that nothing is refused for want of one."""
    receive, reply = Untouched(), Reply()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
        elif message["type"] == "websocket.close":
            reply.closed = message["code"]
        else:
            reply.body += message.get("body", b"")

    wanted = "application/octet-stream" if method == "PUT" else "application/json"
    given = {"content-type": wanted, "content-length": "2", **headers}
    await app(scope_of(method, path, given, **changes), receive, send)
    assert receive.calls == 0, (method, path, headers)
    return reply


def conditions(public: bool) -> dict[str, tuple[dict[str, Any], dict[str, Any], str, set[int]]]:
    """Name -> headers, changes of the scope, what is added to the path, and the statuses that are right."""
    wrong = {"authorization": "Bearer " + "c" * 43}
    no = {200, 404} if public else {401}
    return {
        "none": ({}, {}, "", no),
        "wrong": (wrong, {}, "", no),
        "no scheme": ({"authorization": TOKENS["ada"]}, {}, "", no),
        "a part": ({"authorization": f"Bearer {TOKENS['ada'][:-1]}"}, {}, "", no),
        "in the address": ({}, {}, f"?token={TOKENS['ada']}", {400} if public else {401}),
        "in the address too": (ADA, {}, f"?api_key={TOKENS['ada']}", {400} if public else {401}),
        "wrong host": ({**ADA, "host": "evil.example"}, {}, "", {403}),
        "no host": ({**ADA, "host": None}, {}, "", {403}),
        "a host that begins alike": ({**ADA, "host": "localhost.evil.example"}, {}, "", {403}),
        "foreign origin": ({**ADA, "origin": "http://evil.example"}, {}, "", {403}),
        "origin of another port": ({**ADA, "origin": "http://localhost:3000"}, {}, "", {403}),
        "null origin": ({**ADA, "origin": "null"}, {}, "", {403}),
        "a page elsewhere": ({**ADA, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, {}, "", {403}),
        "a page on this machine": ({**ADA, "sec-fetch-site": "same-site"}, {}, "", {403}),
        "text/plain": ({**ADA, "content-type": "text/plain"}, {}, "", {415}),
        "a form": ({**ADA, "content-type": "multipart/form-data; boundary=x"}, {}, "", {415}),
        "compressed": ({**ADA, "content-encoding": "gzip"}, {}, "", {415}),
        "upgrade": ({**ADA, "upgrade": "websocket", "connection": "upgrade"}, {}, "", {400}),
    }


def test_every_route_under_every_condition(app: Application) -> None:
    async def matrix() -> int:
        done = 0
        for method, path in every_route(app):
            public = policy_of(method, path, frozenset({"app.js"})) is Policy.PUBLIC
            for name, (headers, changes, tail, right) in conditions(public).items():
                if public and name in ("none", "wrong", "no scheme", "a part"):
                    reply = await call(app, method, path, headers=headers)
                else:
                    reply = await refused(app, method, path + tail, headers, **changes)
                assert reply.status in right, (method, path, name, reply)
                assert TOKENS["ada"] not in reply.body.decode()
                done += 1
            reply = await refused(app, method, path, ADA, type="websocket")
            assert reply.closed == 1008 and not reply.status
            done += 1
        return done

    assert asyncio.run(matrix()) == 20 * 19


def test_a_withdrawn_token_is_refused_at_once(assistant: Assistant, tmp_path: Path) -> None:
    path = token_file(tmp_path)
    app = create_app(assistant, settings=ServeSettings(token_file=str(path)))

    async def states() -> list[list[int]]:
        found = []
        for change in (lambda: None, lambda: token_file(tmp_path, bob=TOKENS["bob"]), lambda: path.chmod(0o640)):
            change()
            bob = {"authorization": f"Bearer {TOKENS['bob']}"}
            found.append([(await call(app, "GET", "/v1/models", headers=who)).status for who in (ADA, bob)])
        path.unlink()
        found.append([(await call(app, "GET", "/v1/models", headers=ADA)).status])
        return found

    assert asyncio.run(states()) == [[200, 200], [401, 200], [401, 401], [401]]


def test_without_a_token_only_this_machine_is_served(assistant: Assistant) -> None:
    app = create_app(assistant, settings=ServeSettings())

    async def statuses(*clients: Any, **headers: str) -> list[int]:
        return [(await call(app, "GET", "/v1/models", headers=headers, client=client)).status for client in clients]

    assert asyncio.run(statuses(("127.0.0.1", 1), ("::1", 1))) == [200, 200]
    assert asyncio.run(statuses(("192.0.2.7", 1), None)) == [403, 403]
    assert asyncio.run(statuses(("127.0.0.1", 1), **{"x-forwarded-for": "192.0.2.7"})) == [403]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "LOCALHOST:8000"}, 200),
        ({"host": "127.0.0.1:9"}, 200),
        ({"host": "[::1]:9"}, 200),
        ({"host": "[::1]"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost", "origin": "https://localhost"}, 200),
        ({"host": "localhost:80:80"}, 403),
        ({"host": "localhost:8a"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "::1"}, 403),
        ({"content-type": 'application/json; charset="utf-8"'}, 200),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/jsonx"}, 415),
    ],
)
def test_hosts_origins_and_types(app: Application, headers: dict[str, str], status: int) -> None:
    assert asyncio.run(call(app, "GET", "/v1/models", headers={**ADA, **headers})).status == status


@pytest.mark.parametrize("name", ["host", "authorization", "origin", "content-type"])
def test_a_header_that_decides_comes_once(app: Application, name: str) -> None:
    values = {"host": "localhost", **ADA, "origin": "http://localhost", "content-type": "application/json"}

    async def twice() -> Reply:
        scope = scope_of("GET", "/v1/models", values)
        scope["headers"].append((name.encode(), values[name].encode()))
        reply = Reply()

        async def send(message: Any) -> None:
            reply.status = message.get("status", reply.status)

        await app(scope, Untouched(), send)
        return reply

    assert asyncio.run(twice()).status == 400


def test_a_body_without_a_type_is_refused(app: Application) -> None:
    for headers in ({"content-length": "2"}, {"transfer-encoding": "chunked"}):
        reply = asyncio.run(refused(app, "POST", "/v1/ask", {**ADA, "content-type": None, **headers}))
        assert reply.status == 415


def test_a_link_to_the_page_works_and_responses_lend_no_rights(app: Application) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    page = asyncio.run(call(app, "GET", "/", headers=link))
    assert page.status == 200
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert asyncio.run(call(app, "GET", "/v1/models", headers={**ADA, **link})).status == 403
    for reply in (page, asyncio.run(call(app, "GET", "/v1/models", headers=ADA)), asyncio.run(call(app, "GET", "/x"))):
        assert "access-control-allow-origin" not in reply.headers
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert asyncio.run(call(app, "GET", "/v1/models", headers=ADA)).headers["cache-control"] == "no-store"


def test_tickets_open_the_report_once_and_nothing_else(app: Application) -> None:
    async def story() -> list[int]:
        async with running(app):
            first, second = [(await call(app, "POST", "/v1/tickets", headers=ADA)).json["ticket"] for _ in range(2)]
            other = await call(app, "GET", f"/v1/models?ticket={first}")
            opened = [await call(app, "GET", f"/report?ticket={first}") for _ in range(2)]
            wrong = await call(app, "GET", f"/report?ticket={second[:-1]}")
            bob = await call(app, "GET", "/report", headers={"authorization": f"Bearer {TOKENS['bob']}"})
            assert opened[0].headers["content-security-policy"].startswith("default-src 'none'")
            return [other.status, *(reply.status for reply in opened), wrong.status, bob.status]

    assert asyncio.run(story()) == [401, 200, 401, 401, 200]


def test_tickets_end_and_are_bounded() -> None:
    now = [100.0]
    limits = Limits(tickets=3)
    tickets = Tickets(limits, clock=lambda: now[0])
    made = [tickets.make("ada") for _ in range(3)]
    with pytest.raises(RefusedError, match="3 tickets"):
        tickets.make("ada")
    assert tickets.redeem(tickets.make("bob")) == "bob"
    now[0] += limits.ticket_seconds - 0.001
    assert tickets.redeem(made[0]) == "ada"
    now[0] += 0.001
    assert tickets.redeem(made[1]) is None and len(tickets) == 0


def test_a_route_without_a_policy_is_not_served(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import FastAPI

    monkeypatch.delitem(POLICIES, "GET /v1/models")
    with pytest.raises(AssertionError, match="GET /v1/models"):
        create_app(assistant, settings=ServeSettings())
    bare = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    bare.add_api_websocket_route("/ws", lambda socket: None)
    bare.mount("/files", FastAPI())
    assert {"ANY /ws", "ANY /files"} <= app_module.routes_of(bare)


def test_the_policies_name_what_exists_and_the_gate_agrees(app: Application) -> None:
    assert routes_of(app.api) == set(POLICIES)
    for route, policy in POLICIES.items():
        method, _, path = route.partition(" ")
        path = path.replace("{file}", "app.js").replace("{path:path}", "x").replace("{model}", "x")
        assert policy_of(method, path, frozenset({"app.js"})) is policy, route
    for path in ("/ui/other.js", "/ui/../v1/models", "/ui/", "//", "/healthz/", "/report/", "/Healthz", "/ui/app.js/"):
        assert policy_of("GET", path, frozenset({"app.js"})) is Policy.TOKEN, path
    assert policy_of("POST", "/healthz", frozenset()) is Policy.TOKEN


def test_tokens_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known token is compared by ``compare_digest``, the right one first or last, on digests of equal length."""
    seen: list[tuple[int, int]] = []
    really = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        seen.append((len(left), len(right)))
        return really(left, right)

    monkeypatch.setattr(tokens_module.hmac, "compare_digest", compare)
    tokens = TokenFile(token_file(tmp_path))
    for presented, owner in ((TOKENS["ada"], "ada"), (TOKENS["bob"], "bob"), ("", None), ("x" * 9999, None)):
        seen.clear()
        assert tokens.owner_of(presented) == owner
        assert seen == [(32, 32)] * 2


def test_a_token_file_is_made_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "made"
    token = make_token_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 43 and TokenFile(path).owner_of(token) == "owner"
    other = tmp_path / "other"
    assert make_token_file(other) != token
    with pytest.raises(NotFoundError):
        TokenFile(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("short\n", "256 bits"),
        ("a" * 42, "256 bits"),
        ("x y z\n", "256 bits"),
        ("# nothing\n", "no token"),
        ("", "no token"),
    ],
)
def test_a_weak_token_file_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RequestError, match=match):
        TokenFile(path)


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(RequestError, match="Others can read"):
            TokenFile(path)
    path.chmod(0o600)
    assert os.access(path, os.R_OK) and TokenFile(path).owner_of(TOKENS["bob"]) == "bob"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"host": "192.0.2.1"}, "no token"),
        ({"host": "::"}, "no token"),
        ({"host": "0.0.0" + ".0"}, "no token"),
        ({"host": ""}, "no token"),
        ({"host": "example.org"}, "no token"),
        ({"host": "127.0.0.1.example.org"}, "no token"),
        ({"host": "192.0.2.1", "token_file": "t"}, "in the clear"),
        ({"host": "::", "token_file": "t", "behind_proxy": True}, "--allow-host"),
        ({"certificate": "c"}, "both"),
        ({"key": "k"}, "both"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"stream_block_bytes": 65537}, "Blocks"),
        ({"stream_block_bytes": -1}, "Blocks"),
    ],
)
def test_unsafe_settings_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        ServeSettings(**changes).check()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"host": "::1"},
        {"host": "127.9.9.9"},
        {"host": "192.0.2.1", "token_file": "t", "behind_proxy": True},
        {"host": "192.0.2.1", "token_file": "t", "certificate": "c", "key": "k"},
        {"host": "::", "token_file": "t", "behind_proxy": True, "hosts": ("almanac.example",)},
        {"port": 0},
        {"port": 65535},
        {"stream_block_bytes": 65536},
    ],
)
def test_safe_settings_pass(changes: dict[str, Any]) -> None:
    ServeSettings(**changes).check()


def test_a_public_address_serves_its_own_names_only(assistant: Assistant, tmp_path: Path) -> None:
    settings = ServeSettings(
        host="192.0.2.1", token_file=str(token_file(tmp_path)), behind_proxy=True, hosts=("Almanac.example",)
    )
    app = create_app(assistant, settings=settings)

    async def statuses() -> list[int]:
        hosts = ("192.0.2.1:8000", "almanac.example", "localhost", "127.0.0.1")
        away = ("203.0.113.5", 1)
        return [
            (await call(app, "GET", "/v1/models", headers={**ADA, "host": host}, client=away)).status for host in hosts
        ]

    assert asyncio.run(statuses()) == [200, 200, 403, 403]
