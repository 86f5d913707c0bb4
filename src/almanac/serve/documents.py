"""``/v1/documents``: list, read, add, replace and remove documents; answers change at once, nothing is trained again."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from almanac.assistant.documents import add_document, get_document, list_documents, remove_document
from almanac.core.errors import FileFormatError, NotFoundError, UnsupportedError
from almanac.files.store import safe_member
from almanac.serve.service import Service, service_of

router = APIRouter()
UPLOADS = ".uploads"
_WRITE_BYTES = 1 << 20
_OLD_SECONDS = 24 * 3600.0


class Entry(BaseModel):
    """A document of the assistant; ``id`` is its path."""

    id: str
    object: Literal["document"]
    path: str
    title: str
    pages: int
    chunks: int
    characters: int
    language: str
    digest: str
    added: str
    origin: str


class Entries(BaseModel):
    object: Literal["list"]
    data: list[Entry]


class Section(BaseModel):
    """A heading path and the characters [start, end) of the text below it."""

    heading: list[str]
    level: int
    start: int
    end: int


class DocumentBody(BaseModel):
    """``pages``: the character at which each page begins."""

    path: str
    title: str
    digest: str
    language: str
    pages: list[int]
    sections: list[Section]
    text: str


class AddedBody(BaseModel):
    """What came of an upload; ``notes`` tell what was found in it, or left out."""

    documents: list[Entry]
    replaced: bool
    notes: list[str]


class Deleted(BaseModel):
    id: str
    object: Literal["document.deleted"]
    deleted: Literal[True]


@router.get("/v1/documents", responses={200: {"model": Entries}})
async def documents(request: Request) -> Response:
    """All documents."""
    service = service_of(request)
    return JSONResponse({"object": "list", "data": await service.compute(list_documents, service.assistant)})


@router.get("/v1/documents/{path:path}", responses={200: {"model": DocumentBody}})
async def document(path: str, request: Request) -> Response:
    """The text of one document as it was read."""
    service = service_of(request)
    found = await service.compute(get_document, service.assistant, checked(path))
    return await service.compute(JSONResponse, found)


@router.put(
    "/v1/documents/{path:path}",
    responses={200: {"model": AddedBody}, 201: {"model": AddedBody}},
    openapi_extra={
        "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def put_document(path: str, request: Request) -> Response:
    """Adds a document, or replaces the one of that path. Once all bytes are here it is done even if the client goes."""
    service = service_of(request)
    name = checked(path)
    stack = service.begin(request)
    own = stack.enter_context(ExitStack())
    own.enter_context(service.uploads.hold("all", service.limits.retry_after_seconds))
    file = _place(service.assistant.folder)
    own.callback(file.unlink, missing_ok=True)
    await _receive(service, request, file)
    task = asyncio.create_task(_add(service, file, name, own.pop_all()))
    service.finishing.add(task)
    task.add_done_callback(service.finishing.discard)
    return await asyncio.shield(task)


@router.delete("/v1/documents/{path:path}", responses={200: {"model": Deleted}})
async def delete_document(path: str, request: Request) -> Response:
    """Removes a document, its text from every file included."""
    service = service_of(request)
    name = checked(path)
    service.begin(request)
    task = asyncio.create_task(_remove(service, name))
    service.finishing.add(task)
    task.add_done_callback(service.finishing.discard)
    return await asyncio.shield(task)


def checked(path: str) -> str:
    """A document's name that stays inside a folder on every system. Raises UnsafeFileError."""
    safe_member("documents", path)
    return path


def remove_old_uploads(folder: Path) -> None:
    """Deletes what uploads of a killed server left behind."""
    for file in (folder / UPLOADS).glob("*.upload"):
        if time.time() - file.stat().st_mtime > _OLD_SECONDS:
            file.unlink(missing_ok=True)


def _place(folder: Path) -> Path:
    room = folder / UPLOADS
    room.mkdir(mode=0o700, exist_ok=True)
    return room / f"{secrets.token_hex(16)}.upload"


async def _receive(service: Service, request: Request, file: Path) -> None:
    """Streams the body to a file of mode 0600; ``body`` bounds its size and pauses."""
    held = bytearray()
    file.touch(mode=0o600, exist_ok=False)
    with file.open("r+b") as sink:
        async for piece in request.stream():
            held += piece
            if len(held) >= _WRITE_BYTES:
                await service.compute(sink.write, bytes(held))
                held.clear()
        await service.compute(sink.write, bytes(held))


async def _add(service: Service, file: Path, name: str, own: ExitStack) -> Response:
    with own:
        async with service.writing:
            try:
                added = await service.compute(add_document, service.assistant, file, name)
            except (NotFoundError, UnsupportedError) as error:  # a kind of file that has no reader
                raise FileFormatError(error.cause, remedy=error.remedy) from error
    return JSONResponse(added.to_dict(), status_code=200 if added.replaced else 201)


async def _remove(service: Service, name: str) -> Response:
    async with service.writing:
        await service.compute(remove_document, service.assistant, name)
    return JSONResponse({"id": name, "object": "document.deleted", "deleted": True})
