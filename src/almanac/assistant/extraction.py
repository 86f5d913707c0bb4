"""What an answer may be: words of a passage in a row and the passage's number, or the refusal. Nothing else can be written.

A small model that may write anything writes much that no passage says. Here decoding is held to the passages: an answer
starts at a word, goes on as the passage does, may end at the end of a word, and then carries the number of a passage that
says so. Extractive answers as in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), by constrained decoding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from almanac.data.grounded import REFUSAL, Passage
from almanac.generate.processors.prefix_tree import Choice, Node, chain
from almanac.tokenizers.tokenizer import Tokenizer

_WORD = re.compile(r"\S+")
_OPENING = "\"“‘'([{«"  # an answer may start behind these as well as before
_CLOSED = '("“[{,;:-–—/'  # an answer does not end with these


@dataclass(frozen=True)
class _Text:
    """A passage as tokens: ``ends[i]`` says whether an answer may end with token ``i``."""

    number: int
    tokens: tuple[int, ...]
    ends: tuple[bool, ...]


@dataclass(frozen=True)
class _Place:
    """A token of a text: the one written last."""

    text: _Text
    at: int


class _Within:
    """A node within one or several texts that read alike so far."""

    def __init__(self, places: Sequence[_Place], marks: Mapping[int, Choice]) -> None:
        self.places, self.marks = places, marks

    @cached_property
    def children(self) -> Mapping[int, Choice]:
        following: dict[int, list[_Place]] = {}
        cited: list[int] = []
        for place in self.places:
            text, after = place.text, place.at + 1
            if after < len(text.tokens):
                following.setdefault(text.tokens[after], []).append(_Place(text, after))
            if text.ends[place.at]:
                cited.append(text.number)
        found: dict[int, Choice] = {token: _Within(places, self.marks) for token, places in following.items()}
        for number in dict.fromkeys(cited):
            found = _merged(found, self.marks[number].children)
        return found


def answers(passages: Sequence[Passage], tokenizer: Tokenizer, *, may_decline: bool = True) -> Choice:
    """The prefix tree of all answers from ``passages``, numbered from 1, and of the refusal if it may decline.

    Where it may not, no answer begins with the token that the refusal begins with either: what the model then puts on
    that token is mostly its wish to decline, not an answer's article. `with_article` gives the article back.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False, allow_special=False)

    stop: Choice = Node({token: Node() for token in sorted(tokenizer.special.stop)})
    bare = encode("a")
    marks = {number: chain(encode(f"a [{number}]")[len(bare) :], stop) for number in range(1, len(passages) + 1)}
    beginnings: dict[tuple[int, ...], list[_Place]] = {}
    for number, passage in enumerate(passages, start=1):
        _begin(passage.text, number, tokenizer, beginnings)
    refusal = chain(encode(REFUSAL), stop).children
    root: dict[int, Choice] = dict(refusal) if may_decline else {}
    for opening, places in beginnings.items():
        if may_decline or opening[0] not in refusal:
            root = _merged(root, chain(opening, _Within(places, marks)).children)
    return Node(root or dict(refusal))


def with_article(answer: str, passages: Sequence[Passage]) -> str:
    """``answer`` with the article that stands before it at the beginning of a sentence of a passage."""
    article = REFUSAL.partition(" ")[0]
    body = answer.partition(" [")[0]
    for passage in passages:
        found = re.search(rf"(?:^|[.!?:]\s+|\n){article} (?={re.escape(body)})", passage.text) if body else None
        if found:
            return f"{article} {answer}"
    return answer


def _begin(text: str, number: int, tokenizer: Tokenizer, beginnings: dict[tuple[int, ...], list[_Place]]) -> None:
    """Adds every start of an answer in a text: the first word as tokens without the space before it, and its place."""
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=False, allow_special=False)
    ends = tuple(_ends_word(text, end) or end >= len(text.rstrip()) for _, end in offsets)  # at the last, any may end
    whole = _Text(number, tuple(ids), ends)
    last_of = {}  # end of a word, in characters -> its last token
    for index, (_, end) in enumerate(offsets):
        last_of[end] = index
    for word in _WORD.finditer(text):
        if word.end() not in last_of:
            continue
        starts = {word.start(), word.end() - len(word[0].lstrip(_OPENING))} - {word.end()}
        for start in starts:
            opening, spans = tokenizer.encode_with_offsets(
                text[start : word.end()], add_special_tokens=False, allow_special=False
            )
            place = _Place(whole, last_of[word.end()])
            beginnings.setdefault(tuple(opening), []).append(place)
            for count, (_, end) in enumerate(spans[:-1], start=1):  # "24," and "well-known" may end earlier
                if _ends_word(text, start + end):
                    short = _Text(number, (opening[count - 1],), (True,))
                    beginnings.setdefault(tuple(opening[:count]), []).append(_Place(short, 0))


def _merged(one: Mapping[int, Choice], other: Mapping[int, Choice]) -> dict[int, Choice]:
    """Both as one; where they share a token, what follows is merged when it is asked for."""
    found = dict(one)
    for token, node in other.items():
        known = found.get(token)
        if known is None:
            found[token] = node
        else:  # flat, however often a text repeats a word
            found[token] = _Either((*(known.nodes if isinstance(known, _Either) else (known,)), node))
    return found


class _Either:
    """Several nodes as one."""

    def __init__(self, nodes: tuple[Choice, ...]) -> None:
        self.nodes = nodes

    @cached_property
    def children(self) -> Mapping[int, Choice]:
        found: dict[int, Choice] = {}
        for node in self.nodes:
            found = _merged(found, node.children)
        return found


def _ends_word(text: str, end: int) -> bool:
    """Whether an answer may end before character ``end``: behind a letter, digit or closing mark, not within a word."""
    before, after = text[end - 1 : end], text[end : end + 1]
    return not before.isspace() and not (after.isalnum() or after == "_") and before not in _CLOSED
