"""``GET /v1/models``: the assistant, grounded in its documents, and the bare model under it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from almanac.serve.errors import RefusedError
from almanac.serve.openai_options import ASSISTANT, MODEL
from almanac.serve.service import service_of

router = APIRouter()


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


@router.get("/v1/models", responses={200: {"model": Models}})
async def models(request: Request) -> Response:
    """What can be asked."""
    return JSONResponse({"object": "list", "data": [_entry(request, name) for name in (ASSISTANT, MODEL)]})


@router.get("/v1/models/{model}", responses={200: {"model": Model}})
async def model(model: str, request: Request) -> Response:
    """One of them."""
    check_model(model)
    return JSONResponse(_entry(request, model))


def check_model(name: str, *others: str) -> None:
    """Raises RefusedError (404) for a model that is not served."""
    known = (ASSISTANT, MODEL, *others)
    if name not in known:
        raise RefusedError(
            f"There is no model {name!r} here",
            remedy=f"Ask one of: {', '.join(known)}.",
            status=404,
            param="model",
            code="model_not_found",
        )


def _entry(request: Request, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": service_of(request).created, "owned_by": "almanac"}
