"""From a corpus to stores: nothing on both sides, copies once, and every character in one of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.core.errors import PreflightError
from almanac.files.token_store import TokenStore
from almanac.pretrain.corpus import MANY, encode, stores, survey
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.character import Character
from almanac.tokenizers.train.corpus import PIECE, Corpus
from almanac.tokenizers.train.run import train

WORDS = "lamp ship stone river quiet seven the of blue far old sea".split()


def text(seed: int, words: int = 120) -> str:
    dice = random.Random(seed)
    return " ".join(dice.choice(WORDS) for _ in range(words)) + f" {seed}.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([text(seed) for seed in range(40)], Character(vocab_size=40)).tokenizer


def texts_in(store: TokenStore, tokenizer: Tokenizer) -> list[str]:
    """The documents of a store, without the tokens around them."""
    starts = [0, *store.ends.tolist()[:-1]]
    rows = [store.read(start, end - start).tolist() for start, end in zip(starts, store.ends.tolist(), strict=True)]
    special = tokenizer.special
    assert all(row[0] == special.bos and row[-1] == special.eos for row in rows)
    return [tokenizer.decode(row[1:-1]) for row in rows]


def split(corpus: Corpus, tokenizer: Tokenizer, folder: Path, share: float = 0.2) -> tuple[list[str], list[str]]:
    encode(corpus, survey(corpus), tokenizer, folder, held_out=share)
    learned, held = stores(folder)
    return texts_in(learned, tokenizer), texts_in(held, tokenizer)


def test_many_documents_are_split_whole_and_copies_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    once = [text(seed) for seed in range(3 * MANY)]
    given = [*once, "", "  \n", *once[:7]]
    corpus = Corpus.of_texts(given)
    found = survey(corpus)
    assert (found.counts.documents, found.counts.copies, found.counts.empty) == (len(given), 7, 2)
    assert found.counts.characters == sum(map(len, once))
    learned, held = split(corpus, tokenizer, tmp_path)
    assert sorted(learned + held) == sorted(once)
    assert len(held) == round(0.2 * len(once))


def test_a_document_more_moves_no_other_to_the_other_side(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """But for those at the edge of the share."""
    once = [text(seed) for seed in range(100)]
    _, held = split(Corpus.of_texts(once), tokenizer, tmp_path / "a")
    _, after = split(Corpus.of_texts([text(1000), *once]), tokenizer, tmp_path / "b")
    assert len(set(held) - set(after)) <= 1


def test_of_few_documents_the_ends_are_held_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    once = [text(seed, words=3 * PIECE // 5) for seed in range(3)]  # of several pieces
    assert all(len(item) > 2 * PIECE for item in once)
    learned, held = split(Corpus.of_texts(once), tokenizer, tmp_path, share=0.1)
    assert [one + other for one, other in zip(learned, held, strict=True)] == once
    assert all(abs(len(part) / len(whole) - 0.1) < 0.01 for part, whole in zip(held, once, strict=True))


def test_what_teaches_nothing_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for given in ([], [""], [" \n"], ["too short"], ["x" * 300]):
        with pytest.raises(PreflightError):
            corpus = Corpus.of_texts(given)
            encode(corpus, survey(corpus), tokenizer, tmp_path, held_out=0.1)
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_changes_between_the_passes_is_noticed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = [text(seed) for seed in range(MANY)]
    corpus = Corpus.of_texts(lambda: iter(given))
    found = survey(corpus)

    def changed() -> Iterator[list[str]]:
        yield given[:-1]
        yield [*given, text(99)]
        yield [item[: len(item) // 2] for item in given]

    for other in changed():
        with pytest.raises(PreflightError, match="changed"):
            encode(Corpus.of_texts(other), found, tokenizer, tmp_path, held_out=0.2)
