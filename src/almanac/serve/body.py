"""Bodies, read within bounds and checked before anything looks at them.

A JSON body is read whole (size and time bounded), refused if it is not one unambiguous JSON value (see
``files.strict_json``: depth, count, duplicate keys, NaN, lone surrogates), and handed on. An upload is handed on piece by
piece; its size and the time between its pieces are bounded here all the same.
"""

from __future__ import annotations

import asyncio
from typing import Any

from almanac.core.errors import FileFormatError
from almanac.files.strict_json import parse_json
from almanac.serve.errors import ClientGoneError, RefusedError, problem_of, send_problem
from almanac.serve.limits import Limits

_IN_A_THREAD = 256 << 10  # bytes from which parsing would hold up the others


class Bodies:
    """ASGI middleware between the gate and the routes."""

    def __init__(self, app: Any, *, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["method"] == "PUT"
        reader = _Reader(receive, self.limits, self.limits.upload_bytes if is_upload else self.limits.body_bytes)
        try:
            reader.check_length(scope)
            if not is_upload:
                body = await reader.whole()
                await self._check_json(body)
                reader.replay(body)
        except RefusedError as error:
            await send_problem(send, problem_of(error), {"Connection": "close"})
            return
        await self.app(scope, reader, send)

    async def _check_json(self, body: bytes) -> None:
        if not body:
            return
        if len(body) > _IN_A_THREAD:
            await asyncio.to_thread(self._parse, body)
        else:
            self._parse(body)

    def _parse(self, body: bytes) -> None:
        try:
            parse_json(body, source="The body", max_depth=self.limits.json_depth, max_values=self.limits.json_values)
        except FileFormatError as error:
            raise RefusedError(error.cause, remedy="Send one well-formed JSON value.", status=400) from error


class _Reader:
    """Counts and times what comes in; after ``replay`` it gives the body once more, then what the server says."""

    def __init__(self, receive: Any, limits: Limits, most_bytes: int) -> None:
        self.receive = receive
        self.limits = limits
        self.most_bytes = most_bytes
        self.seen_bytes = 0
        self.is_read = False
        self.again: bytes | None = None

    def check_length(self, scope: Any) -> None:
        """Refuses by the declared length, before anything is read."""
        for name, value in scope["headers"]:
            if name == b"content-length" and not value.isdigit():
                raise RefusedError("Content-Length is no number", remedy="Send the size in bytes.", status=400)
            if name == b"content-length" and (len(value) > 18 or int(value) > self.most_bytes):
                raise self._too_large()

    async def whole(self) -> bytes:
        """The whole body."""
        pieces = []
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while not self.is_read:
                    pieces.append((await self()).get("body", b""))
        except TimeoutError as error:
            raise _slow() from error
        return b"".join(pieces)

    def replay(self, body: bytes) -> None:
        """The next message is the whole body."""
        self.again = body

    async def __call__(self) -> Any:
        if self.again is not None:
            body, self.again = self.again, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.is_read:
            return await self.receive()
        try:
            async with asyncio.timeout(self.limits.body_idle_seconds):
                message = await self.receive()
        except TimeoutError as error:
            raise _slow() from error
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.is_read = not message.get("more_body", False)
        self.seen_bytes += len(message.get("body", b""))
        if self.seen_bytes > self.most_bytes:
            raise self._too_large()
        return message

    def _too_large(self) -> RefusedError:
        return RefusedError(
            f"The body holds more than {self.most_bytes} bytes", remedy="Send less at a time.", status=413
        )


def _slow() -> RefusedError:
    return RefusedError("The body did not arrive in time", remedy="Send it again, faster.", status=408)
