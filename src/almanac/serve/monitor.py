"""Training runs alone: the page of curves behind the same gate and limits as an assistant, with no model in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from almanac.serve import runs as runs_room
from almanac.serve.app import Application, admitted, api_of
from almanac.serve.auth import Gate
from almanac.serve.body import Bodies
from almanac.serve.pages import Health, file_reply, health, read_ui, ui
from almanac.serve.presence import Presence
from almanac.serve.run_board import RunBoard
from almanac.serve.settings import ServeSettings
from almanac.serve.tickets import Tickets
from almanac.serve.tokens import TokenFile

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page of runs."""
    return file_reply(request, "runs.html")


router.add_api_route("/healthz", health, responses={200: {"model": Health}})
router.add_api_route("/ui/{file}", ui, include_in_schema=False)


def create_monitor(runs: str | Path, *, settings: ServeSettings, tokens: TokenFile | None = None) -> Application:
    """The application that shows the training runs below a folder.

    Args:
        tokens: who is admitted; by default those of ``settings.token_file``, and every client on this machine if it
            names none.

    Raises:
        RequestError: the settings are unsafe. NotFoundError, RequestError: the token file.
    """
    settings.check()
    limits = settings.limits
    board = RunBoard(Path(runs), limits=limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        board.close()

    about = "Training runs and their curves. Errors always have the form of ErrorBody."
    api = api_of([router, runs_room.router], about=about, lifespan=lifespan)
    ui_files = read_ui()
    api.state.service, api.state.runs, api.state.ui = None, board, ui_files
    gate = Gate(
        Bodies(api, limits=limits),
        settings=settings,
        tokens=tokens or admitted(settings),
        tickets=Tickets(limits),
        files=frozenset(ui_files),
    )
    return Application(Presence(gate, limits=limits), api, None)
