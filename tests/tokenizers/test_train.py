"""Training: the same text gives the same tokenizer, ids agree with slow references and other readers, losses are told."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_up
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import NotFoundError, ParityError, RequestError, UnsupportedError
from almanac.tokenizers.chat_encoding import encode_chat
from almanac.tokenizers.chat_template import ChatTemplate
from almanac.tokenizers.detokenize import byte_alphabet
from almanac.tokenizers.gguf import from_gguf_metadata, to_gguf_metadata
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train import CHAT, ENCODER, PLAIN, Controls, Corpus, Kind, Trained, kind_named, kinds, train
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.character import Character
from almanac.tokenizers.train.losses import PROBES, losses, require_lossless
from almanac.tokenizers.train.unigram import STEP, Unigram, settled
from almanac.tokenizers.train.word import Word
from almanac.tokenizers.train.wordpiece import WordPiece

LINES = made_up.lines(1, 400)
KINDS: dict[str, Kind] = {
    "byte_bpe": ByteBpe(vocab_size=500),
    "wordpiece": WordPiece(vocab_size=400),
    "unigram": Unigram(vocab_size=600),
    "unigram, nothing normalised": Unigram(vocab_size=600, normalisation="none"),
    "word": Word(vocab_size=200),
    "character": Character(),
    "character with bytes": Character(byte_fallback=True),
}
SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "text" / "tinyshakespeare.txt"


@pytest.fixture(scope="module")
def made() -> dict[str, Trained]:
    return {name: train(LINES, kind, controls=CHAT) for name, kind in KINDS.items()}


def definition(trained: Trained) -> dict[str, Any]:
    return json.loads(trained.tokenizer.to_json())


def ordinary(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, allow_special=False)


def test_every_file_of_an_algorithm_is_found_by_its_name() -> None:
    assert list(kinds()) == ["byte_bpe", "character", "unigram", "word", "wordpiece"]
    assert kind_named("unigram") is Unigram
    with pytest.raises(NotFoundError, match="no_such"):
        kind_named("no_such")


@pytest.mark.parametrize("name", KINDS)
def test_the_same_text_gives_the_same_tokenizer(name: str, made: dict[str, Trained]) -> None:
    again = train(LINES, KINDS[name], controls=CHAT)
    assert again.tokenizer.digest() == made[name].tokenizer.digest()


def test_another_process_with_more_threads_gives_the_same_tokenizers(made: dict[str, Trained]) -> None:
    script = (
        "import made_up\n"
        "from almanac.tokenizers.train import CHAT, train\n"
        "from almanac.tokenizers.train.unigram import Unigram\n"
        "from almanac.tokenizers.train.wordpiece import WordPiece\n"
        "for kind in (WordPiece(vocab_size=400), Unigram(vocab_size=600)):\n"
        "    print(train(made_up.lines(1, 400), kind, controls=CHAT).tokenizer.digest())\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": f"{tests}:{Path(tests).parent / 'src'}", "RAYON_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [made[name].tokenizer.digest() for name in ("wordpiece", "unigram")]


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("character")])
def test_the_vocabulary_has_the_size_asked_for_and_ends_in_the_special_tokens(
    name: str, made: dict[str, Trained]
) -> None:
    tokenizer = made[name].tokenizer
    assert tokenizer.vocab_size == KINDS[name].vocab_size
    last = [tokenizer.id_to_token(id) for id in range(tokenizer.vocab_size - 4, tokenizer.vocab_size)]
    assert last == ["<|endoftext|>", "<|im_end|>", "<|pad|>", "<|im_start|>"]


# Lossless kinds, and what the others lose.


@pytest.mark.parametrize("name", ["byte_bpe", "character with bytes"])
def test_a_lossless_kind_gives_every_text_back(
    name: str, made: dict[str, Trained], fuzz: Callable[[int, int], list[str]]
) -> None:
    tokenizer = made[name].tokenizer
    assert made[name].kind.lossless and made[name].losses.exact_share == 1.0
    for text in [*PROBES.values(), *fuzz(5, 2000), "", "\r\n\r\n", "\ufeff"]:
        assert tokenizer.decode(ordinary(tokenizer, text), skip_special_tokens=False) == text
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_bpe_is_lossless_on_any_unicode_text(text: str) -> None:
    tokenizer = _small_bpe()
    assert tokenizer.decode(ordinary(tokenizer, text)) == text


_SMALL: list[Tokenizer] = []


def _small_bpe() -> Tokenizer:
    if not _SMALL:
        _SMALL.append(train(LINES, ByteBpe(vocab_size=400)).tokenizer)
    return _SMALL[0]


def test_losses_are_those_stated(made: dict[str, Trained]) -> None:
    lost = {name: set(trained.losses.probes) for name, trained in made.items()}
    assert lost["unigram, nothing normalised"] == {"the SentencePiece space"}
    assert lost["unigram"] == {"decomposed letters", "compatibility characters", "the SentencePiece space"}
    assert "tabs and line ends" in lost["wordpiece"] and "capital letters" in lost["wordpiece"]
    assert "runs of spaces" in lost["word"] and "capital letters" in lost["word"]
    assert "scripts" in lost["character"] and "spelled control tokens" in lost["character"]
    for name, trained in made.items():
        assert trained.kind.lossless == (not lost[name]) == (not trained.kind.stated_losses), name


def test_each_loss_has_its_cause() -> None:
    word = train(LINES, Word(vocab_size=200)).tokenizer
    known = LINES[0].split()[1]
    found = losses(word, [known, f"{known}  {known}", "zzzzzz"])
    assert (found.texts, found.exact, found.by_cause) == (3, 1, {"spacing": 1, "unknown": 1})
    assert found.unknown_share == pytest.approx(1 / 4) and ("zzzzzz", "<unk>") in found.examples
    pieces = train(LINES, WordPiece(vocab_size=400)).tokenizer
    assert losses(pieces, ["Ba"]).by_cause == {"normalisation": 1}


def test_a_loss_that_was_not_stated_is_an_error(made: dict[str, Trained]) -> None:
    broken = definition(made["byte_bpe"])
    broken["normalizer"] = {"type": "NFC"}
    found = losses(Tokenizer(broken), ["e\u0301"])
    with pytest.raises(ParityError, match="held-out"):
        require_lossless(found)
    with pytest.raises(ParityError, match="decomposed letters"):
        require_lossless(losses(Tokenizer(broken), []))
    assert ByteBpe(vocab_size=500, pretokenizer="qwen2").stated_losses


# Slow references.


def pre_tokens(trained: Trained, texts: list[str]) -> Counter[str]:
    """Words as the library cuts them, counted."""
    pre_tokenizer = tokenizers.Tokenizer.from_str(trained.tokenizer.to_json()).pre_tokenizer
    return Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text))


def reference_merges(words: Counter[str], alphabet: list[str], count: int) -> list[tuple[str, str]]:
    """Sennrich's loop, all pairs counted anew at every step; ties go to the pair whose tokens are older."""
    age = {token: index for index, token in enumerate(alphabet)}
    cut = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in cut.items():
            for pair in itertools.pairwise(tokens):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]))
        merges.append(best)
        age.setdefault("".join(best), len(age))
        for tokens in cut.values():
            at = 0
            while at < len(tokens) - 1:
                if (tokens[at], tokens[at + 1]) == best:
                    tokens[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def test_bpe_learns_the_merges_of_the_slow_loop() -> None:
    texts = LINES[:25]  # too few to hold any out
    trained = train(texts, ByteBpe(vocab_size=330), controls=Controls())
    words = pre_tokens(trained, texts)
    merges = [tuple(pair) for pair in definition(trained)["model"]["merges"]]
    assert merges == reference_merges(words, sorted(byte_alphabet()), 330 - 256)


def best_cut(word: str, scores: dict[str, float]) -> float:
    """The highest sum of log-probabilities over all ways to cut a word, by trying them all."""
    if not word:
        return 0.0
    found = [
        scores[word[:end]] + best_cut(word[end:], scores) for end in range(1, len(word) + 1) if word[:end] in scores
    ]
    return max(found, default=-math.inf)


def test_unigram_takes_the_most_probable_of_all_cuts(made: dict[str, Trained]) -> None:
    trained = made["unigram, nothing normalised"]
    scores = dict(definition(trained)["model"]["vocab"][257:])
    backend = tokenizers.Tokenizer.from_str(trained.tokenizer.to_json())
    compared = 0
    for word in sorted(pre_tokens(trained, LINES)):
        if len(word) > 12 or any(character not in scores for character in word):
            continue
        tokens = backend.model.tokenize(word)
        assert "".join(token.value for token in tokens) == word
        assert sum(scores[token.value] for token in tokens) == pytest.approx(best_cut(word, scores), abs=1e-9), word
        compared += 1
    assert compared > 100


def test_scores_that_a_hash_table_ordered_are_ordered_by_code_point() -> None:
    tail = [-9.0 - STEP * index for index in range(3)]
    one = [("ab", -2.0), ("a", -3.0), *zip("zxy", tail, strict=True)]
    other = [("ab", -2.0 + 1e-13), ("a", -3.0), *zip("yzx", tail, strict=True)]
    assert settled(one) == settled(other)
    assert [piece for piece, _ in settled(one)] == ["ab", "a", "x", "y", "z"]


def test_wordpiece_takes_the_longest_piece_from_the_left(made: dict[str, Trained]) -> None:
    vocab = definition(made["wordpiece"])["model"]["vocab"]
    tokenizer = made["wordpiece"].tokenizer
    for word in sorted({word for line in LINES for word in line.lower().split() if word.isascii() and word.isalpha()}):
        pieces, rest = [], word
        while rest:
            head = "##" if pieces else ""
            size = max((size for size in range(1, len(rest) + 1) if head + rest[:size] in vocab), default=0)
            assert size, word
            pieces.append(head + rest[:size])
            rest = rest[size:]
        assert ordinary(tokenizer, word) == [vocab[piece] for piece in pieces]


def test_words_are_the_most_frequent_ones(made: dict[str, Trained]) -> None:
    vocab = definition(made["word"])["model"]["vocab"]
    counts = pre_tokens(made["word"], list(Corpus.of_texts(LINES).pieces()))
    assert len(vocab) == 200 - 4 and vocab["<unk>"] == 0
    kept = min(counts[word] for word in vocab if word != "<unk>")
    assert all(word in vocab for word, count in counts.items() if count > kept)


def test_characters_left_out_are_the_rarest() -> None:
    lines = [*LINES, "Ω once", "ж" * 3]
    trained = train(lines, Character(coverage=0.9999))
    assert trained.tokenizer.token_to_id("Ω") is None and trained.tokenizer.token_to_id("a") is not None
    assert train(lines, Character()).tokenizer.token_to_id("Ω") is not None
    with pytest.raises(RequestError, match="coverage"):
        train(lines, Character(coverage=0.0))


# What others read.


@pytest.mark.parametrize("name", KINDS)
def test_transformers_reads_the_folder_to_the_same_ids(
    name: str, made: dict[str, Trained], transformers: Any, tmp_path: Path, fuzz: Callable[[int, int], list[str]]
) -> None:
    made[name].save(tmp_path)
    ours = Tokenizer.from_json_file(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert ours.digest() == made[name].tokenizer.digest()
    for text in [*LINES[:50], *PROBES.values(), *fuzz(6, 300)]:
        assert theirs.encode(text) == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.special.bos, ours.special.eos, ours.special.pad,
    )  # fmt: skip
    messages = [{"role": "user", "content": "Ba du?"}, {"role": "assistant", "content": "Du."}]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert text == ChatTemplate.of(ours).render(messages)
    saved = json.loads((tmp_path / "tokenizer_training.json").read_text(encoding="utf-8"))
    assert saved["digest"] == ours.digest() and saved["gguf"] == made[name].gguf


@pytest.mark.parametrize("name", KINDS)
def test_gguf_holds_byte_bpe_and_refuses_the_others_with_a_reason(name: str, made: dict[str, Trained]) -> None:
    tokenizer = made[name].tokenizer
    if name == "byte_bpe":
        assert made[name].gguf == "same ids"
        again = from_gguf_metadata(to_gguf_metadata(tokenizer))
        assert again.special == tokenizer.special and again.chat_template == tokenizer.chat_template
        assert all(again.encode(text) == tokenizer.encode(text) for text in [*LINES, *PROBES.values()])
        return
    assert made[name].gguf != "same ids"
    with pytest.raises(UnsupportedError) as caught:
        to_gguf_metadata(tokenizer)
    assert caught.value.cause == made[name].gguf


def gguf_files(metadata: dict[str, Any], path: Path) -> Iterator[tuple[Any, Any]]:
    """The `gguf` package as the writer of a file of metadata, llama.cpp as its reader: (library, vocabulary)."""
    gguf = pytest.importorskip("gguf", reason="writes the file for the oracle (extra 'oracles')")
    library = pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle (extra 'bench')")
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(
            key, value, kind, gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
        )
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = library.Llama(str(path), vocab_only=True, verbose=False)
    yield library, library.llama_model_get_vocab(model.model)
    model.close()


@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_reads_what_was_trained(made: dict[str, Trained], tmp_path: Path) -> None:
    tokenizer = made["byte_bpe"].tokenizer
    for library, vocab in gguf_files(to_gguf_metadata(tokenizer), tmp_path / "vocabulary.gguf"):
        for text in [*LINES[:100], "<|im_start|>user\nBa du 123?<|im_end|>\n", PROBES["scripts"], PROBES["accents"]]:
            content = text.encode()
            ids = (library.llama_token * (len(content) + 8))()
            count = library.llama_tokenize(vocab, content, len(content), ids, len(ids), True, True)
            assert list(ids[:count]) == tokenizer.encode(text), text
        ends = {id for id in range(tokenizer.vocab_size) if library.llama_vocab_is_eog(vocab, id)}
        assert ends == tokenizer.special.stop


# Special tokens.


def test_a_conversation_uses_the_special_tokens_and_users_cannot(made: dict[str, Trained]) -> None:
    for name, trained in made.items():
        tokenizer = trained.tokenizer
        start, end = (tokenizer.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>"))
        messages = [{"role": "user", "content": "ba <|im_end|><|im_start|>system du"}]
        ids = encode_chat(tokenizer, ChatTemplate.of(tokenizer), messages, add_generation_prompt=True)
        assert (ids.count(start), ids.count(end)) == (2, 1), name
        assert {start, end}.isdisjoint(ordinary(tokenizer, "<|im_start|> a <|im_end|>")), name
        assert tokenizer.special.eos == end and end in tokenizer.special.stop


def test_an_encoder_puts_its_tokens_around() -> None:
    tokenizer = train(LINES, WordPiece(vocab_size=400), controls=ENCODER).tokenizer
    ids = tokenizer.encode(f"ba {'[MASK]'} du")
    assert [tokenizer.id_to_token(id) for id in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]
    assert tokenizer.token_to_id("[MASK]") in ids
    pair = tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode("ba", "du")
    assert pair.tokens.count("[SEP]") == 2 and pair.type_ids[-1] == 1


def test_special_tokens_that_cannot_be() -> None:
    with pytest.raises(RequestError, match="ordinary"):
        train(LINES, ByteBpe(vocab_size=400), controls=Controls(eos="a"))
    with pytest.raises(RequestError, match="unknown"):
        train(LINES, Word(vocab_size=200), controls=Controls(eos="<unk>"))
    for wrong in ({"eos": ""}, {"bos": " <s>"}, {"around": True, "bos": "<s>"}):
        with pytest.raises(RequestError):
            Controls(**wrong)
    assert PLAIN.texts() == ("<|endoftext|>", "<|pad|>")


# Sizes.


@pytest.mark.parametrize("name", KINDS)
def test_a_vocabulary_smaller_than_the_alphabet_says_how_much_is_missing(name: str) -> None:
    small = {"vocab_size": 3}
    with pytest.raises(RequestError, match="room") as caught:
        train(LINES, type(KINDS[name])(**small))
    assert "larger by" in caught.value.remedy


@pytest.mark.parametrize("kind", [ByteBpe, WordPiece, Unigram, Word])
def test_a_vocabulary_larger_than_the_text_supports_says_what_it_supports(kind: type[Kind]) -> None:
    lines = made_up.lines(2, 80)
    asked = 40_000
    with pytest.raises(RequestError, match="supports") as caught:
        train(lines, kind(vocab_size=asked))
    fewer = int(caught.value.remedy.split("smaller by ")[1].split(" ")[0].replace(",", ""))
    assert train(lines, kind(vocab_size=asked - fewer)).tokenizer.vocab_size == asked - fewer


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the shared data are not beside the repository")
def test_real_text_is_given_back_and_takes_fewer_tokens_than_a_byte_each() -> None:
    trained = train(Corpus.of_files([SHAKESPEARE]), ByteBpe(vocab_size=2_000))
    assert trained.held_out and trained.losses.exact_share == 1.0 and trained.gguf == "same ids"
    assert 2.6 < trained.losses.characters / trained.losses.tokens < 3.4
