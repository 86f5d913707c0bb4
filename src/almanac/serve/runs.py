"""``/runs``: the page of curves of training runs, and what it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from almanac.core.errors import NotFoundError
from almanac.serve.auth import PRINCIPAL
from almanac.serve.limits import MAX_NAME_CHARACTERS
from almanac.serve.pages import file_reply
from almanac.serve.presence import VISIT
from almanac.serve.run_board import RunBoard
from almanac.train.events.found_runs import State

router = APIRouter()
T = TypeVar("T")


class RunEntry(BaseModel):
    """How a run stands; times are seconds, ``saved_at`` and ``changed_at`` since 1970."""

    name: str
    title: str
    state: State
    step: int
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    saved: int | None
    saved_at: float | None
    changed_at: float | None


class RunEntries(BaseModel):
    """``has_assistant``: the server has one too."""

    object: Literal["list"]
    data: list[RunEntry]
    has_assistant: bool


class Sample(BaseModel):
    """What the model wrote after so many steps."""

    step: int
    text: str


class Resources(BaseModel):
    seconds: float | None
    peak_bytes: float | None
    watt_hours: float | None


class RunBody(RunEntry):
    """A run and its curves.

    A point of a curve is [stretch, last step, mean, least, most]. With the ``version`` of an earlier answer only the
    stretches that have changed are sent, unless ``whole`` says that all before is to be forgotten. ``complete``: the log is
    read to its end; where it is not, ask again.
    """

    version: str
    whole: bool
    complete: bool
    share_read: float
    damaged_lines: int
    tokens: float
    seconds: float
    skipped: int
    rollbacks: int
    curves: dict[str, list[list[float]]]
    samples: list[Sample] | None
    settings: list[list[str]]
    forecast: Resources | None
    measured: Resources | None


@router.get("/runs", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page, which holds no data."""
    return file_reply(request, "runs.html")


@router.get("/v1/runs", responses={200: {"model": RunEntries}})
async def runs(request: Request) -> Response:
    """The training runs below the folder that is shown."""
    board = _board(request)
    data = await _held(request, board, board.listed)
    return JSONResponse({"object": "list", "data": data, "has_assistant": request.app.state.service is not None})


@router.get("/v1/runs/{path:path}", responses={200: {"model": RunBody}})
async def run(
    path: str, request: Request, version: Annotated[str, Query(max_length=MAX_NAME_CHARACTERS)] = ""
) -> Response:
    """One run: figures, curves, samples."""
    board = _board(request)
    return JSONResponse(await _held(request, board, board.run, path, version))


def _board(request: Request) -> RunBoard:
    found: RunBoard | None = request.app.state.runs
    if found is None:
        raise NotFoundError("This server shows no training runs", remedy="Start it with --runs FOLDER.")
    return found


async def _held(request: Request, board: RunBoard, function: Callable[..., T], *args: Any) -> T:
    """``function(*args)`` in the board's thread, within the bound of what one principal may have under way."""
    stack = request.scope[VISIT].stack
    stack.enter_context(board.slots.hold(request.scope[PRINCIPAL], board.limits.retry_after_seconds))
    return await asyncio.get_running_loop().run_in_executor(board.pool, function, *args)
