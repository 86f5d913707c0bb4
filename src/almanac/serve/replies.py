"""FastAPI's ways to fail, answered in the one form."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from almanac.serve.errors import Problem, problem_of

_MAX_FAULTS = 3


async def problem_response(request: Request, error: Exception) -> Response:
    """A failure of ours."""
    return _reply(problem_of(error))


async def unexpected(request: Request, error: Exception) -> Response:
    """A fault; ``presence`` writes its place to the log."""
    return _reply(problem_of(error))


async def not_served(request: Request, error: Any) -> Response:
    """No such route, or not with this method."""
    texts = {
        404: "There is nothing at this address. See /openapi.json for what there is.",
        405: "This address does not take that method. See /openapi.json for what it takes.",
    }
    reply = _reply(Problem(error.status_code, texts.get(error.status_code, "The request cannot be read.")))
    reply.headers.update(error.headers or {})
    return reply


async def wrong_fields(request: Request, error: Any) -> Response:
    """Fields that are missing, unknown, or not what they should be. What was sent is not repeated."""
    faults = error.errors()
    places = [".".join(str(part) for part in fault["loc"] if part != "body") or "body" for fault in faults]
    told = "; ".join(f"{place[:200]}: {fault['msg']}" for place, fault in zip(places, faults, strict=True))
    return _reply(Problem(400, f"{told[:1000]}. See /openapi.json for the fields.", param=places[0][:200]))


def _reply(problem: Problem) -> Response:
    return JSONResponse(problem.body, status_code=problem.status, headers=problem.headers)
