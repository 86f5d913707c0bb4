"""The routes of training runs: what they tell, what they cost, and what no name and no folder can make them do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import pytest
from serve.world import TOKENS, Reply, call, running, token_file

from almanac.assistant.ask import Assistant
from almanac.core.errors import NotFoundError, RequestError
from almanac.files.store import Lock
from almanac.serve.app import create_app, routes_of, serve
from almanac.serve.limits import Limits
from almanac.serve.monitor import create_monitor
from almanac.serve.policies import POLICIES
from almanac.serve.settings import ServeSettings
from almanac.train.events.curves import POINTS

NAME = "books/.pretrain/run"


def log_lines(first: int, last: int, **fields: Any) -> bytes:
    given = {"learning_rate": 0.1, "gradient_norm": 2.0, "tokens": 100, "seconds": 0.5, "skipped": None, **fields}
    lines = [json.dumps({"step": s, "loss": 10 / s, **given}) for s in range(first, last + 1)]
    return "".join(f"{line}\n" for line in lines).encode()


def run_in(root: Path, name: str = NAME, *, done: int = 50, steps: int = 100) -> Path:
    """A run folder by hand, with measurements beside it."""
    folder = root / name
    folder.mkdir(parents=True)
    identity = {"settings": {"steps": steps, "optimizer": {"beta2": 0.95}}}
    forecast = {"seconds": 60.0, "peak_bytes": 1e9, "energy": {"watt_hours": 0.5}}
    (folder / "run.json").write_text(json.dumps({"version": 1, "identity": identity, "forecast": forecast}))
    (folder / "metrics.jsonl").write_bytes(log_lines(1, done))
    (folder / "memory.jsonl").write_text("".join(f'{{"step": {s}, "bytes": 5000}}\n' for s in range(1, done + 1)))
    (folder.parent / "measured.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "loss": 3.0, "bits_per_byte": 2.0, "sample": f"<b>{s}"}) + "\n" for s in (0, 25, 50)
        )
    )
    return folder


def replies(root: Path, *paths: str | Callable[[], object], **limits: Any) -> list[Reply]:
    """The replies to requests one after another; what is no path is done in between."""

    async def all_of_them() -> list[Reply]:
        app = create_monitor(root, settings=ServeSettings(limits=Limits(**limits)))
        found = []
        async with running(app):
            for path in paths:
                if isinstance(path, str):
                    found.append(await call(app, "GET", path))
                else:
                    path()
        return found

    return asyncio.run(all_of_them())


def address(name: str, version: str = "") -> str:
    return f"/v1/runs/{quote(name)}?version={version}"


def test_a_run_is_told_whole(tmp_path: Path) -> None:
    folder = run_in(tmp_path)
    with Lock(folder):
        listed, whole = replies(tmp_path, "/v1/runs", address(NAME))
    (entry,) = listed.json["data"]
    assert entry["name"] == NAME and entry["state"] == "running" and entry["seconds_left"] == 25.0
    assert listed.json["has_assistant"] is False
    body = whole.json
    assert body["whole"] and body["complete"] and body["share_read"] == 1 and body["damaged_lines"] == 0
    assert (body["step"], body["steps"], body["tokens"], body["seconds"]) == (50, 100, 5000, 25)
    assert [point[1:3] for point in body["curves"]["loss"]] == [[s, pytest.approx(10 / s)] for s in range(1, 51)]
    assert set(body["curves"]) == {
        "loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes", "held_out_loss", "bits_per_byte",
    }  # fmt: skip
    assert body["samples"][0] == {"step": 50, "text": "<b>50"} and len(body["samples"]) == 3
    assert body["settings"] == [["steps", "100"], ["optimizer.beta2", "0.95"]]
    assert body["forecast"] == {"seconds": 60, "peak_bytes": 1e9, "watt_hours": 0.5} and body["measured"] is None


def test_later_answers_hold_what_is_new(tmp_path: Path) -> None:
    """A page that puts the pieces together has what one that asks once has."""
    folder = run_in(tmp_path)
    log = folder / "metrics.jsonl"
    held: dict[str, dict[int, Any]] = {}
    version, sizes = "", []

    async def follow() -> dict[str, Any]:
        nonlocal version
        app = create_monitor(tmp_path, settings=ServeSettings())
        async with running(app):
            for last in (50, 50, 51, 60, 700, 1500, 1501, 4000):
                done = last_step(log)
                with log.open("ab") as stream:
                    stream.write(log_lines(done + 1, last))
                body = (await call(app, "GET", address(NAME, version))).json
                version = body["version"]
                sizes.append(len(body["curves"].get("loss", [])))
                if body["whole"]:
                    held.clear()
                for name, points in body["curves"].items():
                    held.setdefault(name, {}).update({point[0]: point for point in points})
                assert (body["samples"] is not None) == body["whole"]
            return (await call(app, "GET", address(NAME))).json

    whole = asyncio.run(follow())
    assert whole["complete"] and whole["step"] == 4000
    for name, points in whole["curves"].items():
        assert [held[name][place] for place in sorted(held[name])] == points, name
    assert sizes[1] <= 1 and sizes[2] <= 2 and sizes[6] <= 2
    assert all(len(points) <= POINTS for points in whole["curves"].values())


def last_step(log: Path) -> int:
    return int(json.loads(log.read_bytes().splitlines()[-1])["step"])


def test_a_run_begun_again_is_told_whole(tmp_path: Path) -> None:
    folder = run_in(tmp_path)

    async def follow() -> list[dict[str, Any]]:
        app = create_monitor(tmp_path, settings=ServeSettings())
        async with running(app):
            first = (await call(app, "GET", address(NAME))).json
            fresh = folder / "fresh"
            fresh.write_bytes(log_lines(1, 30, loss=9.0))
            fresh.replace(folder / "metrics.jsonl")
            return [first, (await call(app, "GET", address(NAME, first["version"]))).json]

    first, second = asyncio.run(follow())
    assert second["whole"] and second["step"] == 30 and second["samples"] == first["samples"]
    assert {point[2] for point in second["curves"]["loss"]} == {9.0}


def test_a_long_log_is_read_in_pieces(tmp_path: Path) -> None:
    folder = run_in(tmp_path)
    size = 200_000
    (folder / "metrics.jsonl").write_bytes(log_lines(1, 4000))
    found = [reply.json for reply in replies(tmp_path, *[address(NAME)] * 8, run_read_bytes=size)]
    shares = [body["share_read"] for body in found]
    assert shares == sorted(shares) and shares[0] < 0.5 and [body["complete"] for body in found][:2] == [False, False]
    assert found[-1]["complete"] and shares[-1] == 1 and found[0]["step"] == 4000


def test_a_very_long_run(tmp_path: Path) -> None:
    """No answer takes long or is large, and at the end all of it has been read."""
    folder = run_in(tmp_path)
    count = 200_000
    with (folder / "metrics.jsonl").open("wb") as stream:
        for start in range(1, count, 10_000):
            block = range(start, start + 10_000)
            stream.write(
                "".join(f'{{"step": {s}, "loss": {s % 7}.5, "tokens": 9, "seconds": 1}}\n' for s in block).encode()
            )

    async def follow() -> tuple[dict[str, Any], float]:
        app = create_monitor(tmp_path, settings=ServeSettings())
        longest = 0.0
        async with running(app):
            for _ in range(100):
                began = time.process_time()
                reply = await call(app, "GET", address(NAME))
                longest = max(longest, time.process_time() - began)
                assert len(reply.body) < 1 << 20
                if reply.json["complete"]:
                    break
        return reply.json, longest

    body, longest = asyncio.run(follow())
    assert body["complete"] and body["tokens"] == 9 * count and body["step"] == count
    assert len(body["curves"]["loss"]) <= POINTS and body["curves"]["loss"][0][3:] == [0.5, 6.5]
    assert longest < 5  # of the processor; a piece takes some 0.2 s


NAMES = [
    "..", "../..", "../secret", "books/../../secret", "/etc", "//etc", "books", "books/.pretrain", ".", "",
    "books/.pretrain/run/",
    "books\\.pretrain\\run", "books/.pretrain/run\x00", "BOOKS/.PRETRAIN/RUN", "books/%2e%2e/secret", "a" * 5000, "\u202e",
    "linked",
]  # fmt: skip


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    secret = run_in(tmp_path, "secret")
    run_in(tmp_path / "shown")
    (tmp_path / "shown" / "linked").symlink_to(secret)
    listed, *found = replies(tmp_path / "shown", "/v1/runs", *(address(name) for name in NAMES))
    assert [entry["name"] for entry in listed.json["data"]] == [NAME]
    for name, reply in zip(NAMES, found, strict=True):
        listing = name == ""
        assert reply.status == 404, name
        assert "secret" not in reply.body.decode() or listing


@pytest.mark.parametrize(
    "version", ["x", "1.2.3", "-1.0.0.0.0.0.0", "9" * 256, "1.1.1.1.1.1.x", "٣.1.1.1.1.1.1", "a" * 257]
)
def test_a_version_nobody_gave_out_means_everything(tmp_path: Path, version: str) -> None:
    run_in(tmp_path)
    (reply,) = replies(tmp_path, address(NAME, quote(version)))
    assert reply.status == (400 if len(version) > 256 else 200)
    assert reply.status == 400 or reply.json["whole"]


def test_hostile_folders_are_shown_for_what_they_are(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(log_lines(1, 9, loss=123456.0))
    linked, odd, huge = (run_in(tmp_path / "runs", name) for name in ("a/run", "b/run", "c/run"))
    for file in ("metrics.jsonl", "memory.jsonl", ".lock"):
        (linked / file).unlink(missing_ok=True)
        (linked / file).symlink_to(secret)
    (linked.parent / "measured.jsonl").unlink()
    (linked.parent / "measured.jsonl").symlink_to(secret)
    (odd / "run.json").write_text('{"identity": {"settings": {"a": "\\u202e<script>", "b": [1, {"c": NaN}]}}}')
    (odd / "metrics.jsonl").write_bytes(
        b'{"step": 1, "loss": NaN, "tokens": Infinity, "seconds": -1}\n\xff\xfe\n' + b"[" * 9999
    )
    (odd.parent / "measured.jsonl").write_text('{"step": 1, "loss": 1, "sample": "\\ud800<script>alert(1)</script>"}\n')
    (huge / "metrics.jsonl").write_bytes(b"x" * 3_000_000)
    (huge / "run.json").write_bytes(b'{"a": "' + b"y" * (5 << 20) + b'"}')
    names = ["a/run", "b/run", "c/run"]
    listed, *bodies = replies(tmp_path / "runs", "/v1/runs", *map(address, names), *map(address, names))
    assert listed.status == 200 and len(listed.json["data"]) == 3
    for reply in bodies:
        assert reply.status == 200 and b"123456" not in reply.body and len(reply.body) < 100_000
        json.loads(reply.body, parse_constant=lambda text: pytest.fail(text))
    first, second, third = (reply.json for reply in bodies[:3])
    assert not first["curves"] and first["samples"] == []
    assert second["damaged_lines"] == 1 and second["samples"][0]["text"] == "?<script>alert(1)</script>"
    assert third["settings"] == [] and third["complete"]


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    run_in(tmp_path)
    described, listed, one, none = replies(tmp_path, "/openapi.json", "/v1/runs", address(NAME), address("none"))
    schemas = described.json["components"]["schemas"]
    for reply, name in ((listed, "RunEntries"), (one, "RunBody"), (none, "ErrorBody")):
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        assert not list(jsonschema_rs.iter_errors(schema, reply.json)), name


def test_the_monitor_serves_what_is_declared_and_nothing_else(tmp_path: Path) -> None:
    app = create_monitor(tmp_path, settings=ServeSettings())
    assert routes_of(app.api) == {
        "GET /", "GET /healthz", "GET /openapi.json", "GET /runs", "GET /ui/{file}", "GET /v1/runs",
        "GET /v1/runs/{path:path}",
    } and routes_of(app.api) <= set(POLICIES)  # fmt: skip
    root, page, health, ask = replies(tmp_path, "/", "/runs", "/healthz", "/v1/assistant")
    assert root.body == page.body and b"Training runs" in page.body and health.json == {"status": "ok"}
    assert "default-src 'self'" in page.headers["content-security-policy"] and ask.status == 404


def test_with_a_token_file_the_page_is_public_and_the_runs_are_not(tmp_path: Path) -> None:
    run_in(tmp_path / "runs")
    settings = ServeSettings(token_file=str(token_file(tmp_path)))

    async def statuses() -> list[int]:
        app = create_monitor(tmp_path / "runs", settings=settings)
        async with running(app):
            bare = [await call(app, "GET", path) for path in ("/", "/runs", "/v1/runs", address(NAME), "/runs/x")]
            headers = {"authorization": f"Bearer {TOKENS['ada']}"}
            let_in = [await call(app, "GET", path, headers=headers) for path in ("/v1/runs", address(NAME))]
        return [reply.status for reply in (*bare, *let_in)]

    assert asyncio.run(statuses()) == [200, 200, 401, 401, 401, 200, 200]


def test_an_assistant_shows_runs_only_if_told_to(tmp_path: Path, assistant: Assistant) -> None:
    run_in(tmp_path)

    async def facts(runs: Path | None) -> list[Any]:
        app = create_app(assistant, settings=ServeSettings(), runs=runs)
        async with running(app):
            about = (await call(app, "GET", "/v1/assistant")).json
            listed = await call(app, "GET", "/v1/runs")
        return [about["has_runs"], listed.status, listed.json.get("has_assistant")]

    assert asyncio.run(facts(None)) == [False, 404, None]
    assert asyncio.run(facts(tmp_path)) == [True, 200, True]


def test_runs_held_and_requests_under_way_are_bounded(tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(5)]
    for name in names:
        run_in(tmp_path, name)

    async def held(most: int) -> int:
        app = create_monitor(tmp_path, settings=ServeSettings(limits=Limits(runs=most)))
        async with running(app):
            for name in names:
                await call(app, "GET", address(name))
            return len(app.api.state.runs._watched)

    assert [asyncio.run(held(most)) for most in (4, 5, 6)] == [4, 5, 5]

    async def at_once(most: int) -> list[int]:
        app = create_monitor(tmp_path, settings=ServeSettings(limits=Limits(concurrency=most)))
        async with running(app):
            found = await asyncio.gather(*(call(app, "GET", address("r0")) for _ in range(3)))
            after = await call(app, "GET", address("r0"))
        return [*sorted(reply.status for reply in found), after.status]

    assert asyncio.run(at_once(3)) == [200, 200, 200, 200]
    assert asyncio.run(at_once(2)) == [200, 200, 429, 200]


def test_what_cannot_be_shown_is_said_before_listening(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        serve(None, runs=tmp_path / "none")
    with pytest.raises(RequestError, match="Nothing is to be served"):
        serve(None)
    with pytest.raises(RequestError, match="no token"):
        serve(None, runs=tmp_path, settings=ServeSettings(host="192.0.2.1"))
