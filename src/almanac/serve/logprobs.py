"""Log-probabilities in OpenAI's shapes, given out with the text they belong to.

A token is reported when all its text has been shown, so that a stop string does not appear here either; the token that
ends a turn is no part of the text and is not reported.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from almanac.generate.engine import Event
from almanac.language_model.model import KnownText
from almanac.serve.engine_thread import Run
from almanac.tokenizers.detokenize import ByteRule, read_rule
from almanac.tokenizers.tokenizer import Tokenizer

LOWEST = -9999.0  # stands for a probability of nothing, which JSON cannot say


class TokenTexts:
    """What each id stands for, as bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.rule: ByteRule | None = read_rule(json.loads(tokenizer.to_json()).get("decoder"))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; none for a row of the embedding that is no token."""
        text = self.tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self.rule is None:
            return self.tokenizer.decode([token], skip_special_tokens=False).encode()
        return self.rule.to_bytes(text)

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """``{"token", "logprob", "bytes"}``."""
        data = self.bytes_of(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST), "bytes": list(data)}

    def entries(self, event: Event) -> dict[str, Any]:
        """The entry of a generated token with its alternatives."""
        assert event.token is not None and event.logprob is not None
        top = [self.entry(token, logprob) for token, logprob in event.top]
        return {**self.entry(event.token, event.logprob), "top_logprobs": top}


class ShownTokens:
    """The tokens of one sequence, let out as their text is."""

    def __init__(self, texts: TokenTexts, stop_tokens: frozenset[int]) -> None:
        self.texts = texts
        self.stop_tokens = stop_tokens
        self.text = KnownText(texts.tokenizer)
        self.written = 0  # characters that the tokens so far make
        self.shown = 0
        self.held: deque[tuple[dict[str, Any], int | None]] = deque()  # entry, and where its text ends if known

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """Entries that may be shown with this event's text."""
        self.shown += len(event.text)
        is_turn_end = event.token in self.stop_tokens
        if event.token is not None and not is_turn_end:
            self._hold(event)
        if event.finish == "length" or is_turn_end:
            ready = [entry for entry, _ in self.held]
            self.held.clear()
            return ready
        ready = []
        while self.held and self.held[0][1] is not None and self.held[0][1] <= self.shown:
            ready.append(self.held.popleft()[0])
        return ready

    def _hold(self, event: Event) -> None:
        assert event.token is not None
        self.held.append((self.texts.entries(event), None))
        piece = self.text.feed(event.token)
        self.written += len(piece)
        if piece:  # tokens that made only a part of a character wait for the one that completes it
            self.held = deque((entry, self.written if end is None else end) for entry, end in self.held)


def shown_tokens(texts: TokenTexts, run: Run) -> list[ShownTokens] | None:
    """One per sequence of a run, or None if its requests ask for no log-probabilities."""
    if run.requests[0].logprobs is None:
        return None
    return [ShownTokens(texts, request.stop_tokens) for request in run.requests]


@dataclass
class Written:
    """A whole sequence: its text, the entries of its tokens if they were asked for, why it ended, tokens computed."""

    text: str = ""
    entries: list[dict[str, Any]] = field(default_factory=list)
    finish: str = "stop"
    tokens: int = 0


async def whole(texts: TokenTexts, run: Run) -> list[Written]:
    """Every sequence of a run, once all have ended."""
    written = [Written() for _ in run.requests]
    shown = shown_tokens(texts, run)
    async for index, event in run.events():
        sequence = written[index]
        sequence.text += event.text
        sequence.finish = event.finish or sequence.finish
        sequence.tokens += event.token is not None
        if shown:
            sequence.entries += shown[index].feed(event)
    return written
