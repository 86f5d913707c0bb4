"""Thousands of requests made from the server's own description of itself, and from worse (R18).

No answer may be a 5xx, none may hang, and what is answered must be what `/openapi.json` says. The schema is what
`schemathesis` reads too; this generator is our own because it has to reach the extremes: numbers at the edges of 32, 53,
64 bits and beyond, lone surrogates, keys twice, and every field of the wrong type.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from serve.world import Reply, assistant_in, call, running

from almanac.assistant.ask import Assistant
from almanac.serve import openai_options
from almanac.serve.app import create_app
from almanac.serve.limits import Limits
from almanac.serve.settings import ServeSettings

REQUESTS = 2000
NUMBERS = [
    0, 1, -1, 2, 8, 9, 2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400,
    0.0, -0.0, 1e-320, 1e308, 0.5, 1.5,
]  # fmt: skip
TEXTS = [
    "", " ", "a", "assistant", "model", "text", "user", "\x00", "\u202e", "é" * 50, "🐙", "<|im_end|>", "{{ 7 * 7 }}",
    "../../etc/passwd", "a" * 3000, "\ufffd", "%00", "' OR 1=1", "pump.md", "true", "NaN",
]  # fmt: skip
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    '"\\ud800"',
    '"\\udc00\\ud800"',
    "[" * 70 + "]" * 70,
    "01",
    "'a'",
    "",
    "{,}",
]
PATHS = [
    "pump.md",
    "none.md",
    "a/../b",
    "..",
    "%2e%2e/x",
    "a%00b",
    "%ff",
    "%5c%5chost",
    "C:x",
    "a" * 300,
    "con",
    ".lock",
    "",
    "/",
]
UNSAFE = [path for path in PATHS if path not in ("pump.md", "none.md", "%ff", "")]


class Maker:
    """Values from a schema: mostly right, now and then wrong in one place."""

    def __init__(self, schema: dict[str, Any], rng: random.Random) -> None:
        self.all = schema
        self.rng = rng

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        if "$ref" in schema:
            return self.value(self.all["components"]["schemas"][schema["$ref"].rpartition("/")[2]], depth)
        if self.rng.random() < 0.04 or depth > 6:
            return self.anything()
        if "anyOf" in schema:
            return self.value(self.rng.choice(schema["anyOf"]), depth + 1)
        if "const" in schema or "enum" in schema:
            return self.rng.choice(schema.get("enum") or [schema["const"]])
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "object":
            wanted, fields = set(schema.get("required", ())), schema.get("properties", {})
            chosen = [name for name in fields if name in wanted or self.rng.random() < 0.25]
            made = {name: self.value(fields[name], depth + 1) for name in chosen}
            if self.rng.random() < 0.03:
                made[self.rng.choice(TEXTS)] = self.anything()
            return made
        if kind == "array":
            few = self.rng.randint(schema.get("minItems", 0), 3)
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(few)]
        if kind == "integer":
            low, high = int(schema.get("minimum", 0)), int(min(schema.get("maximum", 12), 12))
            return self.rng.randint(low, max(low, high)) if self.rng.random() < 0.9 else self.rng.choice(NUMBERS)
        if kind == "number":
            return self.rng.choice([0.3, 1, 1.0, *self.rng.sample(NUMBERS, 1)])
        return {"string": self.rng.choice(TEXTS), "boolean": self.rng.random() < 0.5}.get(str(kind))

    def anything(self) -> Any:
        return self.rng.choice([None, True, self.rng.choice(NUMBERS), self.rng.choice(TEXTS), [], {}, [[]], {"a": []}])

    def body(self, schema: dict[str, Any]) -> bytes:
        """As JSON; sometimes with a part that no JSON writer would write."""
        made = self.value(schema)
        if isinstance(made, dict) and "question" not in made and self.rng.random() < 0.7:
            made["model"] = "model"
        text = json.dumps(made)
        if self.rng.random() < 0.06:
            text = (
                text[: self.rng.randint(0, len(text))] + self.rng.choice(RAW) + text[self.rng.randint(0, len(text)) :]
            )
        if isinstance(made, dict) and made and self.rng.random() < 0.06:
            name = self.rng.choice(list(made))
            text = json.dumps({k: v for k, v in made.items() if k != name} | {"hole": 0})
            text = text.replace('"hole": 0', f"{json.dumps(name)}: {self.rng.choice(RAW)}")
        return text.encode("utf-8", "surrogatepass")


def operations(schema: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


validators: dict[str, Any] = {}


def check(reply: Reply, operation: dict[str, Any], schema: dict[str, Any], told: str) -> None:
    assert reply.status < 500, (told, reply)
    responses = operation["responses"]
    declared = responses.get(str(reply.status)) or responses.get(f"{reply.status // 100}XX")
    assert declared is not None, (told, reply.status)
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in declared["content"], (told, kind)
    if kind == "application/json":
        reference = declared["content"][kind]["schema"]["$ref"]
        if reference not in validators:
            against = {"$ref": reference, "components": schema["components"]}
            validators[reference] = jsonschema_rs.Draft202012Validator(against)
        validators[reference].validate(reply.json)
    elif kind == "text/event-stream":
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert all("error" not in event for event in reply.events), told


def test_what_the_description_allows_and_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_options, "DEFAULT_MAX_TOKENS", 8)  # what is long is not a hang
    own_assistant = assistant_in(tmp_path, context=320)

    async def all_of_them() -> Counter[str]:
        rng = random.Random(18)
        tally: Counter[str] = Counter()
        app = create_app(own_assistant, settings=ServeSettings(limits=Limits(rows=4)))
        async with running(app):
            schema = (await call(app, "GET", "/openapi.json")).json
            maker = Maker(schema, rng)
            known = operations(schema)
            weights = [9 if "requestBody" in operation else 1 for _, _, operation in known]
            for _ in range(REQUESTS):
                method, path, operation = rng.choices(known, weights)[0]
                reply, told = await one(app, maker, method, path, operation)
                check(reply, operation, schema, told)
                tally[f"{method} {path} {reply.status // 100}"] += 1
            assert (await call(app, "GET", "/healthz")).status == 200
            assert app.service.engine.taken == 0 and not app.service.slots.held
        return tally

    tally = asyncio.run(all_of_them())
    for path in ("chat/completions", "completions", "embeddings", "ask"):
        assert tally[f"POST /v1/{path} 2"] > 15, tally  # not all of it was refused
        assert tally[f"POST /v1/{path} 4"] > 15, tally


async def one(app: Any, maker: Maker, method: str, path: str, operation: dict[str, Any]) -> tuple[Reply, str]:
    content = operation.get("requestBody", {}).get("content", {})
    headers, body = {}, None
    if "application/json" in content:
        body = maker.body(content["application/json"]["schema"])
        headers = {"content-type": "application/json"}
    elif content:
        body = maker.rng.choice(TEXTS).encode()
        headers = {"content-type": "application/octet-stream"}
    for part in ("{path}", "{model}"):
        path = path.replace(part, maker.rng.choice(PATHS))
    told = f"{method} {path} {body!r}"
    began = time.monotonic()
    reply = await asyncio.wait_for(call(app, method, path, body, headers=headers), 10)
    assert time.monotonic() - began < 10, told
    return reply, told


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_names_of_documents_stay_inside(own_assistant: Assistant, method: str, path: str) -> None:
    async def one_name() -> Reply:
        app = create_app(own_assistant, settings=ServeSettings())
        async with running(app):
            headers = {"content-type": "application/octet-stream"} if method == "PUT" else {}
            body = b"A text." if method == "PUT" else None
            return await call(app, method, f"/v1/documents/{path}", body, headers=headers)

    before = {file for file in own_assistant.folder.parent.rglob("*") if "index" not in file.parts}
    reply = asyncio.run(one_name())
    after = {file for file in own_assistant.folder.parent.rglob("*") if "index" not in file.parts}
    assert reply.status in (200, 201, 400, 404, 405, 422), reply
    assert {file.name for file in after - before} <= {".uploads"}
    if path in UNSAFE:
        assert reply.status == 400  # for its name, before anything is looked up
        assert str(own_assistant.folder) not in reply.body.decode()
