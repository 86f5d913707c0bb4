"""``POST /v1/ask``: a question, answered from the documents with citations, or declined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from almanac.assistant.ask import passages_json
from almanac.serve.grounded import Grounding
from almanac.serve.limits import MAX_QUESTION_CHARACTERS
from almanac.serve.openai_options import STRICT
from almanac.serve.service import service_of
from almanac.serve.stream import EventStream

router = APIRouter()


class Question(BaseModel):
    """What is asked."""

    model_config = STRICT
    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARACTERS)]
    stream: bool = False


class CitationBody(BaseModel):
    """Where an answer stands: ``start`` and ``end`` are characters of the document's text."""

    number: int
    document: str
    title: str
    heading: list[str]
    page: int | None
    quote: str
    start: int
    end: int
    score: float


class PassageBody(BaseModel):
    """What the model was shown."""

    number: int
    id: str
    document: str
    title: str
    heading: list[str]
    page: int | None
    text: str
    start: int
    end: int
    score: float


class AnswerBody(BaseModel):
    """An answer with marks like [1], one citation per mark; or declined, with the reason.

    ``confidence``: the probability that the documents answer the question, null where it was not weighed.
    """

    question: str
    answer: str
    declined: bool
    reason: str
    confidence: float | None
    citations: list[CitationBody]
    passages: list[PassageBody]


class AskEvent(BaseModel):
    """An event of a streamed answer: ``passages``, then ``draft`` pieces (unchecked), then the ``answer`` or an ``error``."""

    type: Literal["passages", "draft", "answer", "error"]


@router.post(
    "/v1/ask",
    responses={200: {"model": AnswerBody, "content": {"text/event-stream": {"schema": AskEvent.model_json_schema()}}}},
)
async def ask(body: Question, request: Request) -> Response:
    """Answers from the documents; what they do not bear out is declined."""
    service = service_of(request)
    grounding = await Grounding.begin(service, service.begin(request), body.question)
    if body.stream:
        return EventStream(_events(grounding), block_bytes=service.settings.stream_block_bytes, error_type="error")
    return JSONResponse((await grounding.answer()).to_dict())


async def _events(grounding: Grounding) -> AsyncIterator[dict[str, Any]]:
    yield {"type": "passages", "passages": passages_json(grounding.passages)}
    async for text in grounding.pieces():
        yield {"type": "draft", "text": text}
    yield {"type": "answer", "answer": (await grounding.answer()).to_dict()}
