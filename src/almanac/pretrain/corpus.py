"""From a corpus to two token stores, one to train on and one to measure on, split before anything else is done with it.

Two passes. The first tells copies: a document whose text stood before is left out, wherever it lies, so that none is in both
stores. It also decides the split: by documents where there are many, each by the digest of its own text, so that adding a
document moves no other; by the end of each document where there are few, as with one long book. The second encodes.
Memory grows by 40 bytes a document, never with the length of the text.

Of several sources, for a mixture, each has its two stores beside the one of all that is held out.

In a store a document is its tokens between the tokenizer's tokens for a beginning and an end, where it has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from almanac.core.errors import PreflightError
from almanac.files.token_store import TokenStore, open_token_store, write_token_store
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.corpus import Corpus

MANY = 20  # documents, from which on whole ones are held out
LEAST = 256  # characters of held-out text; less measures nothing
TRAINING, HELD_OUT = "training", "held-out"
Sources = Mapping[str, Corpus]
"""Corpora by name."""
Tell = Callable[[str, int, int], object]
"""(which store, documents done, documents in all)."""


@dataclass(frozen=True)
class Counts:
    """What a corpus holds: documents in all, copies left out, empty ones, characters and UTF-8 bytes of what is left."""

    documents: int
    copies: int
    empty: int
    characters: int
    bytes: int


@dataclass(frozen=True)
class Survey:
    """What the first pass found.

    - ``digests``: of the documents that are kept, in order, None for those that are not
    - ``lengths``: their characters; ``digest``: SHA-256 of all
    - ``ends``: of each source its name and the number of documents up to its end
    """

    counts: Counts
    digests: tuple[bytes | None, ...]
    lengths: tuple[int, ...]
    digest: str
    ends: tuple[tuple[str, int], ...] = ()

    def cuts(self, share: float) -> list[int]:
        """Of each document the characters to train on; what follows them is held out, about ``share`` of all.

        Raises PreflightError if that is too little to measure anything on, or leaves too little to learn from.
        """
        kept = sorted((digest, index) for index, digest in enumerate(self.digests) if digest is not None)
        cuts = list(self.lengths)
        if len(kept) >= MANY:
            for _, index in kept[: max(1, round(share * len(kept)))]:
                cuts[index] = 0
        else:
            for _, index in kept:
                cuts[index] -= round(share * cuts[index])
        learned = sum(cuts[index] for _, index in kept)
        if min(learned, self.counts.characters - learned) < LEAST:
            raise PreflightError(
                f"Of {self.counts.characters:,} characters {learned:,} are to be learned from and the others held out: too "
                "few to learn from, or to measure on",
                remedy="Give more text.",
            )
        return cuts


def survey(corpus: Corpus | Sources) -> Survey:
    """Reads the corpus once, or each source.

    Raises PreflightError if there is no text in it, and what `Corpus` raises for files it cannot read.
    """
    seen: set[bytes] = set()
    digests: list[bytes | None] = []
    lengths: list[int] = []
    whole = hashlib.sha256()
    copies = empty = characters = size = 0
    parts, ends = {"": corpus} if isinstance(corpus, Corpus) else corpus, list[tuple[str, int]]()
    for name, document in ((name, document) for name, part in parts.items() for document in part.documents()):
        if not ends or ends[-1][0] != name:
            ends.append((name, len(digests)))
            whole.update(name.encode())
        hashed, length, nbytes, blank = hashlib.sha256(), 0, 0, True
        for piece in document:
            data = piece.encode("utf-8", "surrogatepass")
            hashed.update(data)
            length, nbytes, blank = length + len(piece), nbytes + len(data), blank and not piece.strip()
        digest = hashed.digest()
        whole.update(digest)
        is_kept = not blank and digest not in seen
        empty, copies = empty + blank, copies + (not blank and not is_kept)
        seen.add(digest)
        digests.append(digest if is_kept else None)
        lengths.append(length)
        ends[-1] = (name, len(digests))
        if is_kept:
            characters, size = characters + length, size + nbytes
    if not characters:
        raise PreflightError("The corpus holds no text", remedy="Give files or texts with words in them.")
    return Survey(
        Counts(len(digests), copies, empty, characters, size),
        tuple(digests),
        tuple(lengths),
        whole.hexdigest(),
        tuple(ends),
    )


def encode(
    corpus: Corpus | Sources,
    found: Survey,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    held_out: float,
    tell: Tell = lambda store, done, total: None,
) -> dict[str, Any]:
    """Writes the stores ``training`` and ``held-out`` below ``folder``; returns what a report tells of them.

    Of several sources the stores to train on are ``training-0``, ``training-1``, ..., and there are as many of what is held
    out of each.

    Raises PreflightError as `Survey.cuts`, and if the corpus is another than it was in the first pass.
    """
    cuts = found.cuts(held_out)
    kept, rest = [(0, cut) for cut in cuts], list(zip(cuts, found.lengths, strict=True))
    summary: dict[str, Any] = {"corpus": asdict(found.counts)}

    def write(name: str, part: Corpus, wanted: list[tuple[int, int]], first: int) -> dict[str, Any]:
        writing = _Writing(tokenizer, found, partial(tell, name))
        documents = writing.documents(part, wanted, first)
        facts = {"tokenizer": tokenizer.digest(), "corpus": found.digest}
        store = write_token_store(folder / name, documents, vocab_size=tokenizer.vocab_size, facts=facts)
        return {
            "documents": len(store.ends), "tokens": store.num_tokens, "bytes": writing.bytes, "digest": store.digest,
        }  # fmt: skip

    if isinstance(corpus, Corpus):
        return summary | {HELD_OUT: write(HELD_OUT, corpus, rest, 0), TRAINING: write(TRAINING, corpus, kept, 0)}
    summary[HELD_OUT] = write(HELD_OUT, Corpus.joined(corpus.values()), rest, 0)
    ends, first, sources = dict(found.ends), 0, list[dict[str, Any]]()
    for number, (name, part) in enumerate(corpus.items()):
        end = ends.get(name, first)  # a source without any document has none
        halves = {
            store: write(f"{store}-{number}", part, wanted[first:end], first)
            for store, wanted in ((TRAINING, kept), (HELD_OUT, rest))
        }
        sources.append({"name": name, **halves})  # in their order, which JSON objects lose
        first = end
    told = [item[TRAINING] for item in sources]
    summary[TRAINING] = {key: sum(item[key] for item in told) for key in ("documents", "tokens", "bytes")}
    return summary | {"sources": sources}


class _Writing:
    """Documents in, runs of ids out, counted on the way."""

    def __init__(self, tokenizer: Tokenizer, found: Survey, tell: Callable[[int, int], object]) -> None:
        self.tokenizer, self.found, self.tell = tokenizer, found, tell
        self.bytes = 0
        special = tokenizer.special
        self.begin = [] if special.bos is None else [special.bos]
        self.end = [] if special.eos is None else [special.eos]

    def documents(
        self, corpus: Corpus, wanted: Sequence[tuple[int, int]], first: int
    ) -> Iterator[Iterator[Sequence[int]]]:
        """The wanted characters of every document that is kept, which are numbered from ``first`` on.

        Raises PreflightError if the corpus has changed.
        """
        count = 0
        for index, document in enumerate(corpus.documents()):
            count += 1
            if index >= len(wanted):
                break
            start, end = wanted[index]
            if self.found.digests[first + index] is not None and end > start:
                yield self._ids(document, start, end)
            self.tell(count, len(wanted))
        if count != len(wanted):
            raise _changed()

    def _ids(self, document: Iterator[str], start: int, end: int) -> Iterator[Sequence[int]]:
        yield self.begin
        place = 0
        for piece in document:
            part = piece[max(0, start - place) : max(0, end - place)]
            place += len(piece)
            if part:
                yield self.tokenizer.encode(part, add_special_tokens=False, allow_special=False)
                self.bytes += len(part.encode("utf-8"))
            if place >= end:
                break
        if place < end:
            raise _changed()
        yield self.end


def _changed() -> PreflightError:
    return PreflightError(
        "The corpus has changed while it was read", remedy="Start again when nothing writes to it any more."
    )


def stores(folder: Path) -> tuple[TokenStore, TokenStore]:
    """The two stores, opened: to train on, to measure on."""
    return open_token_store(folder / TRAINING), open_token_store(folder / HELD_OUT)


def source_stores(folder: Path, names: Iterable[str]) -> dict[str, tuple[TokenStore, TokenStore]]:
    """The two stores of each source, by its name, in the order in which they were written."""
    return {
        name: (open_token_store(folder / f"{TRAINING}-{number}"), open_token_store(folder / f"{HELD_OUT}-{number}"))
        for number, name in enumerate(names)
    }
