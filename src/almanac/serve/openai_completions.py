"""``POST /v1/completions``: the bare model continues a text, or ids."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from almanac.core.errors import RequestError
from almanac.serve.engine_thread import Run
from almanac.serve.errors import RefusedError
from almanac.serve.limits import MAX_CHOICES, MAX_COMPLETION_LOGPROBS
from almanac.serve.logprobs import shown_tokens, whole
from almanac.serve.openai_models import check_model
from almanac.serve.openai_options import MODEL, FinishReason, Options, Usage, stamped, usage
from almanac.serve.service import Service, service_of
from almanac.serve.stream import EventStream

router = APIRouter()
TEMPERATURE = 1.0  # OpenAI's, where a request names none
KIND = "text_completion"

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class CompletionRequest(Options):
    """``prompt``: a text (control tokens in it are plain text), ids, or several of either."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt on its own. Raises RequestError for more sequences than one request may have."""
        found: list[Any] = list(self.prompt) if isinstance(self.prompt, list) else [self.prompt]
        if isinstance(found[0], int):
            found = [found]
        if len(found) * (self.n or 1) > MAX_CHOICES:
            raise RequestError(
                f"{len(found)} prompts with {self.n} choices each", remedy=f"Ask for {MAX_CHOICES} in all at most."
            )
        return found


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


@router.post(
    "/v1/completions",
    responses={200: {"model": Completion, "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def complete(body: CompletionRequest, request: Request) -> Response:
    """Continues each prompt ``n`` times; OpenAI's endpoint."""
    service = service_of(request)
    check_model(body.model)
    if body.model != MODEL:
        raise RefusedError(
            "Only the model 'model' continues texts", remedy="Ask it, or use /v1/ask.", status=400, param="model"
        )
    body.check()
    prompts = body.prompts()
    stack = service.begin(request)
    lm = service.assistant.lm
    ids = await service.compute(
        lambda: [lm.tokenizer.encode(item, allow_special=False) if isinstance(item, str) else item for item in prompts]
    )
    run = await service.generate(body.requests(lm, ids, temperature=TEMPERATURE, logprobs=body.logprobs), stack)
    told = sum(map(len, ids))
    if body.stream:
        return EventStream(_chunks(service, body, run, told), block_bytes=service.settings.stream_block_bytes)
    return JSONResponse(await _whole(service, body, run, told))


async def _whole(service: Service, body: CompletionRequest, run: Run, prompt_tokens: int) -> dict[str, Any]:
    written = await whole(service.texts, run)
    choices = [
        {
            "index": index,
            "text": sequence.text,
            "logprobs": None if body.logprobs is None else _legacy(sequence.entries, 0, run),
            "finish_reason": sequence.finish,
        }
        for index, sequence in enumerate(written)
    ]
    told = usage(prompt_tokens, sum(sequence.tokens for sequence in written))
    return {**stamped("cmpl", KIND, body.model), "choices": choices, "usage": told}


async def _chunks(
    service: Service, body: CompletionRequest, run: Run, prompt_tokens: int
) -> AsyncIterator[dict[str, Any]]:
    head = stamped("cmpl", KIND, body.model)
    shown = shown_tokens(service.texts, run)
    offsets = [0 for _ in run.requests]
    written = 0
    async for index, event in run.events():
        written += event.token is not None
        entries = shown[index].feed(event) if shown else []
        if event.text or entries or event.finish:
            logprobs = _legacy(entries, offsets[index], run) if shown else None
            offsets[index] += sum(len(entry["token"]) for entry in entries)
            choice = {"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish}
            yield {**head, "choices": [choice]}
    if body.tells_usage:
        yield {**head, "choices": [], "usage": usage(prompt_tokens, written)}


def _legacy(entries: list[dict[str, Any]], offset: int, run: Run) -> dict[str, Any]:
    """The older shape; ``text_offset`` counts characters of the tokens' texts from the beginning of the choice."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    tops = [{_key(item): item["logprob"] for item in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if run.requests[0].logprobs else None,
        "text_offset": offsets,
    }


def _key(item: dict[str, Any]) -> str:
    """A token as a key: its text, or its bytes spelt out where they are no whole text, so that no two fall together."""
    data = bytes(item["bytes"])
    return item["token"] if item["token"].encode() == data else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
