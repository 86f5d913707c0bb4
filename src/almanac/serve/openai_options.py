"""The options that OpenAI's generating endpoints share, and the engine's requests made of them.

Beyond OpenAI's own: ``top_k``, ``min_p`` and ``repetition_penalty``. An option that is not here is refused, not ignored.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from almanac.core.errors import RequestError
from almanac.generate.engine import Request
from almanac.generate.sampling import sampling
from almanac.serve.limits import (
    DEFAULT_MAX_TOKENS,
    MAX_CHOICES,
    MAX_NAME_CHARACTERS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MIN_TOP_P,
    PENALTIES,
)

if TYPE_CHECKING:
    from almanac.language_model.model import LanguageModel

ASSISTANT, MODEL = "assistant", "model"
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_WIDE = 2**63

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]


class StreamOptions(BaseModel):
    """``include_usage``: a last chunk, without choices, tells the usage."""

    model_config = STRICT
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Options(BaseModel):
    """How to continue; ``seed`` absent draws a fresh one."""

    model_config = STRICT
    model: Name = ASSISTANT
    max_tokens: Annotated[int, Field(ge=1, lt=_WIDE)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=MIN_TOP_P, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=_WIDE)] | None = None
    min_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=PENALTIES[0], le=PENALTIES[1])] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-_WIDE, lt=_WIDE)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Raises RequestError for options that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options came without stream", remedy='Send "stream": true, or leave them out.')

    def requests(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int | None = None,
        logprobs: int | None = None,
    ) -> list[Request]:  # fmt: skip
        """``n`` requests per prompt; the i-th choice draws with seed + i.

        Args:
            temperature: where the request names none.
            max_tokens: at most so many, whatever the request names.
        """
        seed = secrets.randbits(62) if self.seed is None else self.seed
        most = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        made = []
        for prompt in prompts:
            for _ in range(self.n or 1):
                draw = sampling(
                    temperature=temperature if self.temperature is None else self.temperature,
                    top_k=self.top_k,
                    top_p=self.top_p,
                    min_p=self.min_p,
                    repetition_penalty=self.repetition_penalty,
                    seed=(seed + len(made) + _WIDE) % 2**64 - _WIDE,
                )
                made.append(
                    lm.request(
                        prompt,
                        max_tokens=most if max_tokens is None else min(most, max_tokens),
                        sampling=draw,
                        stop=self.stops,
                        logprobs=logprobs,
                    )
                )
        return made


class Usage(BaseModel):
    """Tokens read and written; a token that ends a turn was written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(BaseModel):
    """One token: its text, natural log-probability under the model itself, and bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refusal carries."""

    error: ErrorDetail


FinishReason = Literal["stop", "length"]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def stamped(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that every response and chunk begins with; the id is drawn anew."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
