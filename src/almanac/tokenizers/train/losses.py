"""What a tokenizer loses: text is encoded, decoded and compared with what it was.

Checked when a tokenizer is trained, on text that it has not seen and on ``PROBES``, so that no loss is silent: one from a
tokenizer that claims to be lossless is an error, one from another is counted and told, by its cause.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import tokenizers

from almanac.core.errors import ParityError
from almanac.tokenizers.tokenizer import Tokenizer

PROBES = {
    "capital letters": "The Quick BROWN Fox",
    "accents": "déjà vu, Zürich, naïve",
    "runs of spaces": "  two  before,   three inside, one after ",
    "tabs and line ends": "a\tb\nc\r\nd\re\n\n\nf",
    "control characters": "\x00\x01\x07\x08\x0b\x0c\x1b[31m\x7f\x85\x9f",
    "lone combining marks": "\u0301 \u0308x\u20dd",
    "decomposed letters": "e\u0301a\u030a vs. éå",
    "compatibility characters": "ﬁ ² ½ Ⅷ ①ａ\u00a0\u2003\u3000",
    "emoji with joiners": "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇫🇷 🏴\U000e0067\U000e0062\U000e007f ☺\ufe0f",
    "right to left": "שלום \u200fعربى\u200e",
    "scripts": "Привет, 你好世界, こんにちは, 안녕하세요, नमस्ते, สวัสดี",
    "private use and noncharacters": "\ue000\U000f0000\uffff\U0010ffff\ufdd0\ufeff",
    "the SentencePiece space": "a▁b ▁▁",
    "replacement character": "\ufffd\ufffd",
    "code": "if (x[i] != 0) { return f(x)->y; }  // \\u0041 <0x41> &amp;",
    "spelled control tokens": "<|im_start|><s></s>[MASK]<unk>[UNK]",
}
"""Texts that break tokenizers, by what is hard about them."""

MAX_EXAMPLES = 3
_AROUND = 16  # characters shown on each side of a difference


@dataclass
class Losses:
    """What was lost of how much.

    Attributes:
        texts, characters: that were tried.
        exact: texts given back as they were.
        tokens, unknown: ids, and how many of them were the unknown token.
        by_cause: texts that changed, by the first cause that explains it: ``normalisation`` (the text was changed before
            it was cut), ``unknown`` (a part became the unknown token), ``spacing`` (anything else; white space, as a rule).
        examples: (before, after) around the first difference.
        probes: names of the ``PROBES`` that were not given back as they were.
    """

    texts: int = 0
    characters: int = 0
    exact: int = 0
    tokens: int = 0
    unknown: int = 0
    by_cause: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)

    @property
    def exact_share(self) -> float:
        """Share of the texts given back as they were; 1 where none were tried."""
        return self.exact / self.texts if self.texts else 1.0

    @property
    def unknown_share(self) -> float:
        """Share of the ids that were the unknown token."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "exact_share": self.exact_share, "unknown_share": self.unknown_share}


def losses(tokenizer: Tokenizer, texts: Iterable[str]) -> Losses:
    """Encodes and decodes each of ``texts`` and the probes; control tokens spelled out in them are read as plain text."""
    found = Losses()
    normalise = _normaliser(tokenizer)
    for text in texts:
        ids, again = _there_and_back(tokenizer, text)
        unknown = sum(id == tokenizer.special.unk for id in ids)
        found.texts += 1
        found.characters += len(text)
        found.tokens += len(ids)
        found.unknown += unknown
        if again == text:
            found.exact += 1
            continue
        changed = normalise is not None and normalise.normalize_str(text) != text
        cause = "normalisation" if changed else "unknown" if unknown else "spacing"
        found.by_cause[cause] = found.by_cause.get(cause, 0) + 1
        if len(found.examples) < MAX_EXAMPLES:
            found.examples.append(_difference(text, again))
    found.probes = [name for name, text in PROBES.items() if _there_and_back(tokenizer, text)[1] != text]
    return found


def require_lossless(found: Losses) -> None:
    """Raises ParityError if anything was lost."""
    if found.exact < found.texts or found.probes:
        where = f"of {found.texts - found.exact} held-out texts" if found.examples else f"of {', '.join(found.probes)}"
        example = f", for instance {found.examples[0][0]!r} became {found.examples[0][1]!r}" if found.examples else ""
        raise ParityError(
            f"This kind of tokenizer promises to give every text back, and lost something {where}{example}",
            remedy="This is a fault of ours: please report it with the text.",
        )


def _there_and_back(tokenizer: Tokenizer, text: str) -> tuple[list[int], str]:
    ids = tokenizer.encode(text, add_special_tokens=False, allow_special=False)
    return ids, tokenizer.decode(ids, skip_special_tokens=False)


def _normaliser(tokenizer: Tokenizer) -> tokenizers.normalizers.Normalizer | None:
    definition = json.loads(tokenizer.to_json())
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    parts = {**definition, "model": empty, "added_tokens": [], "post_processor": None, "decoder": None}
    return tokenizers.Tokenizer.from_str(json.dumps(parts)).normalizer


def _difference(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    places = zip(before, after, strict=False)
    at = next((index for index, (a, b) in enumerate(places) if a != b), min(len(before), len(after)))
    window = slice(max(at - _AROUND, 0), at + _AROUND)
    return before[window], after[window]
