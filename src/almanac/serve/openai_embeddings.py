"""``POST /v1/embeddings``: vectors of texts by the assistant's encoder, as numbers or as base64 of float32."""

from __future__ import annotations

import base64
import threading
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from almanac.core.errors import RequestError, UnsupportedError
from almanac.serve.limits import MAX_INPUTS
from almanac.serve.openai_models import check_model
from almanac.serve.openai_options import ASSISTANT, MODEL, STRICT, Name
from almanac.serve.service import service_of

if TYPE_CHECKING:
    from almanac.language_model.encoder import TextEncoder

router = APIRouter()
Text = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(BaseModel):
    """``model``: the encoder's name, or ``assistant``."""

    model_config = STRICT
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    model: Name = ASSISTANT
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: Name | None = None


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class _AbandonedError(Exception):
    """Nobody waits for these vectors."""


@router.post("/v1/embeddings", responses={200: {"model": Embeddings}})
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Embeds texts; OpenAI's endpoint."""
    service = service_of(request)
    encoder = service.assistant.encoder
    if encoder is None:
        raise UnsupportedError(
            "This assistant has no encoder", remedy="Build it with one, or embed with another server."
        )
    check_model(body.model, encoder.name)
    if body.model == MODEL:
        raise UnsupportedError("The language model makes no embeddings", remedy=f"Ask {encoder.name} or {ASSISTANT}.")
    if body.dimensions not in (None, encoder.dim):
        raise RequestError(
            f"dimensions is {body.dimensions}", remedy=f"Leave it out; this encoder makes {encoder.dim}."
        )
    texts = [body.input] if isinstance(body.input, str) else body.input
    gone = threading.Event()
    service.begin(request).callback(gone.set)
    vectors, tokens = await service.compute(_embed, encoder, texts, gone)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    told = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": encoder.name, "usage": told})


def _embed(encoder: TextEncoder, texts: list[str], gone: threading.Event) -> tuple[Any, int]:
    """Vectors float32 [n, dim] and the tokens read. Raises RequestError for a text longer than the encoder reads."""
    counts = [encoder.count_tokens(text) for text in texts]
    for index, count in enumerate(counts):
        if count > encoder.max_tokens:
            raise RequestError(
                f"Text {index} has {count} tokens, and the encoder reads {encoder.max_tokens}",
                remedy="Send it in shorter pieces.",
            )

    def tell(done: int, total: int) -> None:
        if gone.is_set():
            raise _AbandonedError

    return encoder.embed(texts, tell=tell), sum(counts)


def _encoded(vector: Any, form: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
