"""Word vectors: angles, analogies and the word2vec file."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest
import torch

from almanac.core.errors import FileFormatError, NotFoundError, RequestError, ShapeError
from almanac.models.word_vectors import WordVectors

WEAT = Path(__file__).parents[3] / "shared" / "data" / "embeddings" / "weat_word2vec_300d.txt.gz"


def vectors(seed: int = 0, count: int = 12, width: int = 4) -> WordVectors:
    generator = torch.Generator().manual_seed(seed)
    return WordVectors([f"w{index}" for index in range(count)], torch.randn(count, width, generator=generator))


def test_similarity_is_the_cosine_and_length_does_not_matter() -> None:
    found = WordVectors(["a", "b", "c", "zero"], torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]]))
    assert found.similarity("a", "b") == pytest.approx(0.5**0.5)
    assert found.similarity("a", "c") == pytest.approx(-1.0) and found.similarity("a", "zero") == 0.0
    assert [word for word, _ in found.nearest("a", count=2)] == ["b", "zero"]
    assert len(found.nearest("a", count=99)) == 3 and "a" in found and "x" not in found


def test_analogies_by_3cosadd_are_those_of_the_plain_loop() -> None:
    found = vectors()
    unit = found.matrix / found.matrix.norm(dim=1, keepdim=True)
    questions = list(itertools.permutations(found.words, 3))[:200]
    expected = []
    for a, b, c in questions:
        wanted = unit[found.words.index(b)] - unit[found.words.index(a)] + unit[found.words.index(c)]
        cosines = {
            word: float(torch.cosine_similarity(unit[row], wanted, dim=0))
            for row, word in enumerate(found.words)
            if word not in (a, b, c)
        }
        expected.append(max(cosines, key=cosines.__getitem__))
    assert found.analogies(questions) == expected
    assert found.analogies([]) == []


def test_the_file_gives_the_same_numbers_back(tmp_path: Path) -> None:
    found = vectors()
    found.save(tmp_path / "v.txt")
    again = WordVectors.load(tmp_path / "v.txt")
    assert again.words == found.words and torch.equal(again.matrix, found.matrix)
    text = (tmp_path / "v.txt").read_text()
    assert text.splitlines()[0] == "12 4"
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress(text.partition("\n")[2].encode()))
    assert torch.equal(WordVectors.load(tmp_path / "glove.txt.gz").matrix, found.matrix)


@pytest.mark.parametrize(
    "content",
    [b"", b"2 2\n", b"a 1 2\nb 1\n", b"a 1 x\n", b"a 1 nan\n", b"a 1 2\na 1 2\n", b"a\n", b"\xff 1 2\n"],
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"broken\.txt"):
        WordVectors.load(path)


def test_what_is_not_there_or_does_not_fit() -> None:
    with pytest.raises(NotFoundError):
        WordVectors.load("nowhere.txt")
    with pytest.raises(NotFoundError, match="x"):
        vectors().similarity("w0", "x")
    with pytest.raises(ShapeError):
        WordVectors(["a"], torch.zeros(2, 3))
    for words in (["a", "a"], ["a", "b c"], ["a", ""]):
        with pytest.raises(RequestError):
            WordVectors(words, torch.zeros(2, 3))


@pytest.mark.skipif(not WEAT.is_file(), reason="the shared data are not beside the repository")
def test_published_vectors_answer_family_analogies() -> None:
    found = WordVectors.load(WEAT)
    assert (len(found), found.matrix.shape[1]) == (347, 300)
    pairs = [("he", "she"), ("him", "her"), ("his", "hers"), ("son", "daughter"), ("brother", "sister"), ("man", "woman"),
             ("uncle", "aunt"), ("father", "mother"), ("boy", "girl"), ("male", "female")]  # fmt: skip
    questions = [(a, b, c) for (a, b), (c, _) in itertools.permutations(pairs, 2)]
    wanted = [d for _, (_, d) in itertools.permutations(pairs, 2)]
    correct = sum(answer == word for answer, word in zip(found.analogies(questions), wanted, strict=True))
    assert correct / len(wanted) > 0.75
