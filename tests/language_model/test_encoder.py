"""Texts to vectors: the frame, the cut, company, hostile texts, the files that say how, and sentence-transformers."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_model import small_encoder

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import (
    AlmanacError,
    FileFormatError,
    NotFoundError,
    RequestError,
    UnsafeFileError,
    UnsupportedError,
)
from almanac.files.hub import alias_path
from almanac.language_model.encoder import BATCH_TOKENS, PADDING_TOKENS, TextEncoder, batches, load_encoder
from almanac.nn.pooling import First, Max, Mean

ALIAS = "all-minilm-l6-v2"
COMPANY = 1e-6  # largest change of a vector's entry by the company of its text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_encoder.write_folder(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return load_encoder(folder)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return small_encoder.write_folder(tmp_path / "own")


def texts(count: int, seed: int = 0) -> list[str]:
    """Varied texts: empty to long, several scripts, code, numbers, white space."""
    rng = random.Random(seed)
    words = (
        "the lamp of seven quiet rivers Δelta naïve Straße 漢字 かな привет مرحبا 12.5% e-mail don't x=y+1 🐙 "
        "transformer() {return;} C++ https://example.org/a?b=c __init__ ﬁne ½ São"
    ).split()
    out = ["", " ", "a", "\n\t\n", "x" * 150]
    while len(out) < count:
        out.append((" ", ", ", "\n")[len(out) % 3].join(rng.choices(words, k=rng.choice([1, 3, 9, 30, 80]))))
    return out[:count]


# --- what a vector is


def test_a_vector_is_the_pooled_network_over_the_framed_text(encoder: TextEncoder) -> None:
    names = small_encoder.vocabulary()
    ids = [names[piece] for piece in ("[CLS]", "the", "lamp", "##s", "[SEP]")]
    assert encoder.count_tokens("The LAMPs") == len(ids)
    with torch.no_grad():
        hidden = encoder.network(torch.tensor([ids])).double().mean(1)[0]
    vector = encoder.embed(["The LAMPs"])
    assert vector.dtype == np.float32
    assert vector.shape == (1, encoder.dim) == (1, small_encoder.HIDDEN)
    np.testing.assert_allclose(vector[0], (hidden / hidden.norm()).numpy(), atol=1e-6)


def test_a_text_is_cut_to_what_counts(encoder: TextEncoder) -> None:
    assert encoder.max_tokens == 40  # of the tokenizer's configuration, below the 48 of the position table
    words = "lamp ship stone river ".split() * 3000
    whole, cut, shorter = " ".join(words), " ".join(words[:38]), " ".join(words[:37])
    assert len(whole) > 10_000
    assert encoder.count_tokens(whole) == 12_002
    assert encoder.count_tokens(cut) == encoder.max_tokens
    vectors = encoder.embed([whole, cut, shorter])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_texts_keep_their_order_and_their_vectors_in_any_company(encoder: TextEncoder) -> None:
    given = texts(60)
    together = encoder.embed(given)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    alone = np.concatenate([encoder.embed([text]) for text in given])
    assert np.abs(together - alone).max() <= COMPANY
    order = list(range(60))
    random.Random(4).shuffle(order)
    shuffled = encoder.embed([given[index] for index in order])
    assert np.abs(shuffled - together[order]).max() <= COMPANY
    np.testing.assert_array_equal(encoder.embed(given), together)


def test_nothing_and_progress(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert encoder.embed([]).shape == (0, encoder.dim)
    monkeypatch.setattr("almanac.language_model.encoder.WINDOW_TEXTS", 7)
    told: list[tuple[int, int]] = []
    windowed = encoder.embed(texts(30), tell=lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    monkeypatch.undo()
    assert np.abs(windowed - encoder.embed(texts(30))).max() <= COMPANY


def test_batches_hold_every_text_once_within_their_limits() -> None:
    rng = random.Random(2)
    for lengths in ([], [5], [3000, 2, 2], [rng.randint(2, 256) for _ in range(400)]):
        seen: list[int] = []
        for batch in batches(lengths):
            longest = max(lengths[index] for index in batch)
            assert len(batch) == 1 or longest * len(batch) <= BATCH_TOKENS
            assert sum(longest - lengths[index] for index in batch) <= PADDING_TOKENS
            seen += batch
        assert sorted(seen) == list(range(len(lengths)))
    assert max(len(batch) for batch in batches([10] * 400)) == BATCH_TOKENS // 10


# --- hostile and odd texts


def test_control_tokens_in_a_text_are_letters(encoder: TextEncoder) -> None:
    names = small_encoder.vocabulary()
    control = [names[name] for name in small_encoder.SPECIALS]
    for name in ("[SEP]", "[CLS]", "[MASK]", "[PAD]"):
        (row,) = encoder._rows([f"lamp {name} ship"])
        assert row[0] == names["[CLS]"] and row[-1] == names["[SEP]"]
        assert not set(row[1:-1]) & set(control)
    cut = encoder.embed(["lamp", "lamp [SEP]", "lamp [SEP] [PAD] [PAD]"])
    assert np.abs(cut[1:] - cut[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fine", "half a character \ud800"], "lone surrogate"),
        (["fine", b"bytes"], "Text 1 is no str"),
        ([("two", "texts")], "Text 0 is no str"),
        ([None], "Text 0 is no str"),
        ("one text", "list of texts"),
    ],
)
def test_what_is_no_text_is_refused(encoder: TextEncoder, given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encoder.embed(given)


def test_damaged_weights_give_no_vectors(own: Path) -> None:
    made = small_encoder.network()
    with torch.no_grad():
        made.layers[1].channel.up.weight[3, 3] = float("nan")
    small_encoder.write_folder(own, made=made)
    with pytest.raises(FileFormatError, match="not finite"):
        load_encoder(own).embed(["lamp"])


# --- identity


def test_the_digest_names_all_that_decides_a_vector(own: Path, encoder: TextEncoder) -> None:
    first = load_encoder(own)
    assert first.digest == encoder.digest
    assert len(first.digest) == 64
    digests = {first.digest}
    small_encoder.write_settings(own, {"pooling_mode": "cls"})
    digests.add(load_encoder(own).digest)
    small_encoder.write_settings(own, {"pooling_mode": "mean"}, max_seq_length=20)
    digests.add(load_encoder(own).digest)
    small_encoder.write_folder(own, made=small_encoder.network(seed=1))
    digests.add(load_encoder(own).digest)
    with torch.no_grad():
        first.network.layers[0].mixer.q.weight[0, 0] += 0.01
    digests.add(first.digest)
    Int8(targets="embed").attach(first.network)
    digests.add(first.digest)
    digests.add(first.attach(Lora(rank=1)).digest)
    assert len(digests) == 7


def test_an_encoder_loaded_within_inference_mode_is_whole(folder: Path, encoder: TextEncoder) -> None:
    with torch.inference_mode():
        loaded = load_encoder(folder)
        assert loaded.digest == encoder.digest
    assert not any(item.is_inference() for item in loaded.network.parameters())


def test_techniques_act_on_it(own: Path) -> None:
    given, changed = texts(20), load_encoder(own)
    before = changed.embed(given)
    changed.attach(Lora(rank=2))
    np.testing.assert_allclose(changed.embed(given), before, atol=COMPANY)
    changed.attach(Int8(targets="layers.**"))
    after = changed.embed(given)
    assert np.abs(after - before).max() > 1e-6
    assert (after * before).sum(1).min() > 0.99
    assert [step.title for step in changed.plan.techniques] == ["adapt.lora", "compress.quantize.int8"]
    assert [step["step"] for step in changed.provenance["steps"]] == ["adapt.lora", "compress.quantize.int8"]


# --- the files beside the weights


def test_provenance_says_what_was_left_out(encoder: TextEncoder) -> None:
    assert encoder.name == "small"
    assert encoder.provenance == {
        "source": "small",
        "format": "hf",
        "family": "bert",
        "unused_tensors": ["pooler.dense.bias", "pooler.dense.weight"],
    }


@pytest.mark.parametrize(
    ("pooling", "settings", "expected", "max_tokens"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, {"max_seq_length": 16}, Mean(), 16),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, {"max_seq_length": 4096}, First(), 48),
        ({"pooling_mode": "max", "include_prompt": True}, {"transformer_task": "feature-extraction"}, Max(), 40),
        ({"pooling_mode": ["mean"]}, {"max_seq_length": None, "do_lower_case": False}, Mean(), 40),
    ],
)
def test_settings_are_read_in_both_spellings(
    own: Path, pooling: dict[str, Any], settings: dict[str, Any], expected: object, max_tokens: int
) -> None:
    loaded = load_encoder(small_encoder.write_settings(own, pooling, **settings))
    assert loaded.settings.pooling == expected
    assert loaded.max_tokens == max_tokens
    (row,) = loaded._rows(["lamp " * 100])
    assert len(row) == max_tokens
    assert np.isfinite(loaded.embed(["lamp", "ship of stone"])).all()


@pytest.mark.parametrize(
    ("pooling", "settings", "error", "message"),
    [
        ({"pooling_mode": "lasttoken"}, {}, UnsupportedError, "lasttoken"),
        ({"pooling_mode": ["mean", "cls"]}, {}, UnsupportedError, "one at a time"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, {}, UnsupportedError, "mean_sqrt_len"),
        ({"pooling_mode": 7}, {}, UnsupportedError, "pools by"),
        (None, {}, FileFormatError, "pooling that is not there"),
        ({"pooling_mode": "mean"}, {"do_lower_case": True}, UnsupportedError, "lower case"),
        ({"pooling_mode": "mean"}, {"transformer_task": "fill-mask"}, UnsupportedError, "fill-mask"),
        ({"pooling_mode": "mean"}, {"max_seq_length": 2}, FileFormatError, "at most '2' tokens"),
        ({"pooling_mode": "mean"}, {"max_seq_length": "many"}, FileFormatError, "many"),
    ],
)
def test_settings_that_are_not_done_here_are_refused(
    own: Path, pooling: dict[str, Any] | None, settings: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        load_encoder(small_encoder.write_settings(own, pooling, **settings))


@pytest.mark.parametrize(
    ("modules", "error"),
    [
        (
            [
                {"type": "a.Transformer", "path": ""},
                {"type": "a.Pooling", "path": "1"},
                {"type": "a.Dense", "path": "2"},
            ],
            UnsupportedError,
        ),
        ([{"type": "a.Transformer", "path": "0"}, {"type": "a.Pooling", "path": "1"}], UnsupportedError),
        ([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../../etc"}], UnsafeFileError),
        ([], UnsupportedError),
        ([7], FileFormatError),
        ({}, FileFormatError),
    ],
)
def test_steps_that_are_not_done_here_are_refused(own: Path, modules: Any, error: type) -> None:
    (own / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(error):
        load_encoder(own)


def test_a_prompt_before_each_text_is_refused(own: Path) -> None:
    (own / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    with pytest.raises(UnsupportedError, match="prompt"):
        load_encoder(own)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no-such-encoder", NotFoundError, ALIAS),
        ("smollm2-135m-instruct", UnsupportedError, r"almanac\.load"),
        ("nul\0nul", NotFoundError, "no encoder"),
        ("x" * 5000, NotFoundError, "no encoder"),
        (__file__, NotFoundError, "is a file"),
    ],
)
def test_sources_that_are_none(source: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load_encoder(source)


def test_a_tokenizer_of_another_model_is_refused(own: Path) -> None:
    definition = json.loads((own / "tokenizer.json").read_text())
    definition["model"]["vocab"]["stranger"] = len(definition["model"]["vocab"])
    (own / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(FileFormatError, match="embedding holds"):
        load_encoder(own)


def test_cut_files_are_refused(own: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (own / name).read_bytes()
        (own / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(AlmanacError):
            load_encoder(own)
        (own / name).unlink()
        with pytest.raises(NotFoundError):
            load_encoder(own)
        (own / name).write_bytes(content)
    load_encoder(own)


# --- the embedded weights, and the peer


@pytest.fixture(scope="module")
def minilm() -> tuple[TextEncoder, Path]:
    try:
        path = alias_path(ALIAS, download=False)
    except NotFoundError:
        pytest.skip(f"{ALIAS} is not in the cache (`almanac doctor --fetch {ALIAS}`)")
    return load_encoder(ALIAS), path


@pytest.fixture(scope="module")
def peer(minilm: tuple[TextEncoder, Path]) -> Any:
    """sentence-transformers over the same weights, set up as their publisher's own files say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers", reason="the oracle `sentence-transformers` is absent")
        modules = library.sentence_transformer.modules
        network = modules.Transformer(str(minilm[1]), max_seq_length=256)
        pooling = modules.Pooling(network.get_embedding_dimension(), pooling_mode="mean")
        yield library.SentenceTransformer(modules=[network, pooling, modules.Normalize()], device="cpu")


@pytest.mark.embedded
def test_the_embedded_encoder_is_the_peers(minilm: tuple[TextEncoder, Path], peer: Any) -> None:
    encoder, _ = minilm
    given = [*texts(215, seed=9), "the quiet river " * 700]
    lengths = [encoder.count_tokens(text) for text in given]
    assert max(lengths) > encoder.max_tokens == 256
    assert min(lengths) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = peer.encode(given, normalize_embeddings=True, show_progress_bar=False)
    ours = encoder.embed(given)
    cosine = (ours.astype(np.float64) * reference).sum(1) / np.linalg.norm(reference.astype(np.float64), axis=1)
    assert cosine.min() >= 1 - 1e-5
    assert np.abs(ours - reference).max() < 1e-5


@pytest.mark.embedded
def test_the_embedded_encoder_knows_likeness_and_company(minilm: tuple[TextEncoder, Path]) -> None:
    encoder, _ = minilm
    given = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Interest rates rose by a quarter point."]
    vectors = encoder.embed(given)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]
    alone = np.concatenate([encoder.embed([text]) for text in given])
    assert np.abs(vectors - alone).max() <= COMPANY
    assert encoder.provenance["unused_tensors"] == ["pooler.dense.bias", "pooler.dense.weight"]
