"""``POST /v1/chat/completions``: the bare model, or the assistant, whose answers are checked before they are sent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from almanac.core.errors import RequestError
from almanac.serve.ask import CitationBody
from almanac.serve.engine_thread import Run
from almanac.serve.errors import RefusedError
from almanac.serve.grounded import Grounding
from almanac.serve.limits import MAX_MESSAGES, MAX_PARTS, MAX_QUESTION_CHARACTERS, MAX_TOP_LOGPROBS
from almanac.serve.logprobs import shown_tokens, whole
from almanac.serve.openai_models import check_model
from almanac.serve.openai_options import (
    ASSISTANT,
    STRICT,
    FinishReason,
    Name,
    Options,
    TokenLogprob,
    Usage,
    stamped,
    usage,
)
from almanac.serve.service import Service, service_of
from almanac.serve.stream import EventStream

router = APIRouter()
CHAT, CHUNK = "chat.completion", "chat.completion.chunk"
TEMPERATURE = 1.0  # OpenAI's, where a request names none


class TextPart(BaseModel):
    """A part of a message; text is what this model reads."""

    model_config = STRICT
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn. What an earlier answer carried beside its text may come back and is not looked at."""

    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
    name: Name | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    citations: list[Any] | None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """All its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def as_turn(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ResponseFormat(BaseModel):
    """Text is what there is."""

    model_config = STRICT
    type: Literal["text"]


class ChatRequest(Options):
    """With model ``assistant`` the last message is the question, and the answer comes from the documents.

    Such an answer takes the most probable words, whatever the options of drawing say.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None

    def check(self) -> None:
        """Raises RequestError for options that contradict each other."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs came without logprobs", remedy='Send "logprobs": true beside it.')
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise RequestError("max_tokens and max_completion_tokens differ", remedy="Send one of them.")
            self.max_tokens = self.max_completion_tokens


class ChatLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    """``citations`` come with model ``assistant``."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    citations: list[CitationBody] | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


@router.post(
    "/v1/chat/completions",
    responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Continues a conversation; OpenAI's endpoint."""
    service = service_of(request)
    check_model(body.model)
    body.check()
    if body.model == ASSISTANT:
        return await _grounded(service, body, service.begin(request))
    stack = service.begin(request)
    lm = service.assistant.lm
    prompt = await service.compute(lm.chat_tokens, [message.as_turn() for message in body.messages])
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    run = await service.generate(body.requests(lm, [prompt], temperature=TEMPERATURE, logprobs=logprobs), stack)
    if body.stream:
        return EventStream(_chunks(service, body, run), block_bytes=service.settings.stream_block_bytes)
    return JSONResponse(await _whole(service, body, run))


async def _whole(service: Service, body: ChatRequest, run: Run) -> dict[str, Any]:
    written = await whole(service.texts, run)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": sequence.text, "refusal": None},
            "logprobs": {"content": sequence.entries, "refusal": None} if body.logprobs else None,
            "finish_reason": sequence.finish,
        }
        for index, sequence in enumerate(written)
    ]
    told = usage(len(run.requests[0].tokens), sum(sequence.tokens for sequence in written))
    return {**stamped("chatcmpl", CHAT, body.model), "choices": choices, "usage": told}


async def _chunks(service: Service, body: ChatRequest, run: Run) -> AsyncIterator[dict[str, Any]]:
    head = stamped("chatcmpl", CHUNK, body.model)
    for index in range(len(run.requests)):
        yield _chunk(head, index, {"role": "assistant", "content": ""})
    shown = shown_tokens(service.texts, run)
    written = 0
    async for index, event in run.events():
        written += event.token is not None
        entries = shown[index].feed(event) if shown else None
        if event.text or entries:
            logprobs = None if entries is None else {"content": entries, "refusal": None}
            yield _chunk(head, index, {"content": event.text}, logprobs=logprobs)
        if event.finish:
            yield _chunk(head, index, {}, finish=event.finish)
    if body.tells_usage:
        yield {**head, "choices": [], "usage": usage(len(run.requests[0].tokens), written)}


def _chunk(
    head: dict[str, Any], index: int, delta: dict[str, Any], *, logprobs: Any = None, finish: str | None = None
) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}


async def _grounded(service: Service, body: ChatRequest, stack: ExitStack) -> Response:
    for name, given in (("n", (body.n or 1) > 1), ("logprobs", body.logprobs)):
        if given:
            raise RefusedError(
                f"{name} does not go with the model {ASSISTANT!r}, whose answer is checked as a whole",
                remedy="Ask the model 'model' for it.",
                status=400,
                param=name,
            )
    question = body.messages[-1]
    if question.role != "user" or len(question.text) > MAX_QUESTION_CHARACTERS:
        raise RefusedError(
            f"The last message is no question of a user with at most {MAX_QUESTION_CHARACTERS} characters",
            remedy="Let the question come last, or ask the model 'model'.",
            status=400,
            param="messages",
        )
    grounding = await Grounding.begin(service, stack, question.text, max_tokens=body.max_tokens)
    answer = (await grounding.answer()).to_dict()
    text = _before(answer["answer"], body.stops)
    told = usage(grounding.prompt_tokens, grounding.completion_tokens)
    if body.stream:
        chunks = _answer_chunks(body, text, answer["citations"], told)
        return EventStream(chunks, block_bytes=service.settings.stream_block_bytes)
    message = {"role": "assistant", "content": text, "refusal": None, "citations": answer["citations"]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return JSONResponse({**stamped("chatcmpl", CHAT, body.model), "choices": [choice], "usage": told})


async def _answer_chunks(
    body: ChatRequest, text: str, citations: list[Any], told: dict[str, int]
) -> AsyncIterator[dict[str, Any]]:
    head = stamped("chatcmpl", CHUNK, body.model)
    yield _chunk(head, 0, {"role": "assistant", "content": ""})
    for word in re.findall(r"\s*\S+\s*", text):
        yield _chunk(head, 0, {"content": word})
    yield _chunk(head, 0, {"citations": citations}, finish="stop")
    if body.tells_usage:
        yield {**head, "choices": [], "usage": told}


def _before(text: str, stops: tuple[str, ...]) -> str:
    """The text up to the first stop string; marks of citations may complete one that the draft did not hold."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
