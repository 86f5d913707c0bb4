"""What goes wrong, in the form OpenAI's clients know: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import (
    AlmanacError,
    FileFormatError,
    LockedError,
    MissingExtraError,
    NotFoundError,
    RequestError,
    SelectionError,
    ShapeError,
    TemplateError,
    UnsafeFileError,
    UnsupportedError,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_STATUS: tuple[tuple[type[AlmanacError], int], ...] = (
    (NotFoundError, 404),
    (UnsafeFileError, 400),
    (FileFormatError, 422),
    (LockedError, 409),
    (MissingExtraError, 422),
    (UnsupportedError, 400),
    (RequestError, 400),
    (TemplateError, 400),
    (ShapeError, 400),
    (SelectionError, 400),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class RefusedError(AlmanacError):
    """A request that is turned away, with the status of HTTP that says how.

    Args:
        status: 4xx, or 503 for one that may be sent again.
        param: the field at fault.
        code: for programs, such as ``model_not_found``.
        retry_after: seconds after which to come back.
    """

    def __init__(
        self,
        cause: str,
        *,
        remedy: str,
        status: int,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(cause, remedy=remedy)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Problem:
    """A failure as it is sent."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _KINDS.get(self.status) or ("server_error" if self.status >= 500 else _KINDS[400])
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What belongs beside it."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers if self.retry_after is None else {**headers, "Retry-After": str(self.retry_after)}


def problem_of(error: BaseException) -> Problem:
    """How a failure is told. One that is ours is told without detail: what it holds may be somebody's text."""
    if isinstance(error, RefusedError):
        return Problem(error.status, str(error), error.param, error.code, error.retry_after)
    if isinstance(error, AlmanacError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        return Problem(status, str(error), retry_after=1 if status == 409 else None)
    if isinstance(error, OSError) and error.errno in _FULL:
        return Problem(507, "The disk of the server is full. Ask whoever runs it to free some space.")
    return Problem(500, "The server failed. Whoever runs it finds the place in its log.")


async def send_problem(send: Any, problem: Problem, extra: Mapping[str, str] | None = None) -> None:
    """Sends a problem as a whole ASGI response."""
    body = json.dumps(problem.body).encode()
    headers = {**problem.headers, **(extra or {}), "Content-Type": "application/json", "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
