"""A store of chunks of text and what followed them, asked for the nearest to a chunk by frozen embeddings.

Borgeaud 2021, arXiv 2112.04426, section 2.3: keys are embeddings of chunks that no training changes, values a chunk together
with the one that follows it in its document, and neighbours the nearest by squared distance. Chunks of the document that is
read are no neighbours: their continuation would give away what is to be predicted (section 2.1 removes them while training).

Deviations: the search is exact, as it must be to be an oracle; the authors' is approximate. Keys are means of the rows of any
frozen table, or whatever ``embed`` gives; the authors' are BERT's.

Legend: s chunks stored, c tokens of a chunk, w width of keys, q chunks asked, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError

AT_ONCE = 1024  # chunks asked, so that distances of [1024, s] are held at most
ABSENT = -1  # in place of a token and of a chunk's number


@dataclass(frozen=True)
class Neighbours:
    """What was found for q chunks.

    - ``tokens`` int64 [q, k, 2 c]: chunk and continuation, nearest first; -1 where there is no token
    - ``places`` int64 [q, k]: which stored chunk, -1 where there are fewer than k
    - ``distances`` float [q, k]: squared, infinite there
    """

    tokens: Tensor
    places: Tensor
    distances: Tensor


@dataclass(frozen=True)
class NeighbourStore:
    """``chunks`` int64 [s, c], ``following`` int64 [s, c] (-1 at a document's end), ``documents`` int64 [s], keys [s, w]."""

    chunks: Tensor
    following: Tensor
    documents: Tensor
    keys: Tensor
    embed: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, documents: Sequence[Tensor], *, chunk: int, embed: Callable[[Tensor], Tensor]) -> NeighbourStore:
        """All whole chunks of ``documents`` (int64 [length] each); ``embed``: int64 [s, c] -> [s, w].

        Raises ShapeError where no document has a whole chunk.
        """
        if chunk < 1 or not any(len(document) >= chunk for document in documents):
            raise ShapeError(
                f"No document has {chunk} tokens for a chunk", remedy="Give longer documents or smaller chunks."
            )
        chunks, following, owners = [], [], []
        for number, document in enumerate(documents):
            whole = len(document) // chunk
            padded = torch.full(((whole + 1) * chunk,), ABSENT, dtype=torch.int64)
            padded[: len(document)] = document[: len(padded)]
            cut = padded.view(whole + 1, chunk)
            chunks.append(cut[:-1])
            following.append(cut[1:])
            owners.append(torch.full((whole,), number, dtype=torch.int64))
        stored = torch.cat(chunks)
        with torch.no_grad():
            keys = embed(stored)
        return cls(stored, torch.cat(following), torch.cat(owners), keys, embed)

    @torch.no_grad()
    def nearest(self, asked: Tensor, count: int, *, documents: Tensor | None = None) -> Neighbours:
        """The ``count`` nearest chunks to each of ``asked`` int64 [q, c].

        ``documents`` int64 [q] names the document that each asked chunk is from, none of whose chunks is a neighbour; -1 or
        None where it is not in the store. Leaving it out for a text that is in the store gives its future away.
        """
        if count < 1 or asked.dim() != 2 or asked.shape[1] != self.chunks.shape[1]:
            raise RequestError(
                f"{count} neighbours of chunks of shape {tuple(asked.shape)}, stored are {tuple(self.chunks.shape)}",
                remedy="Ask for one at least, with chunks of the stored length.",
            )
        found = []
        owners = documents if documents is not None else torch.full((len(asked),), ABSENT)
        for part, own in zip(asked.split(AT_ONCE), owners.split(AT_ONCE), strict=True):
            distances = torch.cdist(self.embed(part).to(self.keys.dtype), self.keys).square()
            distances = distances.masked_fill(own[:, None] == self.documents[None, :], torch.inf)
            found.append(distances.topk(min(count, len(self.keys)), largest=False))
        distances = torch.cat([item.values for item in found])
        places = torch.cat([item.indices for item in found]).masked_fill(distances.isinf(), ABSENT)
        missing = count - places.shape[1]
        if missing > 0:
            places = torch.nn.functional.pad(places, (0, missing), value=ABSENT)
            distances = torch.nn.functional.pad(distances, (0, missing), value=torch.inf)
        tokens = torch.cat([self.chunks, self.following], dim=1)[places.clamp(min=0)]
        return Neighbours(tokens.masked_fill((places < 0)[..., None], ABSENT), places, distances)


def mean_embedding(table: Tensor) -> Callable[[Tensor], Tensor]:
    """Chunks int64 [q, c] -> the means of their tokens' rows of ``table`` [vocab, w], which stays as it is now."""
    frozen = table.detach().clone()
    return lambda chunks: frozen[chunks.clamp(min=0)].mean(1)
