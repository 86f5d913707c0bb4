"""Hostile and broken tokenizer.json: one typed error, or a tokenizer that works; never a crash or a silent shift of ids."""

from __future__ import annotations

import copy
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest

from almanac.core.errors import FileFormatError, RequestError, UnsafeFileError
from almanac.tokenizers.definition import MAX_BYTES, MAX_TOKEN_ID, is_exponential, read_definition
from almanac.tokenizers.pretokenizers import PRETOKENIZERS
from almanac.tokenizers.tokenizer import Tokenizer


def change(path: tuple[Any, ...], value: Any) -> Callable[[Any], None]:
    def apply(definition: Any) -> None:
        for key in path[:-1]:
            definition = definition[key]
        definition[path[-1]] = value

    return apply


BROKEN: dict[str, Callable[[Any], None]] = {
    "no model": lambda d: d.pop("model"),
    "model is a list": change(("model",), []),
    "unknown model": change(("model", "type"), "Telepathy"),
    "no vocabulary": lambda d: d["model"].pop("vocab"),
    "vocabulary is a text": change(("model", "vocab"), "abc"),
    "negative id": change(("model", "vocab", "a"), -1),
    "id 2^31": change(("model", "vocab", "a"), 2**31),
    "id 2^63": change(("model", "vocab", "a"), 2**63),
    "id beyond any table": change(("model", "vocab", "a"), MAX_TOKEN_ID),
    "id is true": change(("model", "vocab", "a"), True),
    "id is a fraction": change(("model", "vocab", "a"), 1.5),
    "two tokens, one id": change(("model", "vocab", "a"), 5),
    "merges are a number": change(("model", "merges"), 7),
    "merge of strangers": change(("model", "merges"), [["zzzz", "yyyy"]]),
    "merge of one": change(("model", "merges"), [["a"]]),
    "merge without result": change(("model", "merges"), [["a", "<|im_end|>"]]),
    "added tokens are a number": change(("added_tokens",), 3),
    "added token is a text": change(("added_tokens",), ["x"]),
    "added token without text": change(("added_tokens", 0, "content"), ""),
    "added token without id": lambda d: d["added_tokens"][0].pop("id"),
    "added token with another's id": change(("added_tokens", 3, "id"), 5),
    "added token beyond the end": change(("added_tokens", 3, "id"), 5000),
    "added token at 2^63": change(("added_tokens", 3, "id"), 2**63),
    "lone surrogate": change(("added_tokens", 3, "content"), "\ud800"),
    "unknown step": change(("pre_tokenizer",), {"type": "Guess"}),
    "pattern that does not compile": change(
        ("pre_tokenizer",), {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
    ),
    "malformed charsmap": change(("normalizer",), {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "template that names strangers": change(
        ("post_processor",),
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}], "pair": []}
        | {"special_tokens": {}},
    ),
    "steps nested 200 deep": change(("normalizer",), None),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_files_raise_one_typed_error(definition: dict[str, Any], name: str) -> None:
    BROKEN[name](definition)
    if name.startswith("steps nested"):
        step: Any = {"type": "NFC"}
        for _ in range(200):
            step = {"type": "Sequence", "normalizers": [step]}
        definition["normalizer"] = step
    with pytest.raises(FileFormatError) as caught:
        Tokenizer.from_json(json.dumps(definition))
    assert caught.value.remedy


def test_size_is_checked_before_parsing() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = " " * (MAX_BYTES + 1)
    with pytest.raises(FileFormatError, match="more than"):
        read_definition(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * MAX_BYTES / 1024


def test_mutated_files_load_or_raise_one_typed_error(definition: dict[str, Any]) -> None:
    """Structure-aware fuzzing: 1,500 files with one to three values replaced, each within a second."""
    rng = random.Random(30)
    vocab = definition["model"]["vocab"]
    kept = {token: id for token, id in vocab.items() if id < 300}
    definition["model"]["vocab"] = kept
    merges = definition["model"]["merges"]
    definition["model"]["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= kept.keys()]
    definition["added_tokens"] = definition["added_tokens"][:3]
    values = [None, True, -1, 0, 2**31, 2**63, 2**64, 1e308, "", "▁", "\ud800", [], {}, [[]], {"type": "NFC"}, "BPE"]
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(1500):
        mutant = copy.deepcopy(definition)
        for _ in range(rng.randint(1, 3)):
            node: Any = mutant
            while True:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                if not keys:
                    break
                key = rng.choice(keys)
                if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                    node = node[key]
                    continue
                if rng.random() < 0.2 and isinstance(node, dict):
                    del node[key]
                else:
                    node[key] = rng.choice(values)
                break
        started = time.process_time()
        try:
            tokenizer = Tokenizer.from_json(json.dumps(mutant))
            ids = tokenizer.encode("ba 12 <|im_end|> é")
            tokenizer.decode(ids)
            tokenizer.to_json()
            outcomes["loaded"] += 1
        except (FileFormatError, RequestError):
            outcomes["refused"] += 1
        assert time.process_time() - started < 1.0
    assert min(outcomes.values()) > 200  # the mutations must reach both sides


def test_truncated_and_flipped_texts_raise_one_typed_error(byte_level_json: str) -> None:
    rng = random.Random(31)
    for _ in range(150):
        cut = byte_level_json[: rng.randrange(len(byte_level_json))]
        with pytest.raises(FileFormatError):
            Tokenizer.from_json(cut)
    for _ in range(150):
        at = rng.randrange(len(byte_level_json))
        flipped = byte_level_json[:at] + chr(rng.randrange(1, 128)) + byte_level_json[at + 1 :]
        try:
            Tokenizer.from_json(flipped).encode("ba")
        except (FileFormatError, RequestError) as error:
            assert error.remedy


EXPONENTIAL = [
    "(a+)+$",
    "(a*)*",
    "(?:a|a)*$",
    "((a+)b?)+",
    "(a?){20}",
    "(?:.|.){22}z",
    r"(\s*\w+)*!",
    "(?=(a+)+$)",
    "([ab]+c?)+",
]
HARMLESS = [
    r"a+b*c?",
    "(?:ab)+",
    "(?i:'s|'t|'re)",
    r"[^\r\n\p{L}]?\p{L}+",
    r"\s+(?!\S)|\s+",
    r"(?=(\d{3})+(?!\d))",
    r"(?:a++)+",
    r"[(a+)+]+",
    r"\(a+\)+",
    "[]()+]*",
    "x{2,",
    "(ab|cd){2}",
]


def test_exponential_patterns_are_told_from_harmless_ones() -> None:
    assert [pattern for pattern in EXPONENTIAL if not is_exponential(pattern)] == []
    assert [pattern for pattern in HARMLESS if is_exponential(pattern)] == []
    for rule in PRETOKENIZERS:
        assert not any(is_exponential(pattern) for pattern in rule.patterns)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_exponential_patterns_are_refused_wherever_they_stand(definition: dict[str, Any], part: str) -> None:
    pattern = {"Regex": "(a+)+$"}
    steps = {
        "normalizer": {"type": "Replace", "pattern": pattern, "content": ""},
        "pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Replace", "pattern": pattern, "content": ""},
    }
    container = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[part]
    definition[part] = {"type": "Sequence", container: [steps[part]]}
    with pytest.raises(UnsafeFileError, match="exponential"):
        Tokenizer(definition)


def test_a_panic_of_the_native_library_is_a_typed_error_and_leaves_a_working_tokenizer(
    definition: dict[str, Any],
) -> None:
    # Back-references are not judged by their shape; the regex engine gives up on this one after its retry limit.
    definition["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"(?:x+x+x+x+x+x+x+)y|(x+)\1\1y"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = Tokenizer(definition)
    with pytest.raises(RequestError, match="failed on this text"):
        tokenizer.encode("x" * 400)
    with pytest.raises(RequestError, match="failed on this text"):
        tokenizer.encode_batch(["x" * 400])
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
