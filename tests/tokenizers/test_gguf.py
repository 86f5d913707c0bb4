"""Tokenizers in GGUF metadata: there and back with equal ids, and llama.cpp as the oracle."""

from __future__ import annotations

import copy
import json
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.tokenizers.gguf import from_gguf_metadata, to_gguf_metadata
from almanac.tokenizers.pretokenizers import KNOWN_NAMES, PRETOKENIZERS, find_pretokenizer
from almanac.tokenizers.sentencepiece_bpe import merges_from_scores, scores_from_merges
from almanac.tokenizers.tokenizer import Tokenizer

Fuzz = Callable[[int, int], list[str]]


class LlamaCpp:
    """llama.cpp's tokenizer over metadata written to a GGUF file without tensors."""

    def __init__(self, metadata: dict[str, Any], path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._gguf = pytest.importorskip("gguf", reason="writes the file for the oracle (extra 'oracles')")
            self._library = pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle (extra 'bench')")
        self._write(metadata, path)
        self._model = self._library.Llama(str(path), vocab_only=True, verbose=False)
        self._vocab = self._library.llama_model_get_vocab(self._model.model)

    def _write(self, metadata: dict[str, Any], path: Path) -> None:
        writer = self._gguf.GGUFWriter(str(path), "llama")
        for key, value in metadata.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
            writer.add_uint32(f"llama.{key}", 8)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        content = text.encode("utf-8")
        ids = (self._library.llama_token * (len(content) + 8))()
        count = self._library.llama_tokenize(
            self._vocab, content, len(content), ids, len(ids), add_special, parse_special
        )
        return list(ids[:count])

    def is_end(self, id: int) -> bool:
        return bool(self._library.llama_vocab_is_eog(self._vocab, id))

    def close(self) -> None:
        self._model.close()


def in_both_unicodes(text: str) -> bool:
    """Whether the classes of all characters have been settled for long: the two libraries know different versions."""
    return all(unicodedata.category(character) not in ("Cn", "Co") for character in text)


@pytest.fixture(scope="session")
def metadata(byte_level: Tokenizer) -> dict[str, Any]:
    return to_gguf_metadata(byte_level)


def test_byte_level_there_and_back_gives_the_same_ids(
    byte_level: Tokenizer, metadata: dict[str, Any], fuzz: Fuzz
) -> None:
    again = from_gguf_metadata(metadata)
    assert again.special == byte_level.special
    assert from_gguf_metadata(to_gguf_metadata(again)).digest() == again.digest()
    assert to_gguf_metadata(again) == metadata
    for text in fuzz(40, 10_500):
        for special in (True, False):
            assert again.encode(text, allow_special=special) == byte_level.encode(text, allow_special=special)


def test_metadata_states_the_tokenizer(metadata: dict[str, Any], byte_level: Tokenizer) -> None:
    kept = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    assert (kept["model"], kept["pre"]) == ("gpt2", "smollm")
    assert kept["token_type"][:3] == [3, 3, 3] and kept["token_type"][900] == 4 and kept["token_type"][50] == 1
    assert (kept["bos_token_id"], kept["eos_token_id"]) == (1, 2)
    assert (kept["padding_token_id"], kept["unknown_token_id"]) == (2, 0)
    assert kept["add_bos_token"] is kept["add_eos_token"] is False
    first, second = kept["merges"][0].split(" ")
    assert byte_level.token_to_id(first + second) is not None


@pytest.mark.parametrize("add_eos", [False, True])
def test_flags_template_and_end_tokens_survive(byte_level: Tokenizer, add_eos: bool) -> None:
    config = {**byte_level.config(), "add_bos_token": True, "add_eos_token": add_eos, "chat_template": "t"}
    tokenizer = Tokenizer.from_json(byte_level.to_json(), config={**config, "stop_tokens": ["<think>"]})
    written = to_gguf_metadata(tokenizer)
    assert written["tokenizer.ggml.eot_token_id"] == 900
    again = from_gguf_metadata(written)
    assert again.encode("ba") == tokenizer.encode("ba") == [1, *byte_level.encode("ba"), *([2] if add_eos else [])]
    assert again.add_bos and again.chat_template == "t"
    assert again.special.stop == {0, 2, 900}


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_there_and_back_gives_the_same_ids(
    pieces_metadata: dict[str, Any], fuzz: Fuzz, tmp_path: Path, prefix: bool
) -> None:
    tokenizer = from_gguf_metadata({**pieces_metadata, "tokenizer.ggml.add_space_prefix": prefix})
    written = to_gguf_metadata(tokenizer)
    tokenizer.save(tmp_path)
    for again in (from_gguf_metadata(written), Tokenizer.from_json_file(tmp_path)):
        assert again.special == tokenizer.special
        for text in fuzz(41, 1500):
            for special in (True, False):
                assert again.encode(text, allow_special=special) == tokenizer.encode(text, allow_special=special)
    for key in ("tokens", "token_type", "add_bos_token", "bos_token_id", "unknown_token_id"):
        assert written[f"tokenizer.ggml.{key}"] == pieces_metadata[f"tokenizer.ggml.{key}"]


# For these three llama.cpp approximates the published pattern (classes without marks, or ranges split elsewhere).
APPROXIMATED = {"tekken", "gpt-4o", "deepseek-coder"}


@pytest.mark.parametrize("name", [rule.names[0] for rule in PRETOKENIZERS if rule.names[0] not in APPROXIMATED])
def test_llama_cpp_gives_the_same_ids_for_byte_level(
    metadata: dict[str, Any], fuzz: Fuzz, tmp_path: Path, name: str
) -> None:
    own = {**metadata, "tokenizer.ggml.pre": name}
    tokenizer, oracle = from_gguf_metadata(own), LlamaCpp(own, tmp_path / "vocabulary.gguf")
    compared = 0
    for text in fuzz(42, 1500):
        if not in_both_unicodes(text):
            continue
        if find_pretokenizer(name).nfc:
            text = unicodedata.normalize("NFC", text)  # llama.cpp leaves this to its caller
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=False, allow_special=special)
            assert ids == oracle.encode(text, add_special=False, parse_special=special), repr(text)
            compared += 1
    assert compared > 2000
    ends = {id for id in range(tokenizer.vocab_size) if oracle.is_end(id)}
    assert tokenizer.special.stop == ends
    oracle.close()


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_gives_the_same_ids_for_pieces(
    pieces_metadata: dict[str, Any], fuzz: Fuzz, tmp_path: Path, prefix: bool
) -> None:
    own = {**pieces_metadata, "tokenizer.ggml.add_space_prefix": prefix}
    tokenizer, oracle = from_gguf_metadata(own), LlamaCpp(own, tmp_path / "vocabulary.gguf")
    texts = fuzz(43, 1500) + [f"{text} <start_of_turn>ba  <s>go" for text in fuzz(44, 200)]
    for text in texts:
        for special in (True, False):
            for add in (True, False):
                ids = tokenizer.encode(text, add_special_tokens=add, allow_special=special)
                assert ids == oracle.encode(text, add_special=add, parse_special=special), repr(text)
    oracle.close()


def test_digits_are_cut_before_white_space_is_shared_out(metadata: dict[str, Any]) -> None:
    """The difference between smollm and gpt-2 that converters which ignore `pre` miss (transformers 5.23 does)."""
    cuts = {}
    for name in ("smollm", "gpt-2"):
        tokenizer = from_gguf_metadata({**metadata, "tokenizer.ggml.pre": name})
        cuts[name] = [
            piece for piece, _ in Backend.from_str(tokenizer.to_json()).pre_tokenizer.pre_tokenize_str("x  77")
        ]
    assert cuts == {"smollm": ["x", "ĠĠ", "7", "7"], "gpt-2": ["x", "Ġ", "Ġ77"]}


def test_unknown_kinds_are_refused_by_name(metadata: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_gguf_metadata({**metadata, "tokenizer.ggml.pre": "mystery"})
    assert "'mystery'" in caught.value.cause
    assert all(name in caught.value.cause for name in KNOWN_NAMES)
    absent = {key: value for key, value in metadata.items() if not key.endswith(".pre")}
    with pytest.raises(UnsupportedError, match="None"):
        from_gguf_metadata(absent)
    for model in ("bert", "t5", "rwkv", None, ["gpt2"], 3):
        with pytest.raises((UnsupportedError, FileFormatError)):
            from_gguf_metadata({**metadata, "tokenizer.ggml.model": model})


def test_rules_without_a_name_are_not_exported(definition: dict[str, Any], word_piece: Tokenizer) -> None:
    changes: list[tuple[str, Any]] = [
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", None),
        ("normalizer", {"type": "Lowercase"}),
    ]
    for part, value in changes:
        with pytest.raises(UnsupportedError, match="no name known"):
            to_gguf_metadata(Tokenizer({**copy.deepcopy(definition), part: value}))
    definition["model"]["ignore_merges"] = True
    with pytest.raises(UnsupportedError, match="ignore_merges True"):
        to_gguf_metadata(Tokenizer(definition))
    with pytest.raises(UnsupportedError):
        to_gguf_metadata(word_piece)


@pytest.mark.parametrize("rule", PRETOKENIZERS, ids=lambda rule: rule.names[0])
def test_every_rule_is_recognised_in_a_tokenizer_json(metadata: dict[str, Any], rule: Any) -> None:
    for name in rule.names:
        tokenizer = from_gguf_metadata({**metadata, "tokenizer.ggml.pre": name})
        assert to_gguf_metadata(tokenizer)["tokenizer.ggml.pre"] == rule.names[0]


def test_other_spellings_of_a_rule_are_recognised(definition: dict[str, Any]) -> None:
    spelled = (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": spelled}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    }
    assert to_gguf_metadata(Tokenizer(definition))["tokenizer.ggml.pre"] == "dbrx"


def test_merges_that_scores_cannot_state_are_not_exported(pieces_metadata: dict[str, Any]) -> None:
    definition = json.loads(from_gguf_metadata(pieces_metadata).to_json())
    merges = definition["model"]["merges"]
    assert len(merges) > 900
    pieces = ["".join(pair) for pair in merges]
    second_way = next(rank for rank, piece in enumerate(pieces) if piece in pieces[:rank])
    swapped = merges[:second_way] + merges[second_way + 1 :] + [merges[second_way]]
    for broken in (merges[1:], merges[:second_way] + merges[second_way + 1 :], swapped):
        definition["model"]["merges"] = broken
        with pytest.raises(UnsupportedError, match="scores alone"):
            to_gguf_metadata(Tokenizer(copy.deepcopy(definition)))


def test_scores_and_merges_state_the_same() -> None:
    scores = {"a": -9.0, "b": -9.0, "c": -9.0, "ab": 0.0, "bc": -1.0, "abc": -2.0}
    order = {piece: id for id, piece in enumerate(scores)}
    merges = merges_from_scores(scores, order)
    assert merges == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    assert scores_from_merges(merges) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}


BROKEN: dict[str, Any] = {
    "tokens": [None, "abc", [], ["a", "a"], [1, 2], 7],
    "merges": [None, ["ab"], ["zzz yyy"], [" "], [3], ["a  b"]],
    "token_type": [[1], ["x"] * 901, [], 3, {}],
    "bos_token_id": [901, -1, 2**63, "1", 1.5, [1]],
    "eos_token_id": [901],
    "eot_token_id": [2**32],
}


@pytest.mark.parametrize("key", BROKEN)
def test_contradictory_metadata_raise_one_typed_error(metadata: dict[str, Any], key: str) -> None:
    for value in BROKEN[key]:
        with pytest.raises(FileFormatError) as caught:
            from_gguf_metadata({**metadata, f"tokenizer.ggml.{key}": value})
        assert caught.value.remedy


def test_scores_must_match_and_bos_must_exist(metadata: dict[str, Any], pieces_metadata: dict[str, Any]) -> None:
    for scores in (None, [], [1.0], ["x"], 5):
        with pytest.raises(FileFormatError, match="scores"):
            from_gguf_metadata({**pieces_metadata, "tokenizer.ggml.scores": scores})
    without = {key: value for key, value in metadata.items() if "bos_token" not in key}
    with pytest.raises(FileFormatError, match="bos"):
        from_gguf_metadata({**without, "tokenizer.ggml.add_bos_token": True})


def test_forgotten_types_and_empty_tokens_are_read_as_llama_cpp_does(metadata: dict[str, Any]) -> None:
    without = {key: value for key, value in metadata.items() if not key.endswith("token_type")}
    assert from_gguf_metadata(without).encode("a<|im_end|>")[-1] == 2
    forgotten = {**metadata, "tokenizer.ggml.token_type": [1] * 901}
    assert from_gguf_metadata(forgotten).special.stop == {0, 2}
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[900] = ""
    assert from_gguf_metadata({**metadata, "tokenizer.ggml.tokens": tokens}).id_to_token(900) == "[EMPTY_900]"


def test_arrays_may_be_numpy(metadata: dict[str, Any]) -> None:
    types = np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32)
    own = {**metadata, "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": np.uint32(1)}
    assert from_gguf_metadata(own).digest() == from_gguf_metadata(metadata).digest()


def test_a_vocabulary_of_49_thousand_builds_in_seconds() -> None:
    alphabet = [chr(code) for code in range(0x21, 0x7F)]
    pairs = [left + right for left in alphabet for right in alphabet]
    triples = [pair + right for pair in pairs for right in alphabet[:5]]
    tokens = [*alphabet, *pairs, *triples][:49_152]
    merges = [f"{token[:-1]} {token[-1]}" for token in tokens[len(alphabet) :]]
    own = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges, "token_type": [1] * len(tokens)}
    started = time.process_time()
    tokenizer = from_gguf_metadata({f"tokenizer.ggml.{key}": value for key, value in own.items()})
    assert time.process_time() - started < 10.0  # quadratic merging took minutes; a busy machine takes a few seconds
    assert tokenizer.vocab_size == 49_152
