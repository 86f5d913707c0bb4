r"""Pre-tokenizers that GGUF files name by a word: which patterns cut a text before byte-pair merges apply.

A GGUF file holds tokens and merges but not the cutting rule; `tokenizer.ggml.pre` names it. Each entry below is the
rule as its publisher's tokenizer.json states it; llama.cpp (src/llama-vocab.cpp) ties the names to them. The patterns
apply one after the other, each cutting out its matches from the pieces that the one before left.

    gpt-2       Radford et al., 2019: contractions, letters, numbers, other, whitespace
    smollm      every digit alone, then gpt-2 (StarCoder, SmolLM)
    llama-bpe   numbers in groups of three, contractions in any case (Llama 3, after tiktoken's cl100k)
    qwen2       as llama-bpe but every digit alone, on NFC-normalised text
    tekken      letters split where lower case turns to upper (Mistral Nemo); gpt-4o: the same with contractions

Deviation: llama.cpp does not normalise for qwen2; the model was trained on NFC text, so we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import UnsupportedError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"


@dataclass(frozen=True, kw_only=True)
class Pretokenizer:
    """One cutting rule.

    Args:
        names: what GGUF files call it; the first is the one we write.
        patterns: regular expressions, applied in order.
        ignore_merges: a piece that is itself in the vocabulary is one token, whatever the merges say.
        add_bos: whether a bos token goes in front when the file does not say.
        nfc: whether text is normalised to NFC first.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """The 'pre_tokenizer' of a tokenizer.json."""
        own_cut = self.patterns[-1] == GPT2  # the byte-level step brings this pattern along
        steps = [_split(pattern) for pattern in (self.patterns[:-1] if own_cut else self.patterns)]
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_cut})
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}

    def normalizer(self) -> dict[str, Any] | None:
        """The 'normalizer' of a tokenizer.json."""
        return {"type": "NFC"} if self.nfc else None


def _split(pattern: str) -> dict[str, Any]:
    if pattern == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_LLAMA3 = "|".join([_CONTRACTION, _WORDS, r"\p{N}{1,3}", _OTHER, _SPACES])
_QWEN2 = "|".join([_CONTRACTION, _WORDS, DIGIT, _OTHER, _SPACES])
_CASED = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = "|".join([f"{_HEAD}{_UPPER}*{_LOWER}+", f"{_HEAD}{_UPPER}+{_LOWER}*", DIGIT, _CASED])
_GPT4O = "|".join(
    [f"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?", f"{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?", r"\p{N}{1,3}", _CASED]
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"""
)

PRETOKENIZERS = (
    Pretokenizer(names=("gpt-2", "phi-2"), patterns=(GPT2,)),
    Pretokenizer(names=("smollm", "starcoder", "refact"), patterns=(DIGIT, GPT2)),
    Pretokenizer(
        names=("llama-bpe", "llama3", "llama-v3", "falcon3"), patterns=(_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    Pretokenizer(names=("dbrx", "smaug-bpe"), patterns=(_LLAMA3,)),
    Pretokenizer(names=("qwen2",), patterns=(_QWEN2,), nfc=True),
    Pretokenizer(names=("tekken",), patterns=(_TEKKEN,), ignore_merges=True, add_bos=True),
    Pretokenizer(names=("gpt-4o", "llama4"), patterns=(_GPT4O,)),
    Pretokenizer(names=("deepseek-v3",), patterns=(r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    Pretokenizer(
        names=("deepseek-coder",), patterns=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGIT)
    ),
    Pretokenizer(names=("default",), patterns=(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)

KNOWN_NAMES = tuple(name for entry in PRETOKENIZERS for name in entry.names)

# Other spellings of the same rule, met in published files: possessive quantifiers and spelled-out case.
_SPELLINGS = (
    ("?+", "?"),
    ("++", "+"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTION),
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTION),
)


def find_pretokenizer(name: Any) -> Pretokenizer:
    """The rule called `name`.

    Raises:
        UnsupportedError: no rule of that name is known here; guessing one would give wrong ids.
    """
    for entry in PRETOKENIZERS:
        if name in entry.names:
            return entry
    raise UnsupportedError(
        f"The pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known here, only {', '.join(KNOWN_NAMES)}",
        remedy="Load the model from its original folder with tokenizer.json, which states the rule.",
    )


def name_pretokenizer(definition: Mapping[str, Any]) -> Pretokenizer:
    """The rule that a byte-level tokenizer.json states.

    Raises:
        UnsupportedError: GGUF has no name for it that is known here.
    """
    patterns = _read_patterns(definition.get("pre_tokenizer"))
    nfc = _read_nfc(definition.get("normalizer"))
    ignore_merges = bool(definition["model"].get("ignore_merges"))
    for entry in PRETOKENIZERS:
        if (entry.patterns, entry.nfc, entry.ignore_merges) == (patterns, nfc, ignore_merges):
            return entry
    raise UnsupportedError(
        "GGUF has no name known here for the way this tokenizer cuts text "
        f"(patterns {patterns}, NFC {nfc}, ignore_merges {ignore_merges})",
        remedy="Keep the model as a folder with tokenizer.json.",
    )


def _read_nfc(normalizer: Any) -> bool | None:
    """Whether the normalizer is NFC (True), nothing (False), or something else (None)."""
    if normalizer is None:
        return False
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    kinds = [step.get("type") for step in steps]
    return {(): False, ("NFC",): True}.get(tuple(kinds))


def _read_patterns(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The patterns of a 'pre_tokenizer' that ends in a byte-level step, or None if it is built otherwise."""
    if not isinstance(pre_tokenizer, Mapping):
        return None
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    patterns = [_read_split(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True):
        patterns.append(GPT2)
    return None if None in patterns else tuple(pattern for pattern in patterns if pattern is not None)


def _read_split(step: Mapping[str, Any]) -> str | None:
    if step.get("type") == "Digits":
        return DIGIT if step.get("individual_digits") else r"\p{N}+"
    pattern = (step.get("pattern") or {}).get("Regex") if step.get("type") == "Split" else None
    kept = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
    if pattern is None or not kept:
        return None
    for spelling, canonical in _SPELLINGS:
        pattern = pattern.replace(spelling, canonical)
    return pattern
