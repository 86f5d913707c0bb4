"""Conversations to ids: the control tokens that the template writes count, those that users write do not.

A rendered conversation is one text, in which "<|im_end|>" typed by a user looks like the one the template wrote. So before
rendering, every control token inside the messages is broken by a private-use character (chosen so that it occurs nowhere
else); afterwards whatever still reads as a control token was written by the template. The text between is encoded with
`allow_special=False`, which gives the ids that the whole would give wherever nobody tried anything.

Known limit: a template that builds control tokens from pieces of a message (`'<|' + message['role'] + '|>'`) takes them at
their word. Roles must be checked by whoever accepts messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import RequestError
from almanac.tokenizers.chat_template import ChatTemplate, Message, Surroundings
from almanac.tokenizers.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF900)
_UNTOUCHED_KEYS = frozenset({"role", "type"})  # templates compare these with words of their own


@dataclass(frozen=True, kw_only=True)
class EncodedChat:
    """A conversation as ids.

    Args:
        ids: token ids, nothing added around them.
        is_answer: for each id, whether the assistant wrote it, up to and including the token that ends its turn.
    """

    ids: list[int]
    is_answer: list[bool]


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    surroundings: Surroundings | None = None,
) -> list[int]:
    """Ids of a conversation. Errors as `ChatTemplate.render` and `Tokenizer.encode`."""
    shield = _shield(tokenizer, template, messages, surroundings)
    guarded, context = shield.messages(messages), shield.context(surroundings)
    text = template.render(guarded, add_generation_prompt=add_generation_prompt, **context)
    return [id for id, _ in shield.encode(text)]


def encode_chat_for_training(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    surroundings: Surroundings | None = None,
) -> EncodedChat:
    """Ids of a conversation and which of them are answers. Errors as `ChatTemplate.render_segments`."""
    shield = _shield(tokenizer, template, messages, surroundings)
    segments = template.render_segments(shield.messages(messages), **shield.context(surroundings))
    spans, position = [], 0
    for segment in segments:
        end = position + len(shield.clean(segment.text))
        if segment.is_assistant:
            spans.append((position, end))
        position = end
    encoded = shield.encode("".join(segment.text for segment in segments))
    is_answer = [False] * len(encoded)
    for start, end in spans:
        inside = [place for place, (_, at) in enumerate(encoded) if start <= at < end]
        stops = [place for place in inside if encoded[place][0] in tokenizer.special.stop]
        for place in inside:
            # What follows the last end-of-turn token (a newline, usually) is the template's, and is never generated.
            is_answer[place] = not stops or place <= stops[-1]
    return EncodedChat(ids=[id for id, _ in encoded], is_answer=is_answer)


def _shield(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], surroundings: Surroundings | None
) -> _Shield:
    try:
        return _Shield(tokenizer, template, (list(messages), surroundings))
    except RecursionError as error:
        raise RequestError("The messages are nested too deeply", remedy="Send plain messages.") from error


class _Shield:
    """Breaks control tokens in what users wrote, and finds those that the template wrote."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, given: Any) -> None:
        self._tokenizer = tokenizer
        self._controls = tokenizer.control_tokens()
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches
        self._beginnings = {text[:length] for text in longest_first for length in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)
        used = "".join(_texts(given)) + template.source
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used and f"\\u{code:x}" not in used)
        self._break = next(free, "")
        if not self._break:
            raise RequestError("The messages use every private-use character", remedy="Remove them from the messages.")
        # `tojson(ensure_ascii=true)` writes the character as an escape.
        self._broken = re.compile(f"{self._break}|\\\\u{ord(self._break):x}")

    def messages(self, messages: Sequence[Message]) -> list[Any]:
        """The messages with their control tokens broken."""
        return [self._guard(message) for message in messages]

    def context(self, surroundings: Surroundings | None) -> dict[str, Any]:
        """The arguments of a rendering, with their control tokens broken."""
        surroundings = surroundings or Surroundings()
        guarded = {"tools": self._guard(surroundings.tools), "extra": self._guard(surroundings.extra)}
        return {**guarded, "now": surroundings.now}

    def clean(self, text: str) -> str:
        """Rendered text without the breaks."""
        return self._broken.sub("", text)

    def encode(self, text: str) -> list[tuple[int, int]]:
        """(id, first character in the clean text) for each token of a rendered text."""
        found: list[tuple[int, int]] = []
        start = position = 0  # in `text`, in the clean text
        after_strip = False
        for match in (*self._pattern.finditer(text), None):
            control = self._controls[match[0]] if match else None
            piece = self.clean(text[start : match.start() if match else len(text)])
            left = len(piece) - len(piece.lstrip()) if after_strip else 0
            right = len(piece.rstrip()) if control and control.lstrip else len(piece)
            if left < right:
                ids, offsets = self._tokenizer.encode_with_offsets(
                    piece[left:right], add_special_tokens=False, allow_special=False
                )
                found += [(id, position + left + offset[0]) for id, offset in zip(ids, offsets, strict=True)]
            position += len(piece)
            if match and control:
                found.append((control.id, position))
                position += len(match[0])
                start, after_strip = match.end(), control.rstrip
        return found

    def _guard(self, value: Any) -> Any:
        if isinstance(value, str):
            value = self._pattern.sub(lambda match: f"{match[0][0]}{self._break}{match[0][1:]}", value)
            # The beginning of a control token at the end of one text could meet its rest at the start of another.
            ends = (value[-length:] for length in range(1, min(self._longest, len(value)) + 1))
            return value + self._break if any(end in self._beginnings for end in ends) else value
        if isinstance(value, Mapping):
            return {key: item if key in _UNTOUCHED_KEYS else self._guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item) for item in value]
        return value


def _texts(value: Any) -> Iterator[str]:
    """Every text inside messages, tools and variables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Surroundings):
        yield from _texts((value.tools, value.extra))
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
