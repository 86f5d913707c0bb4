"""Server-sent events: one ``data:`` line of JSON per item, then ``data: [DONE]``.

Backpressure: the next item is asked for only when the last one was taken by the connection; a client that does not read
is cut off by ``protocol``. An error after the beginning is the last item.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from almanac.serve.errors import ClientGoneError, problem_of

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """A response of events.

    Args:
        items: JSON objects; closed when the response ends, however it ends.
        block_bytes: pad every event to a multiple of this; 0 for none.
        error_type: the ``type`` put into the item that tells of an error, or None for OpenAI's form.
    """

    media_type = "text/event-stream"

    def __init__(self, items: AsyncIterator[Any], *, block_bytes: int = 0, error_type: str | None = None) -> None:
        self.items = items
        self.block_bytes = block_bytes
        self.error_type = error_type
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"X-Accel-Buffering": "no", "Cache-Control": "no-store"})
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for item in self.items:
                await self._send(send, event(item))
        except ClientGoneError:
            raise
        except Exception as error:
            body = problem_of(error).body
            await self._send(send, event(body if self.error_type is None else {"type": self.error_type, **body}))
            scope["almanac.visit"].note = f"failed in the stream: {type(error).__name__}"
        finally:
            await self.items.aclose()  # type: ignore[attr-defined]
        await self._send(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Any, data: bytes) -> None:
        await send({"type": "http.response.body", "body": padded(data, self.block_bytes), "more_body": True})


def event(item: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(item, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def padded(data: bytes, block_bytes: int) -> bytes:
    """``data`` with a comment after it, which clients ignore, so that its length is a multiple of ``block_bytes``."""
    short = -len(data) % block_bytes if block_bytes else 0
    if not short:
        return data
    if short < 3:  # the shortest comment is ":\n\n"
        short += block_bytes
    return data + b":" + b" " * (short - 3) + b"\n\n"
