"""Chat templates: from messages to the text a model was trained on.

A template is a Jinja program that comes with a model; it runs in a confined process (`template_process`). The
variables and helpers it sees are those of transformers' `apply_chat_template`, so that both render the same text:
`messages`, `tools`, `add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now`, `tojson`,
`namespace`, loop controls and `{% generation %}` blocks.

For training on answers alone the text is needed in parts: what the assistant wrote, and the rest (`render_segments`).
Where the template marks its answers with `{% generation %}`, the marks decide. Elsewhere the answer to messages[:i]
is what messages[:i + 1] adds to messages[:i] with the generation prompt, which is only sound while each rendering
begins with the one
before: that is checked, never assumed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import RequestError, TemplateError, UnsupportedError
from almanac.tokenizers.template_process import shared_process
from almanac.tokenizers.tokenizer import Tokenizer

MAX_SOURCE_BYTES = 256 * 1024
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "strftime_now", "raise_exception"})

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered conversation.

    Args:
        text: never empty.
        is_assistant: whether the assistant wrote it (its end-of-turn token included).
    """

    text: str
    is_assistant: bool


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a rendering sees besides the messages.

    Args:
        tools: JSON schemas of the tools on offer, or None.
        extra: further variables of the template (for instance `enable_thinking`).
        now: what `strftime_now` shows; the present moment if None.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    extra: Mapping[str, Any] | None = None
    now: datetime.datetime | None = None


class ChatTemplate:
    """One chat template.

    Args:
        source: Jinja source, at most 256 KiB.
        bos_token, eos_token, pad_token, unk_token: texts of the special tokens that the template may name; one left
        empty is
            undefined in the template, which then writes nothing for it.

    Raises:
        TemplateError: the source is not a text, or too long.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", pad_token: str = "", unk_token: str = ""
    ) -> None:
        if not isinstance(source, str) or not source:
            raise TemplateError("The chat template is empty", remedy="Give the text of a Jinja template.")
        if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
            raise TemplateError(
                f"The chat template holds {len(source):,} characters, more than {MAX_SOURCE_BYTES:,} bytes",
                remedy="Chat templates are a few kilobytes long; check where this one comes from.",
            )
        self.source = source
        tokens = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token, "unk_token": unk_token}
        self._tokens = {name: text for name, text in tokens.items() if text}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The chat template that came with `tokenizer`.

        Raises:
            UnsupportedError: it has none.
        """
        if tokenizer.chat_template is None:
            raise UnsupportedError(
                "This model has no chat template, so it is not known how it expects a conversation",
                remedy="Use text completion, or give a chat template.",
            )
        special = tokenizer.special
        ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad, "unk_token": special.unk}
        return cls(
            tokenizer.chat_template,
            **{name: tokenizer.id_to_token(id) or "" for name, id in ids.items() if id is not None},
        )

    def digest(self) -> str:
        """SHA-256 (hex) of the source and the special tokens."""
        content = json.dumps([self.source, self._tokens], sort_keys=True)
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: objects with "role" and "content" (and what else the template reads); plain JSON data.
            add_generation_prompt: end with what begins an answer of the assistant.
            tools, extra, now: as in `Surroundings`.

        Raises:
            TemplateError: the template is broken, refuses these messages, or breached a limit (1 s, 512 MiB, 1 MiB of
            text).
            RequestError: the messages or variables are not plain JSON data, or `extra` names a reserved variable.
        """
        surroundings = Surroundings(tools=tools, extra=extra, now=now)
        return self._render(messages, surroundings, add_generation_prompt=add_generation_prompt)

    def render_segments(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        now: datetime.datetime | None = None,
    ) -> list[Segment]:
        """The text of a conversation in parts; joined, they are `render(messages)`. Arguments as `render`.

        Raises:
            TemplateError: as `render`; or the template rewrites earlier text when messages follow (the message is
            named), so
                that what the assistant wrote cannot be told.
        """
        surroundings = Surroundings(tools=tools, extra=extra, now=now or datetime.datetime.now())
        whole = self._render(messages, surroundings)
        mark = f"\ue000{secrets.token_hex(8)}\ue000"
        parts = self._render(messages, surroundings, mark=mark).split(mark)
        if len(parts) > 1:
            if "".join(parts) != whole or len(parts) % 2 == 0:
                raise TemplateError(
                    "The chat template works on the text of its {% generation %} blocks",
                    remedy="Put the blocks around what is written, not around what is computed with.",
                )
            return [Segment(text, place % 2 == 1) for place, text in enumerate(parts) if text]
        return self._segments_by_prefix(messages, surroundings, whole)

    def _segments_by_prefix(self, messages: Sequence[Message], surroundings: Surroundings, whole: str) -> list[Segment]:
        segments: list[Segment] = []
        done = 0
        for place, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            try:
                before = self._render(messages[:place], surroundings, add_generation_prompt=True)
                after = whole if place + 1 == len(messages) else self._render(messages[: place + 1], surroundings)
            except TemplateError as error:
                raise _unstable(place, f"it cannot render the messages before it alone ({error.cause})") from error
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= done):
                raise _unstable(place, "it renders the messages before it differently once it is there")
            segments += [Segment(whole[done : len(before)], False), Segment(whole[len(before) : len(after)], True)]
            done = len(after)
        segments.append(Segment(whole[done:], False))
        return [segment for segment in segments if segment.text]

    def _render(
        self,
        messages: Sequence[Message],
        surroundings: Surroundings,
        *,
        add_generation_prompt: bool = False,
        mark: str = "",
    ) -> str:
        extra = dict(surroundings.extra or {})
        if taken := sorted(_RESERVED & extra.keys()):
            raise RequestError(
                f"{', '.join(taken)} cannot be set as extra variables", remedy="Use the argument of that name."
            )
        if not all(isinstance(message, Mapping) for message in messages):
            raise RequestError("A message is not an object", remedy='Write {"role": ..., "content": ...}.')
        variables = {
            **self._tokens,
            **extra,
            # A key without a value is left out: templates ask whether a key is there, and would write "None".
            "messages": [{key: value for key, value in message.items() if value is not None} for message in messages],
            "tools": None if surroundings.tools is None else list(surroundings.tools),
            "add_generation_prompt": add_generation_prompt,
        }
        now = (surroundings.now or datetime.datetime.now()).isoformat()
        return shared_process().render(self.source, variables, now=now, mark=mark)


def _unstable(place: int, why: str) -> TemplateError:
    return TemplateError(
        f"Which text the assistant wrote in messages[{place}] cannot be told from this chat template: {why}",
        remedy="Train on the whole text, or use a template with {% generation %} blocks.",
    )
