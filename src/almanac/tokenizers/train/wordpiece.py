"""WordPiece: words are cut into the longest pieces that the vocabulary has, from the left; pieces inside a word carry ``##``.

Schuster & Nakajima 2012, "Japanese and Korean voice search"; as BERT uses it: Devlin et al. 2018 (arXiv 1810.04805). The
trainer of the library grows pieces as BPE does, by the count of a pair; the original takes the pair that most raises the
likelihood of a unigram model. Encoding is the published one: with s the rest of a word, the next piece is the longest
prefix of s in the vocabulary, and a word of which some rest has no such prefix is unknown as a whole.

Deviation: the library numbers pieces like ``##x`` in the order of a hash table, which differs from run to run and decides
ties. Here they are numbered by code point before training starts, so that the same text gives the same tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenizers.trainers import WordLevelTrainer, WordPieceTrainer

from almanac.tokenizers.train.alphabet import covered
from almanac.tokenizers.train.kind import Kind, Texts, backend_of, require_learned, require_room, run_trainer

UNKNOWN = "[UNK]"
PREFIX = "##"
MAX_WORD = 100  # characters; a longer word is unknown (BERT's limit)
MIN_COUNT = 2


@dataclass(frozen=True, kw_only=True)
class WordPiece(Kind):
    """WordPiece with BERT's rules for cutting text.

    Args:
        vocab_size: tokens in all, special ones included.
        lowercase: lower capital letters and drop accents, as the "uncased" models do.
        coverage: share of the characters of the text that must be writable; the rarest are left out first.
    """

    lowercase: bool = True
    coverage: float = 0.9995
    unknown: ClassVar[str | None] = UNKNOWN

    @property
    def stated_losses(self) -> tuple[str, ...]:
        """BERT's normalisation, white space, and words that cannot be written."""
        lowered = ("capital letters become small and accents are dropped",) if self.lowercase else ()
        return (
            *lowered,
            "control characters are dropped, every run of white space becomes one space, and spaces are put around "
            "punctuation and Chinese characters",
            f"words with a character that the vocabulary lacks, or longer than {MAX_WORD} characters, become {UNKNOWN}",
        )

    def learn(self, texts: Texts, room: int) -> dict[str, Any]:
        """As `Kind.learn`."""
        parts: dict[str, Any] = {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": self.lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": False},
        }
        whole = {"type": "WordLevel", "vocab": {}, "unk_token": UNKNOWN}
        normalizer = backend_of({**parts, "model": whole}).normalizer
        _, stream = covered(texts, normalizer.normalize_str, self.coverage)
        # Every distinct word, by the library: their characters are the alphabet, at the start of a word and inside one.
        words = run_trainer(
            {**parts, "model": whole}, WordLevelTrainer(vocab_size=1 << 40, show_progress=False), stream
        )
        starts = {word[0] for word in words["vocab"]}
        inside = {PREFIX + character for word in words["vocab"] for character in word[1:]}
        alphabet = [UNKNOWN, *sorted(starts), *sorted(inside)]
        require_room(room, len(alphabet), "the alphabet of the corpus, at the start of words and inside them,")
        empty = {
            "type": "WordPiece",
            "vocab": {},
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": MAX_WORD,
        }
        trainer = WordPieceTrainer(
            vocab_size=room, min_frequency=MIN_COUNT, special_tokens=alphabet, show_progress=False
        )  # fmt: skip
        model = run_trainer({**parts, "model": empty}, trainer, stream)
        require_learned(len(model["vocab"]), room)
        return {**parts, "model": {**empty, "vocab": model["vocab"]}}
