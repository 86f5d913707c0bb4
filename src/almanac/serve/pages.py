"""What a browser opens: the page (which holds no data), its files, the report, and what the page tells of the assistant."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.files.mapped import read_at_most
from almanac.files.strict_json import read_json
from almanac.serve.auth import PRINCIPAL
from almanac.serve.service import service_of

router = APIRouter()
NOTICE = "You are talking to a machine."
PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
    ".json": "application/json",
}
_MAX_CARD_BYTES = 4 << 20


@dataclass(frozen=True)
class UiFile:
    """A file of the page, held in memory: no path of a request ever reaches the disk."""

    content: bytes
    type: str
    tag: str


def read_ui() -> dict[str, UiFile]:
    """The files of the page by name; those of unknown type are not served."""
    found = {}
    for item in sorted(resources.files("almanac.serve").joinpath("ui").iterdir(), key=lambda item: item.name):
        kind = _TYPES.get(Path(item.name).suffix)
        if item.is_file() and kind is not None:
            content = item.read_bytes()
            found[item.name] = UiFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


class Health(BaseModel):
    status: Literal["ok"]


class AssistantBody(BaseModel):
    """What the assistant is, and what was measured of it."""

    name: str
    created: str
    base_model: str
    card: str
    has_report: bool
    documents: int
    passages: int
    settings: dict[str, Any]
    evaluations: dict[str, Any]
    notice: str
    has_runs: bool


class Ticket(BaseModel):
    ticket: str


@router.get("/healthz", responses={200: {"model": Health}})
async def health() -> Response:
    """Whether the server answers."""
    return JSONResponse({"status": "ok"})


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """The page."""
    return file_reply(request, "index.html")


@router.get("/ui/{file}", include_in_schema=False)
async def ui(file: str, request: Request) -> Response:
    """A file of the page."""
    return file_reply(request, file)


@router.get("/v1/assistant", responses={200: {"model": AssistantBody}})
async def about(request: Request) -> Response:
    """The assistant's name, card and figures."""
    service = service_of(request)
    facts = await service.compute(_about, service.assistant)
    return JSONResponse({**facts, "has_runs": request.app.state.runs is not None})


@router.post("/v1/tickets", responses={200: {"model": Ticket}})
async def ticket(request: Request) -> Response:
    """A ticket that opens the report once, within half a minute."""
    return JSONResponse({"ticket": service_of(request).tickets.make(request.scope[PRINCIPAL])})


@router.get("/report", responses={200: {"content": {"text/html": {}}}}, response_class=HTMLResponse)
async def report(request: Request) -> Response:
    """The report of the build."""
    service = service_of(request)
    text = await service.compute(_read, service.assistant.folder / "report.html", service.limits.report_bytes)
    if text is None:
        raise NotFoundError("This assistant has no report", remedy="Build it again; the report is its last step.")
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


def file_reply(request: Request, name: str) -> Response:
    """A file of the page by its name. Raises NotFoundError."""
    found: UiFile | None = request.app.state.ui.get(name)
    if found is None:
        raise NotFoundError(f"There is no file {name[:80]!r}", remedy="Open /.")
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache", "ETag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "Content-Type": found.type})


def _about(assistant: Any) -> dict[str, Any]:
    folder: Path = assistant.folder
    card = _read(folder / "card.md", _MAX_CARD_BYTES) or b""
    return {
        "name": assistant.name,
        "created": _created(folder),
        "base_model": assistant.settings.model,
        "card": card.decode("utf-8", "replace"),
        "has_report": (folder / "report.html").is_file(),
        "documents": len(assistant.index.documents),
        "passages": len(assistant.index),
        "settings": dataclasses.asdict(assistant.settings),
        "evaluations": _object(folder / "evaluations.json"),
        "notice": NOTICE,
    }


def _created(folder: Path) -> str:
    """When the build ended, as the settings were its last file."""
    return datetime.fromtimestamp((folder / "settings.json").stat().st_mtime, UTC).isoformat(timespec="seconds")


def _object(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except AlmanacError:
        return {}  # an assistant without figures is served all the same
    return found if isinstance(found, dict) else {}


def _read(file: Path, most_bytes: int) -> bytes | None:
    """A file's bytes, or None if there is none. Raises FileFormatError for one that is too large."""
    if not file.is_file():
        return None
    content, size = read_at_most(file, most_bytes)
    if size > most_bytes:
        raise FileFormatError(f"{file.name} holds {size} bytes", remedy="Build the assistant again.")
    return content
