"""Which tokens no text is encoded to.

Land & Bartolo 2024, "Fishing for Magikarp: automatically detecting under-trained tokens in large language models"
(arXiv 2405.05417): a token that does not come back when its own text is encoded is never trained. Deviation: they encode
the token alone; here it is tried in ``CONTEXTS`` and after characters of the vocabulary as well, since a piece may occur
inside words only, and a token that is no whole character is tried inside characters that hold its bytes.

For BPE and Unigram a token whose own text, inside one word, is cut otherwise can occur in no text at all (the joins, or the
best segmentation, inside a token do not depend on what surrounds it). Otherwise "unreachable" means: in no context tried.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from almanac.tokenizers.detokenize import read_rule
from almanac.tokenizers.tokenizer import Tokenizer

CONTEXTS = (
    ("", ""), (" ", ""), ("a", ""), ("\n", ""), ("", "a"), (" ", "a"), ("1", ""), (".", ""), ("'", ""), ("A", ""),
    ("", " "), ("", "\n"), ("", "1"), ("", "."), ("  ", ""), ("x", "x"), (" x", ""), ("a ", " a"),
)  # fmt: skip
MAX_HEADS = 64  # characters of the vocabulary that a token is tried after
MAX_COMPLETIONS = 300  # characters that a part of one is tried in

_CONTINUATION = bytes(range(0x80, 0xC0))
_LEADS = {2: range(0xC2, 0xE0), 3: range(0xE0, 0xF0), 4: range(0xF0, 0xF5)}  # first bytes of a character, by its length
_CORNERS = b"\x80\x90\xa0\xbf"  # one of them is allowed after every first byte of UTF-8


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a token stands for in a text.

    Args:
        content: its bytes, which may be a part of a character.
        continues: it only occurs inside a word.
        fallback: it is a byte for what the vocabulary cannot write otherwise.
    """

    content: bytes
    continues: bool = False
    fallback: bool = False

    def text(self) -> str | None:
        """The content as text; None for a part of a character."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Ids that no text was found for.

    Args:
        unreachable: no text leads to them.
        undecided: parts of characters, found in none of the characters tried.
    """

    unreachable: tuple[int, ...]
    undecided: tuple[int, ...]


def surfaces(tokenizer: Tokenizer) -> dict[int, Surface]:
    """What each ordinary token stands for, by id; special, added and unknown tokens are not among them."""
    definition = json.loads(tokenizer.to_json())
    rule = read_rule(definition.get("decoder"))
    prefix = definition["model"].get("continuing_subword_prefix") or ""
    left_out = {token["id"] for token in definition["added_tokens"]} | {tokenizer.special.unk}
    found: dict[int, Surface] = {}
    for id in range(tokenizer.vocab_size):
        token = None if id in left_out else tokenizer.id_to_token(id)
        if token is None:
            continue
        continues = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        token = token[len(prefix) :] if continues else token
        content = rule.to_bytes(token) if rule else token.encode("utf-8")
        fallback = rule is not None and rule.byte_fallback and len(content) == 1 and token.startswith("<0x")
        found[id] = Surface(content=content, continues=continues, fallback=fallback)
    return found


def reach(tokenizer: Tokenizer, known: Mapping[int, Surface], seen: Iterable[int]) -> Reach:
    """Tries every token of ``known`` that is not among ``seen`` (ids met in some text)."""
    missing = set(known) - set(seen)
    whole = {id: text for id in missing if (text := known[id].text()) is not None}
    heads = [text for surface in known.values() if (text := surface.text()) is not None and len(text) == 1]
    contexts = [*CONTEXTS, *((head, "") for head in heads[:: -(-len(heads) // MAX_HEADS)])] if heads else list(CONTEXTS)
    for before, after in contexts:
        whole = _without_found(tokenizer, whole, before, after)
        if not whole:
            break
    parts = {id: completions(known[id].content) for id in missing if known[id].text() is None}
    impossible = {id for id, texts in parts.items() if not texts}
    undecided = {id for id, texts in parts.items() if texts and not _occurs(tokenizer, id, texts)}
    return Reach(unreachable=tuple(sorted({*whole, *impossible})), undecided=tuple(sorted(undecided)))


def completions(part: bytes) -> list[str]:
    """Texts whose UTF-8 holds ``part``, a few characters long; none if there can be none."""
    found: list[str] = []
    for before in _beginnings(part):
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        try:
            decoder.decode(before + part)
        except UnicodeDecodeError:
            continue
        for after in _endings(decoder.getstate()[0]):
            try:
                found.append((before + part + after).decode("utf-8"))
            except UnicodeDecodeError:
                continue
            if len(found) == MAX_COMPLETIONS:
                return found
    return found


def _beginnings(part: bytes) -> Iterator[bytes]:
    """What may stand before a part that begins inside a character."""
    inside = len(part) - len(part.lstrip(_CONTINUATION))
    if inside == 0:
        yield b""
    for length, leads in _LEADS.items():
        for missing in range(length - 1):
            if 1 <= length - 1 - missing <= inside:
                for middle in itertools.product(_CORNERS, repeat=missing):
                    yield from (bytes((lead, *middle)) for lead in leads)


def _endings(begun: bytes) -> Iterator[bytes]:
    """What may end a character of which ``begun`` is the beginning."""
    length = next((length for length, leads in _LEADS.items() if begun and begun[0] in leads), 0)
    missing = max(length - len(begun), 0)
    if missing == 0:
        yield b""
        return
    for first in _CONTINUATION:
        yield from (bytes((first, *rest)) for rest in itertools.product(_CORNERS, repeat=missing - 1))


def _without_found(tokenizer: Tokenizer, texts: Mapping[int, str], before: str, after: str) -> dict[int, str]:
    """Those that do not occur in the encoding of their text in this context."""
    encoded = tokenizer.encode_batch([before + text + after for text in texts.values()], add_special_tokens=False)
    return {id: text for (id, text), ids in zip(texts.items(), encoded, strict=True) if id not in ids}


def _occurs(tokenizer: Tokenizer, id: int, texts: Sequence[str]) -> bool:
    encoded = tokenizer.encode_batch([*texts, *(f" {text}" for text in texts)], add_special_tokens=False)
    return any(id in ids for ids in encoded)
