"""Tokenizers in GGUF metadata: read one, write one.

Keys as in the GGUF specification (ggml docs/gguf.md), all under `tokenizer.ggml.`: `model` ("gpt2": byte-level BPE with
merges; "llama": SentencePiece BPE with scores), `pre`, `tokens`, `token_type` (1 normal, 2 unknown, 3 control, 4
user-defined, 5 unused, 6 byte), `scores`, `merges`, `*_token_id`, `add_bos_token`, `add_eos_token`,
`add_space_prefix`; and `tokenizer.chat_template`. llama.cpp is the reference for what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.tokenizers.pretokenizers import find_pretokenizer, name_pretokenizer
from almanac.tokenizers.sentencepiece_bpe import merges_from_scores, scores_from_merges
from almanac.tokenizers.special_tokens import END_OF_TURN_TEXTS
from almanac.tokenizers.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_ENDS = ("eot", "eom")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_REMEDY = "Fetch the file again, or convert the model again from its original folder."


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """The tokens of a GGUF file by id, with their types, and ids by role."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]  # role -> id, for bos eos unk pad eot eom

    def added_tokens(self) -> list[dict[str, Any]]:
        """The 'added_tokens' of a tokenizer.json: what is found in a text before anything else."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        special = {_CONTROL: True, _UNKNOWN: True, _USER_DEFINED: False}
        return [
            {"id": id, "content": token, **flags, "special": special[kind]}
            for id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in special
        ]


def from_gguf_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that GGUF metadata describe.

    Args:
        metadata: key -> value; arrays as any sequence.

    Raises:
        FileFormatError: keys are missing, or contradict one another.
        UnsupportedError: a kind of tokenizer or pre-tokenizer that is not read here.
    """
    model = metadata.get("tokenizer.ggml.model")
    readers: dict[str, Callable[..., tuple[dict[str, Any], bool]]] = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(model, str) or model not in readers:
        raise UnsupportedError(
            f"GGUF tokenizer model {model!r} is not read here, only {', '.join(readers)}",
            remedy="Load the model from its original folder with tokenizer.json.",
        )
    vocabulary = _read_vocabulary(metadata, defaults={"bos": 1, "eos": 2, "unk": 0} if model == "llama" else {})
    parts, add_bos = readers[model](metadata, vocabulary)
    definition = {"version": "1.0", "added_tokens": vocabulary.added_tokens(), "post_processor": None, **parts}
    tokens, ids = vocabulary.tokens, vocabulary.ids
    config: dict[str, Any] = {f"{role}_token": tokens[ids[role]] for role in _ROLES if role in ids}
    config["stop_tokens"] = [tokens[ids[role]] for role in _ENDS if role in ids]
    config["chat_template"] = metadata.get("tokenizer.chat_template")
    for role, default in (("bos", add_bos), ("eos", False)):
        config[f"add_{role}_token"] = bool(metadata.get(f"tokenizer.ggml.add_{role}_token", default))
        if config[f"add_{role}_token"] and role not in ids:
            raise FileFormatError(f"The file asks for a {role} token but names none", remedy=_REMEDY)
    return Tokenizer(definition, config=config)


def to_gguf_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """GGUF metadata from which `from_gguf_metadata` (and llama.cpp) build a tokenizer with the same ids.

    Raises:
        UnsupportedError: GGUF, or what of it is written here, cannot express this tokenizer.
    """
    definition = json.loads(tokenizer.to_json())
    model = definition["model"]
    if model["type"] != "BPE" or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise UnsupportedError(
            "Only byte-level and SentencePiece BPE tokenizers are written to GGUF here",
            remedy="Keep the model as a folder with tokenizer.json.",
        )
    tokens = [tokenizer.id_to_token(id) or f"[PAD{id}]" for id in range(tokenizer.vocab_size)]
    added = {token["id"]: token["special"] for token in definition["added_tokens"]}
    present = {*model["vocab"].values(), *added}
    types = [_UNUSED if id not in present else _NORMAL for id in range(len(tokens))]
    for id, special in added.items():
        types[id] = _CONTROL if special else _USER_DEFINED
    writer = _write_sentencepiece if model["byte_fallback"] else _write_byte_level
    parts = writer(definition, tokens, types)
    special = tokenizer.special
    ids = {"bos": special.bos, "eos": special.eos, "unk": special.unk, "pad": special.pad}
    ends = tokenizer.encode("", add_special_tokens=True)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in parts.items()}
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    metadata |= {f"tokenizer.ggml.{_ROLES[role]}_token_id": id for role, id in ids.items() if id is not None}
    metadata["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
    metadata["tokenizer.ggml.add_eos_token"] = len(ends) > int(tokenizer.add_bos) and ends[-1] == special.eos
    undeclared = sorted(id for id in special.stop - {special.eos} if tokens[id] not in END_OF_TURN_TEXTS)
    metadata |= {f"tokenizer.ggml.{end}_token_id": id for end, id in zip(_ENDS, undeclared, strict=False)}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _read_vocabulary(metadata: Mapping[str, Any], *, defaults: Mapping[str, int]) -> _Vocabulary:
    tokens = _strings(metadata, "tokens")
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        raise FileFormatError("Two tokens of the vocabulary are the same", remedy=_REMEDY)
    ids = dict(defaults)
    for role, key in {**_ROLES, **{end: end for end in _ENDS}}.items():
        if (id := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            ids[role] = _integer(id, f"{key}_token_id")
    outside = {role: id for role, id in ids.items() if not 0 <= id < len(tokens)}
    if outside:
        raise FileFormatError(f"Special ids {outside} are outside the vocabulary of {len(tokens):,}", remedy=_REMEDY)
    if "tokenizer.ggml.token_type" in metadata:
        types = [_integer(kind, "token_type") for kind in _array(metadata, "token_type")]
    else:  # very old files: only the roles tell
        types = [_CONTROL if id in set(ids.values()) else _NORMAL for id in range(len(tokens))]
    if len(types) != len(tokens):
        raise FileFormatError(f"{len(types):,} token types for {len(tokens):,} tokens", remedy=_REMEDY)
    for id, token in enumerate(tokens):
        if token in END_OF_TURN_TEXTS and types[id] == _NORMAL:
            types[id] = _CONTROL  # converters forget to mark these; llama.cpp corrects them likewise
    return _Vocabulary(tokens=tokens, types=types, ids=ids)


def _byte_level(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    rule = find_pretokenizer(metadata.get("tokenizer.ggml.pre"))
    vocab = {token: id for id, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in _strings(metadata, "merges"):
        # A space inside a token cannot occur in the byte alphabet, so the first one (past the start) separates.
        at = merge.find(" ", 1)
        pair = (merge[:at], merge[at + 1 :])
        if at < 0 or pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise FileFormatError(f"The merge {merge!r} does not join two tokens into a third", remedy=_REMEDY)
        merges.append(pair)
    model = _bpe(vocab, merges, ignore_merges=rule.ignore_merges)
    parts = {"normalizer": rule.normalizer(), "pre_tokenizer": rule.pre_tokenizer(), "model": model}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {**parts, "decoder": decoder}, rule.add_bos


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    try:
        scores = [float(score) for score in _array(metadata, "scores")]
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"tokenizer.ggml.scores holds {error}", remedy=_REMEDY) from error
    if len(scores) != len(vocabulary.tokens):
        raise FileFormatError(f"{len(scores):,} scores for {len(vocabulary.tokens):,} tokens", remedy=_REMEDY)
    vocab = {token: id for id, token in enumerate(vocabulary.tokens)}
    normal = {
        token: score
        for token, kind, score in zip(vocabulary.tokens, vocabulary.types, scores, strict=True)
        if kind == _NORMAL
    }
    fallback = _BYTE in vocabulary.types
    unknown = vocabulary.tokens[vocabulary.ids["unk"]]
    model = _bpe(vocab, merges_from_scores(normal, vocab), byte_fallback=fallback, unk_token=unknown, fuse_unk=True)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    parts = {"normalizer": _space_normalizer(prefix), "pre_tokenizer": None, "model": model}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {**parts, "decoder": {"type": "Sequence", "decoders": decoders}}, True


def _bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], **options: Any) -> dict[str, Any]:
    defaults = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "dropout": None}
    return {"type": "BPE", **defaults, **options, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _space_normalizer(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _write_byte_level(definition: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    merges = [" ".join(pair) for pair in _pairs(definition)]
    return {"model": "gpt2", "pre": name_pretokenizer(definition).names[0], "merges": merges}


def _write_sentencepiece(definition: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Parts for "llama"; marks byte tokens in `types`."""
    normalizer = definition["normalizer"]
    prefixes = [flag for flag in (True, False) if normalizer == _space_normalizer(flag)]
    merges = _pairs(definition)
    scores = scores_from_merges(merges)
    floor = -float(len(merges)) - 1.0  # pieces that no merge builds: single characters
    for id, token in enumerate(tokens):
        if types[id] == _NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[id] = _BYTE
        elif types[id] == _CONTROL and token == definition["model"]["unk_token"]:
            types[id] = _UNKNOWN
    normal = {token: scores.get(token, floor) for id, token in enumerate(tokens) if types[id] == _NORMAL}
    rebuilt = merges_from_scores(normal, {token: id for id, token in enumerate(tokens)})
    if not prefixes or definition["pre_tokenizer"] is not None or rebuilt != merges:
        raise UnsupportedError(
            "This SentencePiece-style tokenizer cuts or merges text in a way that scores alone cannot state",
            remedy="Keep the model as a folder with tokenizer.json.",
        )
    values = [normal.get(token, 0.0) for token in tokens]
    return {"model": "llama", "pre": "default", "scores": values, "add_space_prefix": prefixes[0]}


def _pairs(definition: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in definition["model"]["merges"]
    ]


def _array(metadata: Mapping[str, Any], key: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return list(values)
    raise FileFormatError(f"The file has no array tokenizer.ggml.{key}", remedy=_REMEDY)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = _array(metadata, key)
    if not all(isinstance(value, str) for value in values):
        raise FileFormatError(f"tokenizer.ggml.{key} does not hold texts", remedy=_REMEDY)
    return values


def _integer(value: Any, key: str) -> int:
    try:
        return index(value)
    except TypeError as error:
        raise FileFormatError(f"tokenizer.ggml.{key} holds {value!r}, which is no integer", remedy=_REMEDY) from error
