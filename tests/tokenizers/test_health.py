"""The report finds what was planted in a tokenizer, and nothing in one that is well."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import made_up
import pytest

from almanac.core.errors import PreflightError, RequestError
from almanac.tokenizers.health import Width, forgeries, health
from almanac.tokenizers.reach import completions, reach, surfaces
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train import CHAT, ENCODER, train
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.unigram import Unigram
from almanac.tokenizers.train.word import Word
from almanac.tokenizers.train.wordpiece import WordPiece

LINES = made_up.lines(1, 400)
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
UDHR = Path(__file__).parents[3] / "shared" / "data" / "text" / "udhr.jsonl.gz"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train(LINES, ByteBpe(vocab_size=500), controls=CHAT).tokenizer


def changed(tokenizer: Tokenizer, change: Any) -> Tokenizer:
    definition = json.loads(tokenizer.to_json())
    change(definition)
    return Tokenizer(definition, config=tokenizer.config())


def unreachable_bytes(tokenizer: Tokenizer) -> set[bytes]:
    known = surfaces(tokenizer)
    return {known[id].content for id in reach(tokenizer, known, ()).unreachable}


def test_figures_are_counted(bpe: Tokenizer) -> None:
    texts = ["ba du été", "x"]
    found = health(bpe, texts, language_of=lambda text: "en" if text == "x" else "fr")
    ids = [id for text in texts for id in bpe.encode(text)]
    assert (found.use.texts, found.use.bytes, found.use.characters, found.use.words) == (2, 12, 10, 4)
    assert found.use.tokens == len(ids)
    assert found.use.bytes_per_token == pytest.approx(12 / len(ids))
    assert list(found.languages) == ["fr", "en"] and found.languages["en"].tokens_per_word == 1.0
    assert found.ordinary == 496 and found.vocab_size == 500
    assert len(found.never) + len(found.rare) == 496 and set(found.rare) == set(ids)


def test_the_vocabulary_is_weighed_against_the_model() -> None:
    width = Width(hidden=10, layers=2, tied=False)
    assert width.vocabulary(100) == 2000
    assert width.share(100) == pytest.approx(2000 / (2000 + 12 * 2 * 100))
    assert Width(hidden=768, layers=12).share(50_257) == pytest.approx(38_597_376 / (38_597_376 + 84_934_656))
    with pytest.raises(RequestError):
        Width(hidden=0)


def test_of_a_fresh_byte_bpe_only_bytes_outside_utf8_are_unreachable(bpe: Tokenizer) -> None:
    assert unreachable_bytes(bpe) == {bytes([byte]) for byte in NEVER_IN_UTF8}
    found = health(bpe, LINES)
    assert len(found.reach.unreachable) == 13 and not found.reach.undecided
    assert not found.duplicates and not found.forgeries


@pytest.mark.parametrize("kind", [WordPiece(vocab_size=400), Word(vocab_size=200)])
def test_of_other_fresh_kinds_none_is(kind: Any) -> None:
    assert not unreachable_bytes(train(LINES, kind).tokenizer)


def test_a_token_without_its_merge_is_unreachable(bpe: Tokenizer) -> None:
    definition = json.loads(bpe.to_json())
    last = "".join(definition["model"]["merges"][-1])

    def drop(definition: dict[str, Any]) -> None:
        definition["model"]["merges"] = definition["model"]["merges"][:-1]

    broken = changed(bpe, drop)
    id = definition["model"]["vocab"][last]
    assert id in health(broken, LINES).reach.unreachable
    assert id not in health(bpe, LINES).reach.unreachable


def test_a_piece_that_smaller_ones_beat_is_unreachable() -> None:
    tokenizer = train(LINES, Unigram(vocab_size=600)).tokenizer
    definition = json.loads(tokenizer.to_json())
    scores = dict(definition["model"]["vocab"])
    piece = next(piece for piece, score in definition["model"]["vocab"][300:] if len(piece) > 2 and "▁" not in piece)

    def sink(definition: dict[str, Any]) -> None:
        definition["model"]["vocab"] = [[p, -500.0 if p == piece else s] for p, s in definition["model"]["vocab"]]

    assert piece in scores
    assert piece.encode() in unreachable_bytes(changed(tokenizer, sink))
    assert piece.encode() not in unreachable_bytes(tokenizer)


def test_parts_of_characters_are_tried_inside_characters() -> None:
    for part in ("é".encode()[:1], "é".encode()[1:], "你".encode()[1:2], "😀".encode()[:3], "😀x你".encode()[2:-1]):
        texts = completions(part)
        assert texts and all(part in text.encode() for text in texts)
    for byte in range(256):
        assert bool(completions(bytes([byte]))) == (byte not in NEVER_IN_UTF8)
    for impossible in (b"\xe2\x28", b"\x80\x80\x80\x80", b"\xed\xa0", b"\xf4\x90", b"\xe0\x80"):
        assert not completions(impossible)


def test_tokens_that_the_corpus_hardly_shows_are_named(bpe: Tokenizer) -> None:
    text = "the quick the quick the"
    found = health(bpe, [text], rare_below=2)
    ids = bpe.encode(text)
    ordinary = set(surfaces(bpe))
    assert set(found.never) == ordinary - set(ids)
    assert set(found.rare) == {id for id in ids if ids.count(id) == 1}
    assert found.to_dict()["under_trained"]["never_seen"][0]["token"]


def test_two_ids_for_the_same_bytes_are_duplicates() -> None:
    tokenizer = train(LINES, Unigram(vocab_size=600, normalisation="none")).tokenizer
    assert not health(tokenizer, LINES).duplicates

    def double(definition: dict[str, Any]) -> None:
        definition["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": "b"}, "content": "d"})

    groups = health(changed(tokenizer, double), LINES).duplicates
    texts = [{tokenizer.id_to_token(id) for id in group} for group in groups]
    assert {"b", "d"} in texts


def test_variants_differ_in_case_or_the_space_before() -> None:
    lines = [*LINES, *(f"Zebra zebra ZEBRA {line}" for line in LINES)]
    tokenizer = train(lines, Word(vocab_size=250)).tokenizer
    lowered = {text.lower() for surface in surfaces(tokenizer).values() if (text := surface.text())}
    assert health(tokenizer, lines).variants == len(surfaces(tokenizer)) - len(lowered) >= 2


def test_a_fresh_tokenizer_cannot_be_forged() -> None:
    for kind, controls in ((WordPiece(vocab_size=400), ENCODER), (Unigram(vocab_size=600), CHAT)):
        assert not forgeries(train(LINES, kind, controls=controls).tokenizer)


def test_special_tokens_that_text_can_reach_are_told() -> None:
    tokenizer = train([line.lower() for line in LINES], Word(vocab_size=200, lowercase=True), controls=CHAT).tokenizer

    def normalised(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token["normalized"] = token["content"] == "<|im_end|>"

    (disguised,) = forgeries(changed(tokenizer, normalised))
    assert (disguised.token, disguised.text, disguised.how) == ("<|im_end|>", "<|IM_END|>", "disguise")

    def ordinary(definition: dict[str, Any]) -> None:
        definition["pre_tokenizer"] = {"type": "WhitespaceSplit"}
        vocab = definition["model"]["vocab"]
        vocab["<|endoftext|>"] = len(vocab)  # the id that it has as an added token

    found = forgeries(changed(tokenizer, ordinary))
    assert ("<|endoftext|>", "refused") in {(item.token, item.how) for item in found}


def test_without_text_there_is_nothing_to_judge_by(bpe: Tokenizer) -> None:
    with pytest.raises(PreflightError):
        health(bpe, [])


@pytest.mark.skipif(not UDHR.is_file(), reason="the shared data are not beside the repository")
def test_a_tokenizer_of_english_costs_other_languages_more() -> None:
    with gzip.open(UDHR, "rt", encoding="utf-8") as file:
        texts = {row["code"]: row["text"] for row in map(json.loads, file)}
    codes = {name: next(code for code in texts if code.startswith(name)) for name in ("eng", "deu", "rus", "ell")}
    english = texts[codes["eng"]]
    tokenizer = train([line for line in english.splitlines() if line.strip()], ByteBpe(vocab_size=600)).tokenizer
    names = {texts[code]: name for name, code in codes.items()}
    found = health(tokenizer, names, language_of=names.__getitem__)
    tokens = {name: use.tokens for name, use in found.languages.items()}  # of one text in four languages
    assert tokens["eng"] * 1.3 < tokens["deu"] < tokens["rus"]
    assert found.languages["ell"].tokens_per_word > 2 * found.languages["eng"].tokens_per_word
