"""The part of the work that compares documents with each other: copies, near copies, repeated substrings, the mixture.

Each stage goes through the shards of the units once, writes what it decided to a file, and knows of the decisions before it.
These are small (8 bytes a document; spans for what is cut); the texts are written again only once, at the end. Documents
are numbered in the order of the units. Memory: some ten bytes a document, whatever their length.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from almanac.curate.recipe import Recipe
from almanac.curate.shards import documents
from almanac.curate.tally import size_of
from almanac.data.dedup import near_on_disk, substring
from almanac.data.dedup.exact_on_disk import exact_copies
from almanac.data.dedup.partitions import mapped
from almanac.data.filters.step import Removed
from almanac.data.mixture.weights import is_kept, keep_rates
from almanac.data.sources.document import Document
from almanac.files.store import write_atomic

EXACT, NEAR, SUBSTRING, MIXTURE = "exact copies", "near copies", "repeated substrings", "mixture"
_IDS, _ID_ENDS = "ids.bin", "id-ends.bin"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The shards of the units, in order, and the folder of the decisions."""

    shards: Sequence[Path]
    folder: Path
    recipe: Recipe
    count: int

    def exact(self) -> dict[str, Any]:
        """Stage: which documents are exact copies; also notes the ids, by number."""
        with (self.folder / _IDS).open("wb") as ids, (self.folder / _ID_ENDS).open("wb") as ends:
            total = 0
            for document in self._all():
                data = document.id.encode("utf-8")
                total += len(data)
                ids.write(data)
                ends.write(np.array([total], "<i8").tobytes())
        if self.recipe.exact:
            texts = (document.text for document in self._all())
            original = exact_copies(texts, self.folder / "exact", count=self.count)
        else:
            original = np.full(self.count, -1, np.int64)
        self._write("exact", original)
        return {"copies": int((original >= 0).sum())}

    def near_signatures(self) -> dict[str, Any]:
        """Stage: signatures and shingles of what is no exact copy."""
        assert self.recipe.near is not None
        texts = (document.text for _, document in self.kept(EXACT))
        return {"documents": near_on_disk.write_signatures(texts, self.folder / "near", settings=self.recipe.near)}

    def near_copies(self, count: int) -> dict[str, Any]:
        """Stage: which of ``count`` documents with a signature are near copies."""
        assert self.recipe.near is not None
        folder = self.folder / "near"
        pairs = near_on_disk.write_candidates(folder, count, settings=self.recipe.near)
        found = near_on_disk.near_copies(folder, pairs, count, settings=self.recipe.near)
        numbers = np.flatnonzero(self._read("exact") < 0)
        original = np.full(self.count, -1, np.int64)
        copies = found.original >= 0
        original[numbers[copies]] = numbers[found.original[copies]]
        similarity = np.zeros(self.count)
        similarity[numbers] = found.similarity
        self._write("near", original)
        self._write("similarity", similarity)
        shutil.rmtree(folder)
        return {"copies": int(copies.sum())}

    def substrings(self) -> dict[str, Any]:
        """Stage: the spans of later copies of repeated substrings."""
        assert self.recipe.substring is not None
        folder = self.folder / "substring"
        texts = (document.text for _, document in self.kept(NEAR))
        count, total = substring.write_texts(texts, folder)
        numbers = np.flatnonzero((self._read("exact") < 0) & (self._read("near") < 0))
        spans = substring.repeated_spans(folder, count, total, settings=self.recipe.substring)
        texts_cut = 0

        def lines() -> Iterator[bytes]:
            nonlocal texts_cut
            for number, found in spans:
                texts_cut += 1
                yield json.dumps([int(numbers[number]), found]).encode() + b"\n"

        write_atomic(self.folder / "spans.jsonl", lambda sink: _write_all(sink.write, lines()))
        shutil.rmtree(folder)
        return {"documents": texts_cut}

    def mixture(self) -> dict[str, Any]:
        """Stage: the shares of the sources, and what part of each to keep."""
        sizes: dict[str, int] = {}
        for _, document in self.kept(SUBSTRING):
            sizes[document.source] = sizes.get(document.source, 0) + size_of(document.text)
        whole = sum(sizes.values())
        plain = {name: size / whole for name, size in sizes.items() if whole}
        if self.recipe.mixture is None:
            return {"bytes": sizes, "shares": plain, "rates": dict.fromkeys(sizes, 1.0)}
        shares = self.recipe.mixture.shares(sizes)
        rates = dict.fromkeys(sizes, 0.0) | keep_rates(sizes, shares)
        return {"bytes": sizes, "shares": shares, "rates": rates}

    def decided(self, rates: dict[str, float]) -> Iterator[tuple[Document, Document | Removed, str]]:
        """(document, what becomes of it, which stage says so), for all documents in order."""
        for _, before, outcome, stage in self._judged(MIXTURE, rates):
            yield before, outcome, stage

    def kept(self, until: str) -> Iterator[tuple[int, Document]]:
        """(number, document) of what no stage up to and with ``until`` took out."""
        for number, _, outcome, _ in self._judged(until, {}):
            if isinstance(outcome, Document):
                yield number, outcome

    def _judged(self, until: str, rates: dict[str, float]) -> Iterator[tuple[int, Document, Document | Removed, str]]:
        stages = (EXACT, NEAR, SUBSTRING, MIXTURE)
        active = stages[: stages.index(until) + 1]
        exact = self._read("exact")
        near = self._read("near") if NEAR in active and self.recipe.near is not None else None
        similarity = self._read("similarity") if near is not None else None
        spans = self._spans() if SUBSTRING in active and self.recipe.substring is not None else iter(())
        following = next(spans, None)
        for number, document in enumerate(self._all()):
            outcome: Document | Removed = document
            stage = ""
            if exact[number] >= 0:
                outcome, stage = Removed("exact copy", f"of {self._id(int(exact[number]))}"), EXACT
            elif near is not None and similarity is not None and near[number] >= 0:
                told = f"{similarity[number]:.0%} the same as {self._id(int(near[number]))}"
                outcome, stage = Removed("near copy", told), NEAR
            elif following is not None and following[0] == number:
                text = substring.without_spans(document.text, following[1])
                outcome, stage = document.with_text(text), SUBSTRING
                if size_of(text.strip()) < self.recipe.least_left:
                    outcome = Removed("hardly anything but repeated substrings", f"{size_of(text)} bytes left")
                following = next(spans, None)
            if MIXTURE in active and isinstance(outcome, Document):
                rate = rates[document.source]
                if rate < 1 and not is_kept(document.id, rate):
                    outcome, stage = (
                        Removed("beyond its source's share", f"{rate:.1%} of {document.source} kept"),
                        MIXTURE,
                    )
            yield number, document, outcome, stage

    def _all(self) -> Iterator[Document]:
        for shard in self.shards:
            yield from documents(shard)

    def _spans(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        with (self.folder / "spans.jsonl").open("rb") as file:
            for line in file:
                number, spans = json.loads(line)
                yield number, [(start, end) for start, end in spans]

    def _write(self, name: str, values: np.ndarray) -> None:
        write_atomic(self.folder / f"{name}.bin", np.ascontiguousarray(values).tobytes())

    def _read(self, name: str) -> np.ndarray:
        kind = "<f8" if name == "similarity" else "<i8"
        if name == "near" and self.recipe.near is None:
            return np.full(self.count, -1, np.int64)
        return mapped(self.folder / f"{name}.bin", kind, self.count)

    def _id(self, number: int) -> str:
        ends = mapped(self.folder / _ID_ENDS, "<i8", self.count)
        ids = mapped(self.folder / _IDS, "u1", int(ends[-1]))
        return bytes(ids[int(ends[number - 1]) if number else 0 : int(ends[number])]).decode("utf-8")


def _write_all(write: Any, parts: Iterator[bytes]) -> None:
    for part in parts:
        write(part)
