"""From ids back to text, at once or id by id.

A token stands for bytes, not for characters: one character may be spread over four tokens. So decoding joins bytes and
reads them as UTF-8, replacing what is malformed (U+FFFD for each maximal malformed part, the Unicode recommendation),
and streaming keeps back the bytes of an unfinished character. For both common decoders the two agree by construction:

    byte level    token text in the GPT-2 byte alphabet (Radford et al., 2019): each character is one byte
    pieces        SentencePiece (Kudo & Richardson, 2018, arXiv 1808.06226): "▁" is a space, "<0xE4>" the byte E4

Deviations from the `tokenizers` library, where it loses text: a run of byte tokens that is partly malformed keeps its
well-formed characters (the library replaces every byte of the run), and an added token is always its own text (the
library reads "é" as the byte E9). Other decoders (WordPiece, Metaspace, ...) are left to the library, over a sliding
window.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import tokenizers

from almanac.core.errors import RequestError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of the GPT-2 alphabet: printable Latin-1 is itself, the other 68 bytes follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    return alphabet | {chr(0x100 + offset): byte for offset, byte in enumerate(rest)}


_BYTES = byte_alphabet()


@dataclass(frozen=True, kw_only=True)
class ByteRule:
    """How the text of a token becomes bytes.

    Args:
        byte_level: the text is in the GPT-2 byte alphabet.
        replacements: (from, to) pairs applied to the text otherwise.
        byte_fallback: "<0xHH>" is one byte.
        strip: how many leading occurrences of `strip_text` the decoded text loses.
        strip_text: one character, usually the space that the encoder put in front.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: int = 0
    strip_text: str = " "

    def to_bytes(self, text: str) -> bytes:
        """The bytes of an ordinary token."""
        if self.byte_level:
            values = [_BYTES.get(character) for character in text]
            return text.encode("utf-8") if None in values else bytes(value for value in values if value is not None)
        for old, new in self.replacements:
            text = text.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(text) if self.byte_fallback else None
        return bytes([int(match[1], 16)]) if match else text.encode("utf-8")


def read_rule(decoder: Any) -> ByteRule | None:
    """The byte rule that a tokenizer.json decoder amounts to, or None if it is of another kind."""
    if not isinstance(decoder, Mapping):
        return None
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not steps:
        return None
    if len(steps) == 1 and steps[0].get("type") == "ByteLevel":
        return ByteRule(byte_level=True)
    replacements: list[tuple[str, str]] = []
    fallback = fused = False
    strip, strip_text = 0, " "
    for step in steps:
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if kind == "Replace" and not fallback and not fused and "String" in pattern:
            replacements.append((pattern["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            fallback = True  # the bytes are joined in any case; "Fuse" matters only to what follows it
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step.get("stop") == 0 and strip == 0:
            strip, strip_text = step["start"], step["content"]
        else:
            return None
    return ByteRule(replacements=tuple(replacements), byte_fallback=fallback, strip=strip, strip_text=strip_text)


class Detokenizer:
    """Decodes ids of one tokenizer.

    Args:
        backend: the native tokenizer (token texts, and decoders that are no byte rule).
        rule: the byte rule, or None to decode by the library.
        added: text of the added tokens by id.
        special: ids that `skip_special_tokens` leaves out.
        vocab_size: ids lie in [0, vocab_size).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        rule: ByteRule | None,
        *,
        added: Mapping[int, str],
        special: frozenset[int],
        vocab_size: int,
    ) -> None:
        self.rule = rule
        self.special = special
        self._backend = backend
        self._vocab_size = vocab_size
        self._pieces: dict[int, bytes] = {}
        if rule is not None and rule.byte_level:
            # One character of the alphabet is that byte even when it is also listed as an added token.
            self._pieces = {id: text.encode("utf-8") for id, text in added.items() if text not in _BYTES}

    def token(self, id: int) -> str:
        """The text of the token `id`.

        Raises:
            RequestError: no token has this id.
        """
        text = self._backend.id_to_token(id) if 0 <= id < self._vocab_size else None
        if text is None:
            raise RequestError(
                f"No token has id {id}; the vocabulary holds ids below {self._vocab_size:,}",
                remedy="Decode with the tokenizer that belongs to the model that produced the ids.",
            )
        return text

    def piece(self, id: int) -> bytes:
        """The bytes that `id` stands for (byte rules only). Raises RequestError as `token`."""
        found = self._pieces.get(id)
        if found is None:
            assert self.rule is not None
            found = self._pieces[id] = self.rule.to_bytes(self.token(id))
        return found

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids`. Raises RequestError for what is no id of the vocabulary."""
        numbers = [as_id(id) for id in ids]
        if self.rule is None:
            for number in numbers:
                self.token(number)
            return self._backend.decode(numbers, skip_special_tokens=skip_special_tokens)
        pieces = [self.piece(number) for number in numbers]
        if skip_special_tokens and not self.special.isdisjoint(numbers):
            pieces = [piece for number, piece in zip(numbers, pieces, strict=True) if number not in self.special]
        text = b"".join(pieces).decode("utf-8", "replace")
        return strip_start(text, self.rule.strip, self.rule.strip_text)[0]


def as_id(id: Any) -> int:
    """`id` as a plain int. Raises RequestError for anything else than an integer."""
    try:
        return index(id)
    except TypeError as error:
        raise RequestError(f"{id!r} is not a token id", remedy="Pass integers.") from error


def strip_start(text: str, count: int, character: str) -> tuple[str, int]:
    """`text` without up to `count` leading `character`s, and how many may still be removed from what follows."""
    while count and text.startswith(character):
        text = text[len(character) :]
        count -= 1
    return text, (0 if text else count)


class DecodeStream:
    """Text from ids that arrive one at a time; the pieces joined equal the decoding of all ids together.

    A piece never holds half a character: bytes wait until their character is whole. `finish` gives out what is left
    (U+FFFD for a character that never became whole). Not safe to share between threads.
    """

    def __init__(self, detokenizer: Detokenizer, *, skip_special_tokens: bool = True) -> None:
        self._detokenizer = detokenizer
        self._skipped = detokenizer.special if skip_special_tokens else frozenset()
        rule = detokenizer.rule
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip, self._strip_text = (rule.strip, rule.strip_text) if rule else (0, " ")
        self._window: list[int] = []  # for library decoders: one settled id as context, then the ids not yet given out
        self._given = ""  # what of the window's text has been given out

    def feed(self, id: int) -> str:
        """The text that `id` completes; may be empty. Raises RequestError for an id outside the vocabulary."""
        number = as_id(id)
        if self._detokenizer.rule is None:
            self._detokenizer.token(number)
            return "" if number in self._skipped else self._slide(number)
        piece = self._detokenizer.piece(number)
        return "" if number in self._skipped else self._trim(self._utf8.decode(piece))

    def finish(self) -> str:
        """What was kept back. To be called once, after the last id."""
        if self._detokenizer.rule is None:
            return self._window_text()[len(self._given) :]
        return self._trim(self._utf8.decode(b"", True))

    def _trim(self, text: str) -> str:
        if self._strip:
            text, self._strip = strip_start(text, self._strip, self._strip_text)
        return text

    def _window_text(self) -> str:
        return self._detokenizer.decode(self._window, skip_special_tokens=False)

    def _slide(self, id: int) -> str:
        self._window.append(id)
        text = self._window_text()
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._given):
            return ""
        fresh = text[len(self._given) :]
        if fresh:
            # The newest id stays as context: word-piece decoders put a space before every token but the first.
            self._window = [id]
            self._given = self._window_text()
        return fresh
