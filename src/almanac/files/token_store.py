"""A corpus as token ids on disk: shards that are mapped and never read whole, where each document ends, digests of all.

A store is a folder: ``tokens-00000.bin`` and on (unsigned, little end first, 2 bytes an id where the vocabulary allows and
4 otherwise), ``ends.bin`` (int64, tokens up to and with each document) and ``manifest.json``. It is written beside its
place and appears whole or not at all; documents stream through, so memory does not grow with the corpus.

Legend: a *token* here is one id; places count from 0 over all shards.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, IntegrityError, RequestError, UnsupportedError
from almanac.files.mapped import map_file
from almanac.files.quoting import quoted
from almanac.files.staging import move_into_place, staging
from almanac.files.store import canonical_json, sha256_file, sync_folder, write_json
from almanac.files.strict_json import parse_json

MANIFEST, ENDS, VERSION = "manifest.json", "ends.bin", 1
SHARD_TOKENS = 2**27  # 256 or 512 MB a shard
_WIDTHS = {2: (torch.uint16, "H"), 4: (torch.uint32, "I")}
_REMEDY = "Make the store again from its corpus."


@dataclass(frozen=True)
class TokenStore:
    """A store that was opened.

    - ``vocab_size``: every id is below it; ``facts``: what the writer wanted to be known of it, as JSON
    - ``digest``: SHA-256 of the manifest, which holds those of all files
    - ``ends`` int64 [documents], mapped: tokens up to and with each document
    """

    folder: Path
    vocab_size: int
    facts: Mapping[str, Any]
    digest: str
    ends: Tensor
    shard_tokens: int
    shards: tuple[Tensor, ...] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return int(self.ends[-1])

    def read(self, start: int, length: int) -> Tensor:
        """The ids at ``start`` and on, int64 [length]. Raises RequestError for places that are not there."""
        if start < 0 or length < 0 or start + length > self.num_tokens:
            raise RequestError(
                f"Tokens {start} to {start + length} of {self.num_tokens}", remedy="Ask for places within the store."
            )
        parts = []
        while length:
            shard, place = divmod(start, self.shard_tokens)
            part = self.shards[shard][place : place + length]
            parts.append(part.to(torch.int64))
            start, length = start + len(part), length - len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def verify(self) -> None:
        """Reads every byte. Raises IntegrityError where a file is not what was written."""
        for name, digest in _manifest(self.folder)[0]["files"].items():
            if sha256_file(self.folder / name) != digest:
                raise IntegrityError(f"{quoted(self.folder / name, limit=200)} has changed", remedy=_REMEDY)


def open_token_store(folder: str | os.PathLike[str]) -> TokenStore:
    """Opens a store, mapping it.

    Raises:
        NotFoundError: there is none. FileFormatError: its files do not fit its manifest.
    """
    folder = Path(folder)
    manifest, digest = _manifest(folder)
    ends = _mapped(folder / ENDS, 8 * manifest["documents"]).view(torch.int64)
    tokens, per_shard, width = manifest["tokens"], manifest["shard_tokens"], manifest["width"]
    names = sorted(name for name in manifest["files"] if name != ENDS)
    counts = [min(per_shard, tokens - start) for start in range(0, tokens, per_shard)]
    if len(names) != len(counts) or int(ends[-1]) != tokens:
        raise FileFormatError(f"{folder}: {len(names)} shards for {tokens} tokens", remedy=_REMEDY)
    shards = tuple(
        _mapped(folder / name, width * count).view(_WIDTHS[width][0]) for name, count in zip(names, counts, strict=True)
    )
    return TokenStore(folder, manifest["vocab_size"], manifest["facts"], digest, ends, per_shard, shards)


def write_token_store(
    folder: str | os.PathLike[str],
    documents: Iterable[Iterable[Sequence[int]]],
    *,
    vocab_size: int,
    facts: Mapping[str, Any] | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:
    """Writes ``documents``, each an iterable of runs of ids, in place of whatever store lies at ``folder``.

    Documents without a token are left out.

    Raises:
        RequestError: an id that the vocabulary has not, or no token at all; an older store stays.
        UnsupportedError: a vocabulary beyond 32 bits, or a machine that stores numbers big end first.
        OSError: the system refused (disk full, ...); an older store stays.
    """
    folder = Path(folder)
    if not 0 < vocab_size <= 2**32 or sys.byteorder != "little":
        raise UnsupportedError(
            f"A vocabulary of {vocab_size} on a {sys.byteorder}-endian machine", remedy="Use another."
        )
    with staging(folder) as scratch:
        with contextlib.closing(_Writer(scratch, vocab_size, shard_tokens)) as writer:
            for document in documents:
                writer.add(document)
        if not writer.tokens:
            raise RequestError("There is no token in the corpus", remedy="Give documents that hold text.")
        manifest = {
            "version": VERSION, "vocab_size": vocab_size, "width": writer.width, "shard_tokens": shard_tokens,
            "tokens": writer.tokens, "documents": writer.documents, "files": writer.digests, "facts": dict(facts or {}),
        }  # fmt: skip
        write_json(scratch / MANIFEST, manifest)
        open_token_store(scratch).verify()
        sync_folder(scratch)
        move_into_place(scratch, folder)
    return open_token_store(folder)


class _Writer:
    """Ids and ends in, files out; a digest is taken on the way."""

    def __init__(self, folder: Path, vocab_size: int, shard_tokens: int) -> None:
        self.folder, self.vocab_size, self.shard_tokens = folder, vocab_size, shard_tokens
        self.width = 2 if vocab_size <= 2**16 else 4
        self.tokens = self.documents = 0
        self.digests: dict[str, str] = {}
        self._ends = _Hashed(folder / ENDS)
        self._shard: _Hashed | None = None

    def add(self, document: Iterable[Sequence[int]]) -> None:
        before = self.tokens
        for ids in document:
            for start, part in self._cut(ids):
                if start == 0:
                    self._close_shard()
                    self._shard = _Hashed(self.folder / f"tokens-{self.tokens // self.shard_tokens:05}.bin")
                assert self._shard is not None
                self._shard.write(self._bytes(part))
                self.tokens += len(part)
        if self.tokens > before:
            self.documents += 1
            self._ends.write(array.array("q", [self.tokens]).tobytes())

    def close(self) -> None:
        self._close_shard()
        self.digests[ENDS] = self._ends.close()

    def _cut(self, ids: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """(place within its shard, run) of the parts of ``ids`` that lie in one shard each."""
        while ids:
            place = self.tokens % self.shard_tokens
            yield place, ids[: self.shard_tokens - place]
            ids = ids[self.shard_tokens - place :]

    def _bytes(self, ids: Sequence[int]) -> bytes:
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise RequestError(
                f"Document {self.documents} holds token {max(ids) if min(ids) >= 0 else min(ids)}, and the vocabulary has "
                f"{self.vocab_size}",
                remedy="Encode the corpus with the tokenizer that the model is made for.",
            )
        return array.array(_WIDTHS[self.width][1], ids).tobytes()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self.digests[self._shard.name] = self._shard.close()
            self._shard = None


class _Hashed:
    """A file being written, and the digest of what it holds."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._stream: IO[bytes] = path.open("xb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._stream.write(data)

    def close(self) -> str:
        with self._stream as stream:
            stream.flush()
            os.fsync(stream.fileno())
        return self._digest.hexdigest()


def _manifest(folder: Path) -> tuple[dict[str, Any], str]:
    data = bytes(map_file(folder / MANIFEST).numpy())
    found = parse_json(data, source=str(folder / MANIFEST))
    whole = ("tokens", "documents", "vocab_size", "shard_tokens", "width")
    fits = (
        isinstance(found, dict)
        and found.get("version") == VERSION
        and all(isinstance(found.get(name), int) and found[name] > 0 for name in whole)
        and found["width"] in _WIDTHS
        and isinstance(found.get("facts"), dict)
        and isinstance(found.get("files"), dict)
        and all(name == Path(name).name for name in found["files"])
        and canonical_json(found) == data
    )
    if not fits:
        raise FileFormatError(f"{folder / MANIFEST} is no manifest of a token store", remedy=_REMEDY)
    return found, hashlib.sha256(data).hexdigest()


def _mapped(path: Path, size: int) -> Tensor:
    data = map_file(path)
    if len(data) != size:
        raise FileFormatError(f"{path} has {len(data)} bytes, and its manifest says {size}", remedy=_REMEDY)
    return data
