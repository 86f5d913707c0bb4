"""The check before serving: the engine answers the same for a sequence alone and in company, in finite numbers.

Wrong batching gives one user's words to another and is noticed by nobody (the 2025 post-mortem of a large provider tells
of weeks). This is a small check, two prompts and a few tokens, so that a laptop starts at once; ``almanac verify`` holds
the model against its whole certificate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from almanac.core.errors import IntegrityError
from almanac.generate.engine import Event

if TYPE_CHECKING:
    from almanac.language_model.model import LanguageModel

TEXTS = ("The valve", "Numbers such as 12 and 7 follow each other, and then")
TOKENS = 6
TIE = 1e-3  # nats; two tokens this close may change places with the company
DRIFT = 1e-2  # nats; rounding moves a log-probability by far less


def check_engine(lm: LanguageModel) -> None:
    """Raises IntegrityError if company changes an answer, or numbers are not finite."""
    prompts = [lm.tokenizer.encode(text, allow_special=False) for text in TEXTS]
    prompts = [prompt[: lm.network.context_length - TOKENS] for prompt in prompts]
    alone = [_events(lm, [prompt])[0] for prompt in prompts]
    for single, joint in zip(alone, _events(lm, prompts), strict=True):
        if not _agree(single, joint):
            raise IntegrityError(
                "The engine answers differently in company, or in numbers that are not finite",
                remedy="Run `almanac verify` on the assistant's model, and build the assistant again if it fails.",
            )


def _events(lm: LanguageModel, prompts: list[list[int]]) -> list[list[Event]]:
    engine = lm.engine()
    handles = [engine.submit(lm.request(prompt, max_tokens=TOKENS, logprobs=0)) for prompt in prompts]
    engine.run()
    return [list(handle.events) for handle in handles]


def _agree(single: list[Event], joint: list[Event]) -> bool:
    for left, right in zip(single, joint, strict=False):
        if left.logprob is None or right.logprob is None:  # no token could be chosen
            return False
        if not (math.isfinite(left.logprob) and math.isfinite(right.logprob)):
            return False
        if left.token != right.token:
            return abs(left.logprob - right.logprob) <= TIE  # a tie; what follows differs rightly
        if abs(left.logprob - right.logprob) > DRIFT:
            return False
    return len(single) == len(joint)
