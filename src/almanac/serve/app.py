"""The server: an assistant, training runs, or both, behind the layers that every request passes, from the outside in.

``presence`` (a request's end) -> ``auth`` (the gate) -> ``body`` (bounds and strict JSON) -> FastAPI's routes.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from almanac import __version__
from almanac.core.errors import AlmanacError, MissingExtraError, RequestError
from almanac.serve.settings import ServeSettings
from almanac.serve.tokens import TokenFile, make_token_file

if TYPE_CHECKING:
    from fastapi import FastAPI

    from almanac.assistant.ask import Assistant
    from almanac.serve.run_board import RunBoard
    from almanac.serve.service import Service

GRACE_SECONDS = 5
KEEP_ALIVE_SECONDS = 5
SWITCH_SECONDS = 0.0005  # how long a computing thread keeps the others waiting; Python's 5 ms starve the event loop


class Application:
    """The ASGI application; ``api`` are its routes, ``service`` what they share, None where only runs are shown."""

    def __init__(self, outermost: Any, api: FastAPI, service: Service | None) -> None:
        self.outermost = outermost
        self.api = api
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.outermost(scope, receive, send)


def create_app(
    assistant: Assistant,
    *,
    settings: ServeSettings,
    tokens: TokenFile | None = None,
    runs: str | Path | None = None,
) -> Application:
    """The application for an assistant.

    Args:
        runs: a folder whose training runs are shown, if any are to be.
        tokens: who is admitted; by default those of ``settings.token_file``, and every client on this machine if it
            names none.

    Raises:
        RequestError: the settings are unsafe. MissingExtraError: FastAPI is not installed.
        NotFoundError, RequestError: the token file.
    """
    require_extra()
    from almanac.serve.auth import Gate
    from almanac.serve.body import Bodies
    from almanac.serve.engine_thread import EngineThread
    from almanac.serve.pages import read_ui
    from almanac.serve.presence import Presence
    from almanac.serve.run_board import RunBoard
    from almanac.serve.service import Service
    from almanac.serve.tickets import Tickets

    settings.check()
    tokens = tokens or admitted(settings)
    limits = settings.limits
    service = Service(
        assistant,
        settings,
        EngineThread(lambda: assistant.lm.engine(max_rows=limits.rows), limits=limits),
        Tickets(limits),
        int(time.time()),
    )
    ui = read_ui()
    board = None if runs is None else RunBoard(Path(runs), limits=limits)
    api = _api(service, board)
    api.state.service, api.state.ui, api.state.runs = service, ui, board
    gate = Gate(
        Bodies(api, limits=limits), settings=settings, tokens=tokens, tickets=service.tickets, files=frozenset(ui)
    )
    return Application(Presence(gate, limits=limits), api, service)


def admitted(settings: ServeSettings) -> TokenFile | None:
    """Those whom the settings admit; None: every client on this machine. Raises NotFoundError, RequestError."""
    return TokenFile(Path(settings.token_file)) if settings.token_file else None


def serve(
    folder: str | Path | None,
    *,
    settings: ServeSettings | None = None,
    ready: Callable[[str, bool], None] = lambda address, made: None,
    runs: str | Path | None = None,
) -> None:
    """Serves an assistant folder, training runs, or both, until it is told to stop (SIGINT, SIGTERM).

    Args:
        folder: of the assistant; None to show training runs alone.
        settings: where to listen and whom to admit; by default port 8000 of this machine alone.
        ready: told, when it listens, the address to open and whether a token file was made.
        runs: a folder whose training runs are shown.

    Raises:
        As ``open_assistant`` and ``create_app``; RequestError: the port is taken. IntegrityError: the check of the
        engine fails.
    """
    require_extra()
    settings = settings or ServeSettings()
    settings.check()
    if runs is not None:
        from almanac.train.events.found_runs import find_runs

        find_runs(Path(runs))
    app, is_new = _shown_runs(settings, runs) if folder is None else _served_assistant(folder, settings, runs)
    _listen_for(app, settings, lambda address: ready(address, is_new))


def _served_assistant(folder: str | Path, settings: ServeSettings, runs: str | Path | None) -> tuple[Application, bool]:
    from almanac.assistant.ask import open_assistant
    from almanac.serve.golden import check_engine

    assistant = open_assistant(folder)
    is_new = _with_tokens(settings)
    app = create_app(assistant, settings=settings, runs=runs)
    check_engine(assistant.lm)
    return app, is_new


def _shown_runs(settings: ServeSettings, runs: str | Path | None) -> tuple[Application, bool]:
    from almanac.serve.monitor import create_monitor

    if runs is None:
        raise RequestError("Nothing is to be served", remedy="Name an assistant, a folder of runs, or both.")
    is_new = _with_tokens(settings)
    return create_monitor(runs, settings=settings), is_new


def _with_tokens(settings: ServeSettings) -> bool:
    """Makes the token file that is not there yet; whether it did."""
    is_new = bool(settings.token_file) and not Path(settings.token_file).exists()
    if is_new:
        make_token_file(Path(settings.token_file))
    return is_new


def _listen_for(app: Application, settings: ServeSettings, ready: Callable[[str], None]) -> None:
    import uvicorn

    from almanac.serve.protocol import protocol_for

    sockets = listen(settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    _log_to_stderr()
    config = uvicorn.Config(
        app,
        http=protocol_for(settings.limits),
        loop="asyncio",  # the same one whatever else happens to be installed
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # addresses name documents; `presence` writes what may be kept
        proxy_headers=False,  # a client's word about where it comes from counts for nothing
        server_header=False,
        h11_max_incomplete_event_size=settings.limits.header_bytes,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.key or None,
    )
    scheme = "https" if settings.certificate else "http"
    name = "127.0.0.1" if settings.is_loopback else settings.host
    ready(f"{scheme}://{name}:{sockets[0].getsockname()[1]}/")
    try:
        uvicorn.Server(config).run(sockets)
    finally:
        for item in sockets:
            item.close()


def listen(settings: ServeSettings) -> list[socket.socket]:
    """Sockets that listen: for loopback 127.0.0.1 and, where there is one, ::1. Raises RequestError."""
    if settings.host in ("127.0.0.1", "localhost"):
        first = _bound("127.0.0.1", settings.port)
        try:
            return [first, _bound("::1", first.getsockname()[1])]
        except RequestError:
            first.close()
            raise
        except OSError:
            return [first]  # this machine has no IPv6
    try:
        return [_bound(settings.host.strip("[]"), settings.port)]
    except OSError as error:
        raise RequestError(
            f"Cannot listen on {settings.host} ({error.strerror})", remedy="Give an address of this machine."
        ) from error


def require_extra() -> None:
    """Raises MissingExtraError where the server's libraries are not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Serving needs the extra 'serve'", remedy="Run pip install 'almanac-lm[serve]'."
        ) from error


def _api(service: Service, board: RunBoard | None) -> FastAPI:
    from almanac.serve import ask, documents, openai_chat, openai_completions, openai_embeddings, openai_models, pages
    from almanac.serve import runs as runs_room

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        documents.remove_old_uploads(service.assistant.folder)
        yield
        if board is not None:
            board.close()
        await service.close()

    rooms = (openai_models, openai_chat, openai_completions, openai_embeddings, ask, documents, pages, runs_room)
    about = "An assistant that answers from its documents. Errors always have the form of ErrorBody."
    return api_of([room.router for room in rooms], about=about, lifespan=lifespan)


def api_of(
    routers: Sequence[Any], *, about: str, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """Routes with one form of errors, each of them with a declared policy."""
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from almanac.serve.openai_options import ErrorBody
    from almanac.serve.policies import POLICIES
    from almanac.serve.replies import not_served, problem_response, unexpected, wrong_fields

    api = FastAPI(
        title="Almanac",
        version=__version__,
        description=about,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    errors = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    for router in routers:
        api.include_router(router, responses=errors)
    api.add_exception_handler(AlmanacError, problem_response)
    api.add_exception_handler(RequestValidationError, wrong_fields)
    api.add_exception_handler(HTTPException, not_served)
    api.add_exception_handler(Exception, unexpected)
    undeclared = routes_of(api) - set(POLICIES)
    assert not undeclared, f"routes without a declared policy: {sorted(undeclared)}"
    return api


def routes_of(api: FastAPI) -> set[str]:
    """Every route as ``METHOD /path``, however it came to be there; a websocket or a mount counts as one too."""
    from fastapi.routing import iter_route_contexts

    found = set()
    for route in iter_route_contexts(api.routes):
        methods = (route.methods or {"ANY"}) - {"HEAD"}
        found |= {f"{method} {route.path}" for method in methods}
    return found


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(socket.SOMAXCONN)
    except OSError as error:
        made.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise RequestError(
                f"Port {port} of {address} cannot be had ({error.strerror})",
                remedy="Give another with --port; 0 takes any free one.",
            ) from error
        raise
    return made


def _log_to_stderr() -> None:
    """Lines without addresses, headers or bodies; see ``presence``."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("almanac.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
