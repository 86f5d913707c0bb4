"""Static word vectors: one vector a word, compared by their angle.

Mikolov et al. 2013, "Efficient estimation of word representations in vector space" (arXiv 1301.3781). "a is to b as c is to
?" is answered by the word whose vector is closest to b - a + c, the three themselves left out (3CosAdd, as Levy & Goldberg
2014, "Linguistic regularities in sparse and explicit word representations", call it):

    argmax over x not in {a, b, c} of  cos(x, b - a + c)          on vectors of length 1

The file is word2vec's text format: a line with the number of words and the width, then a line for each word.

Legend: v words, h width.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, NotFoundError, RequestError, ShapeError

MAX_WORDS, MAX_WIDTH = 10_000_000, 16_384
_MAX_LINE = MAX_WIDTH * 32  # characters


class WordVectors:
    """Words and their vectors.

    Args:
        words: no two the same, without white space.
        matrix: float32 [v, h], a row for each word.

    Raises:
        ShapeError: a row too many or too few, or not two-dimensional.
        RequestError: a word occurs twice, is empty or holds white space.
    """

    def __init__(self, words: Sequence[str], matrix: Tensor) -> None:
        if matrix.ndim != 2 or len(words) != len(matrix):
            raise ShapeError(
                f"{len(words):,} words, vectors {tuple(matrix.shape)}", remedy="Give one row for each word."
            )
        self.words = tuple(words)
        self.matrix = matrix.float()
        self._rows = {word: row for row, word in enumerate(self.words)}
        if len(self._rows) != len(self.words) or any(word.split() != [word] for word in self.words):
            raise RequestError(
                "A word occurs twice, or holds white space", remedy="Give every word once, as one piece."
            )

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._rows

    @cached_property
    def units(self) -> Tensor:
        """The vectors at length 1, [v, h]; a vector of zeros stays one."""
        return self.matrix / self.matrix.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def rows(self, words: Sequence[str]) -> Tensor:
        """Row numbers of ``words``, int64. Raises NotFoundError for a word that has no vector."""
        for word in words:
            if word not in self._rows:
                raise NotFoundError(f"There is no vector for {word!r}", remedy="Ask for words of the vocabulary.")
        return torch.tensor([self._rows[word] for word in words], dtype=torch.int64)

    def similarity(self, a: str, b: str) -> float:
        """Cosine of the angle between two words. Raises NotFoundError."""
        first, second = self.units[self.rows([a, b])]
        return float(first @ second)

    def nearest(self, word: str, *, count: int = 10) -> list[tuple[str, float]]:
        """The words most similar to ``word``, without itself, with their cosines. Raises NotFoundError."""
        (row,) = self.rows([word]).tolist()
        scores = self.units @ self.units[row]
        scores[row] = -math.inf
        best = scores.topk(min(count, len(self) - 1))
        return [(self.words[at], score) for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def analogies(self, questions: Sequence[tuple[str, str, str]]) -> list[str]:
        """For each (a, b, c) the word that is to c as b is to a. Raises NotFoundError."""
        if not questions:
            return []
        a, b, c = (self.rows(words) for words in zip(*questions, strict=True))
        wanted = self.units[b] - self.units[a] + self.units[c]  # [questions, h]
        scores = wanted @ self.units.T  # the length of `wanted` changes no order
        for given in (a, b, c):
            scores[torch.arange(len(questions)), given] = -math.inf
        return [self.words[row] for row in scores.argmax(1).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes word2vec's text format; floats with all their digits, so that reading gives the same numbers."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{len(self.words)} {self.matrix.shape[1]}\n")
            for word, row in zip(self.words, self.matrix.tolist(), strict=True):
                file.write(f"{word} {' '.join(f'{value:.9g}' for value in row)}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WordVectors:
        """Reads word2vec's text format, also with ``.gz`` and without the first line (GloVe).

        Raises:
            NotFoundError: no such file.
            FileFormatError: a line of another width, something that is no finite number, a word twice, too large.
        """
        words: list[str] = []
        vectors: list[Tensor] = []
        for number, parts in _lines(Path(path)):
            if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
                continue
            try:
                vector = torch.tensor([float(part) for part in parts[1:]])
            except ValueError as error:
                raise FileFormatError(f"Line {number:,} of {path}: {error}", remedy="Fetch the file again.") from error
            if not 0 < len(vector) <= MAX_WIDTH or (vectors and vector.shape != vectors[0].shape):
                raise FileFormatError(
                    f"Line {number:,} of {path} has {len(vector)} numbers", remedy="Fetch the file again."
                )
            if not vector.isfinite().all() or len(words) == MAX_WORDS:
                raise FileFormatError(f"Line {number:,} of {path} is not finite, or too many", remedy="Fetch it again.")
            words.append(parts[0])
            vectors.append(vector)
        if not words or len(set(words)) != len(words):
            raise FileFormatError(f"{path} holds no words, or one twice", remedy="Fetch the file again.")
        return cls(words, torch.stack(vectors))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, parts) of every line that is not empty."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(_MAX_LINE):
                number += 1
                if line.strip():
                    yield number, line.rstrip("\n").rstrip(" ").split(" ")
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path}", remedy="Name a file of word vectors.") from error
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path} cannot be read ({error})", remedy="Fetch the file again.") from error
