"""What a tokenizer will cost a model, told before the model is trained.

Fertility, tokens for each word, by language: Rust et al. 2021, "How good is your tokenizer?" (arXiv 2012.15613); Petrov et
al. 2023, "Language model tokenizers introduce unfairness between languages" (arXiv 2305.15425). Tokens that are never
trained: Land & Bartolo 2024 (arXiv 2405.05417), see `almanac.tokenizers.reach`. The body of a model counts as
12 · layers · hidden² parameters (Kaplan et al. 2020, arXiv 2001.08361).

Deviation: a word is what stands between white space. Of languages written without spaces no fertility is told, only tokens
for each character.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import PreflightError, RequestError
from almanac.tokenizers.reach import Reach, Surface, reach, surfaces
from almanac.tokenizers.tokenizer import Tokenizer

WITHOUT_SPACES = frozenset("bo dz ja km lo my th zh".split())  # ISO 639-1 codes
RARE = 10  # times in the corpus; below it a token's embedding hardly moves
_BATCH = 64  # texts encoded at once

LanguageOf = Callable[[str], str]


@dataclass
class Use:
    """How texts are written in tokens; everything is counted over all of them."""

    texts: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, text: str, ids: list[int], unknown: int | None) -> None:
        """Counts one text and its ids."""
        self.texts += 1
        self.bytes += len(text.encode("utf-8"))
        self.characters += len(text)
        self.words += len(text.split())
        self.tokens += len(ids)
        self.unknown += 0 if unknown is None else ids.count(unknown)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token stands for, on average."""
        return self.bytes / max(self.tokens, 1)

    @property
    def tokens_per_word(self) -> float:
        """Fertility; 1 if every word is a token."""
        return self.tokens / max(self.words, 1)

    @property
    def tokens_per_character(self) -> float:
        """For languages without spaces."""
        return self.tokens / max(self.characters, 1)

    def to_dict(self, *, spaced: bool = True) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "bytes_per_token": self.bytes_per_token,
            "tokens_per_word": self.tokens_per_word if spaced else None,
            "tokens_per_character": self.tokens_per_character,
        }


@dataclass(frozen=True, kw_only=True)
class Width:
    """The model a vocabulary is meant for.

    Args:
        hidden: width of its embeddings.
        layers: how many there are.
        tied: one matrix serves as embedding and as head.
    """

    hidden: int = 768
    layers: int = 12
    tied: bool = True

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise RequestError(f"A model of width {self.hidden} and {self.layers} layers", remedy="Give 1 or more.")

    def vocabulary(self, vocab_size: int) -> int:
        """Parameters of embedding and head."""
        return vocab_size * self.hidden * (1 if self.tied else 2)

    def share(self, vocab_size: int) -> float:
        """Share of all parameters that the vocabulary takes."""
        own = self.vocabulary(vocab_size)
        return own / (own + 12 * self.layers * self.hidden**2)


@dataclass(frozen=True, kw_only=True)
class Forgery:
    """A control token that text can reach.

    Args:
        token: its text.
        text: what was given.
        how: ``disguise``, another text becomes the token, so that a filter for its own text misses it; ``refused``, the
            vocabulary has no plain form of it, so that a user's text with it ends in an error.
    """

    token: str
    text: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Health:
    """The report.

    Args:
        vocab_size, ordinary: tokens in all, and without special and added ones.
        use: over the whole corpus; languages: by language, the commonest first.
        width: the model that ``vocabulary_share`` is of.
        reach: tokens that no text leads to.
        never, rare: ids of ordinary tokens that the corpus shows never, or at most ``rare_below - 1`` times.
        duplicates: groups of ids that stand for the same bytes.
        variants: tokens that differ from another only in case or in the space before.
        forgeries: control tokens that text can reach.
        tokens: text of each id named above.
    """

    vocab_size: int
    ordinary: int
    use: Use
    languages: Mapping[str, Use]
    width: Width
    reach: Reach
    never: tuple[int, ...]
    rare: tuple[int, ...]
    rare_below: int
    duplicates: tuple[tuple[int, ...], ...]
    variants: int
    forgeries: tuple[Forgery, ...]
    tokens: Mapping[int, str]

    @property
    def vocabulary_share(self) -> float:
        """Share of the model's parameters that embeddings (and head) take."""
        return self.width.share(self.vocab_size)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the texts of the tokens."""

        def named(ids: Iterable[int]) -> list[dict[str, Any]]:
            return [{"id": id, "token": self.tokens[id]} for id in ids]

        return {
            "vocab_size": self.vocab_size,
            "ordinary_tokens": self.ordinary,
            "corpus": self.use.to_dict(),
            "languages": {code: use.to_dict(spaced=code not in WITHOUT_SPACES) for code, use in self.languages.items()},
            "vocabulary_cost": {
                "hidden": self.width.hidden,
                "layers": self.width.layers,
                "tied": self.width.tied,
                "parameters": self.width.vocabulary(self.vocab_size),
                "share": self.vocabulary_share,
            },
            "unreachable": named(self.reach.unreachable),
            "undecided": named(self.reach.undecided),
            "under_trained": {"never_seen": named(self.never), "rare": named(self.rare), "rare_below": self.rare_below},
            "duplicates": [named(group) for group in self.duplicates],
            "variants": self.variants,
            "forgeable": [vars(item) for item in self.forgeries],
        }


def health(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    width: Width = Width(),
    language_of: LanguageOf | None = None,
    rare_below: int = RARE,
) -> Health:
    """Looks a tokenizer over on the text a model is to be trained on.

    Args:
        texts: the corpus, streamed; text that looks like a control token is read as plain text.
        width: of the model.
        language_of: text -> code; without it there are no figures by language.
        rare_below: a token seen less often counts as under-trained.

    Raises:
        PreflightError: there is no text.
        RequestError: a text that the tokenizer cannot encode.
    """
    whole, languages = Use(), defaultdict[str, Use](Use)
    counts: Counter[int] = Counter()
    for batch in _batches(texts):
        for text, ids in zip(batch, _encoded(tokenizer, batch), strict=True):
            counts.update(ids)
            whole.add(text, ids, tokenizer.special.unk)
            if language_of is not None:
                languages[language_of(text)].add(text, ids, tokenizer.special.unk)
    if not whole.tokens:
        raise PreflightError(
            "There is no text to judge the tokenizer by", remedy="Give files or texts with words in them."
        )
    known = surfaces(tokenizer)
    found = reach(tokenizer, known, counts)
    never = tuple(id for id in known if counts[id] == 0)
    rare = tuple(id for id in known if 0 < counts[id] < rare_below)
    copies = duplicates(known)
    named = {*found.unreachable, *found.undecided, *never, *rare, *(id for group in copies for id in group)}
    return Health(
        vocab_size=tokenizer.vocab_size,
        ordinary=len(known),
        use=whole,
        languages=dict(sorted(languages.items(), key=lambda item: (-item[1].bytes, item[0]))),
        width=width,
        reach=found,
        never=never,
        rare=rare,
        rare_below=rare_below,
        duplicates=copies,
        variants=variants(known),
        forgeries=forgeries(tokenizer),
        tokens={id: tokenizer.id_to_token(id) or "" for id in named},
    )


def duplicates(known: Mapping[int, Surface]) -> tuple[tuple[int, ...], ...]:
    """Groups of ids that stand for the same bytes at the same place of a word."""
    groups: dict[Surface, list[int]] = defaultdict(list)
    for id, surface in known.items():
        groups[surface].append(id)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def variants(known: Mapping[int, Surface]) -> int:
    """How many tokens differ from another one only in case or in the space before."""
    texts = [text for surface in known.values() if not surface.fallback and (text := surface.text()) is not None]
    return len(texts) - len({text.lower().lstrip(" ") for text in texts})


def forgeries(tokenizer: Tokenizer) -> tuple[Forgery, ...]:
    """Every control token tried by its own text and by texts that look like it."""
    found: list[Forgery] = []
    for token, control in tokenizer.control_tokens().items():
        if control.id == tokenizer.special.unk:  # any text may become it: that is what it is for
            continue
        for text in dict.fromkeys(_disguises(token)):
            if text not in tokenizer.control_tokens() and control.id in tokenizer.encode(
                text, add_special_tokens=False
            ):
                found.append(Forgery(token=token, text=text, how="disguise"))
        try:
            tokenizer.encode(token, add_special_tokens=False, allow_special=False)
        except RequestError:
            found.append(Forgery(token=token, text=token, how="refused"))
    return tuple(found)


def _disguises(token: str) -> list[str]:
    wide = "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in token)
    return [
        token.lower(),
        token.upper(),
        token.capitalize(),
        wide,
        f"{token[:1]}\u200b{token[1:]}",
        f"{token[:1]}\x00{token[1:]}",
        f"{token[:1]} {token[1:]}",
        f"{token[:2]}\u0301{token[2:]}",
        unicodedata.normalize("NFD", token),
    ]


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Plain text; where the vocabulary has no plain form of a control token, as the library reads it."""
    try:
        return tokenizer.encode_batch(texts, add_special_tokens=False, allow_special=False)
    except RequestError:
        return tokenizer.encode_batch(texts, add_special_tokens=False)
