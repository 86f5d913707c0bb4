"""The unigram language model: of all ways to cut a text into pieces, the most probable one.

Kudo 2018, "Subword regularization" (arXiv 1804.10959); SentencePiece: Kudo & Richardson 2018 (arXiv 1808.06226). With p(x)
the probability of piece x, a word w is cut into

    argmax over x_1 ... x_n with x_1 + ... + x_n = w of  sum_i log p(x_i)                 (Viterbi)

The probabilities are those that maximise the likelihood of the text (EM); starting from many pieces, those whose loss costs
the least likelihood are dropped until the vocabulary has its size. A space is written "▁", at the front of the word after it.

Deviations: (1) no space is put before a text, as SentencePiece does by default: it could not be told from one that was
there. (2) Words are cut at changes between letters, digits and other characters, and at line ends, as SentencePiece's
``split_by_unicode_script`` nearly does. (3) The library gives characters that no piece of the final model covers a score in
the order of a hash table; they get it here in the order of their code points, and scores are rounded to ``DIGITS``, so that
the same text gives the same tokenizer. (4) The bytes for what the alphabet lacks are pieces of a probability too small to be
chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tokenizers.trainers import UnigramTrainer

from almanac.tokenizers.train.alphabet import Normalise, covered
from almanac.tokenizers.train.character import BYTES
from almanac.tokenizers.train.kind import UNKNOWN, Kind, Texts, backend_of, require_learned, require_room, run_trainer

SPACE = "▁"
WORDS = r"▁?[\p{L}\p{M}]+|▁?\p{N}|▁?[^▁\s\p{L}\p{M}\p{N}]+|▁+(?=▁)|▁|\s+"
DIGITS = 6  # of a score, after the point
STEP = 1e-4  # between the scores that the library gives to characters of no piece
BYTE_SCORE = -1000.0  # log-probability: below that of any piece of a text, above nothing
ASCII = tuple(map(chr, range(0x21, 0x7F)))  # must be pieces, or "<0x41>" typed out would read as the byte 41

Normalisation = Literal["nfkc", "nfc", "none"]


@dataclass(frozen=True, kw_only=True)
class Unigram(Kind):
    """A unigram language model over pieces.

    Args:
        vocab_size: tokens in all, special ones and the bytes included.
        normalisation: the Unicode form that text is brought to; SentencePiece's models use NFKC.
        coverage: share of the characters of the text that must have a piece of their own; the rarest are left out first.
        byte_fallback: write what the alphabet lacks as bytes, for which 256 tokens are taken.
    """

    normalisation: Normalisation = "nfkc"
    coverage: float = 0.9995
    byte_fallback: bool = True
    unknown: ClassVar[str | None] = UNKNOWN

    @property
    def stated_losses(self) -> tuple[str, ...]:
        """Normalisation, the character that stands for a space, and what the alphabet lacks."""
        form = self.normalisation.upper()
        return (
            *(() if self.normalisation == "none" else (f"text becomes Unicode {form}",)),
            f"{SPACE!r} becomes a space",
            *(() if self.byte_fallback else (f"characters that the vocabulary lacks become {UNKNOWN}",)),
        )

    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """As `Kind.learn`."""
        parts = _parts(self.normalisation, self.byte_fallback)
        empty = {"type": "Unigram", "unk_id": 0, "vocab": [[UNKNOWN, 0.0]], "byte_fallback": False}
        normalise = _normaliser({**parts, "model": empty})
        alphabet, stream = covered(texts, normalise, self.coverage)
        fixed = [UNKNOWN, *(BYTES if self.byte_fallback else ())]
        pieces = sorted({SPACE, *(ASCII if self.byte_fallback else ()), *(set(alphabet) - {" "})})
        require_room(room, len(fixed) + len(pieces), "the alphabet of the corpus")
        trainer = UnigramTrainer(
            vocab_size=room - len(fixed) + 1,
            special_tokens=[UNKNOWN],
            unk_token=UNKNOWN,
            initial_alphabet=pieces,
            show_progress=False,
        )
        model = run_trainer({**parts, "model": empty}, trainer, stream)
        learned = settled([(piece, score) for piece, score in model["vocab"][1:]])
        require_learned(len(fixed) + len(learned), room)
        vocab = [[UNKNOWN, 0.0], *([byte, BYTE_SCORE] for byte in fixed[1:]), *([*pair] for pair in learned)]
        return {**parts, "model": {**empty, "byte_fallback": self.byte_fallback, "vocab": vocab}}


def settled(learned: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces by falling score, with what a hash table decided decided by code point."""
    floor = min(score for _, score in learned)
    singles = [(piece, score) for piece, score in learned if len(piece) == 1]
    low = [(piece, score) for piece, score in singles if score < floor + STEP * len(singles)]
    scores = sorted((score for _, score in low), reverse=True)
    moved = dict(zip(sorted(piece for piece, _ in low), scores, strict=True))
    rounded = [(piece, round(moved.get(piece, score), DIGITS)) for piece, score in learned]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))


def _parts(normalisation: Normalisation, byte_fallback: bool) -> dict[str, Any]:
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if byte_fallback else []
    steps.append({"type": "Fuse"})
    return {
        "normalizer": None if normalisation == "none" else {"type": normalisation.upper()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace, words]},
        "decoder": {"type": "Sequence", "decoders": steps},
    }


def _normaliser(parts: dict[str, Any]) -> Normalise:
    normalizer = backend_of(parts).normalizer
    return str if normalizer is None else normalizer.normalize_str
