"""What span corruption, BART's noises and the mixture of denoisers share: an encoder-decoder that reads a spoilt text and
writes what is missing, or all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from almanac.core.errors import RequestError
from almanac.core.spec import Spec
from almanac.generate.sampling import sampling
from almanac.language_model.model import LanguageModel
from almanac.models.family import Fields
from almanac.models.t5 import FAMILY as T5
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.pretrain.objectives.marks import control_ids, shown_ids
from almanac.pretrain.objectives.objective import SEED, Objective, Shown, require_room
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import Controls
from almanac.train.criteria.corrupted import Place
from almanac.train.criteria.text_to_text import TextToText as TextToTextCriterion
from almanac.train.criterion import Criterion

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""What stands for a missing span, under T5's own names."""
SPANS = Controls(eos="</s>", pad="<pad>", extra=SENTINELS)


@dataclass(frozen=True, kw_only=True)
class TextToText(Objective):
    """Subclasses say what becomes of a window."""

    @property
    def controls(self) -> Controls:
        return SPANS

    @property
    def added(self) -> int:
        """Tokens that what is read or written may have beside those of a window: the first one, marks, a mode."""
        return 4

    def spec(self, tokenizer: Tokenizer, *, time: int) -> EncoderDecoder.Spec:
        return default_t5(tokenizer, length=time + self.added)

    def shaped(self, given: Spec) -> Spec:
        if not isinstance(given, EncoderDecoder.Spec):
            raise RequestError(
                f"{given.kind()} is no encoder-decoder", remedy="Name an encoder-decoder, or another objective."
            )
        return given

    def require(self, spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
        assert isinstance(spec, EncoderDecoder.Spec)
        needed = time + self.added
        lengths = [(spec.source_length, needed), (spec.context_length, needed)]
        require_room(spec.embed.vocab_size, tokenizer, lengths=lengths)
        self.corruption(tokenizer, time=time)

    @property
    def criterion(self) -> Criterion:
        return TextToTextCriterion()

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """A spoilt piece of held-out text, an arrow, and what the model writes."""
        assert isinstance(model, LanguageModel)
        corruption = self.corruption(tokenizer, time=shown.rows.tokens.shape[1])
        assert corruption is not None
        batch: Any = corruption.batch(shown.rows, [Place(SEED, shown.number, 0)])
        source = batch.source[0][batch.source_segments[0] >= 0].tolist()
        events = model.stream(source, max_tokens=shown.max_tokens, sampling=sampling(temperature=0.0, seed=shown.seed))
        written = [event.token for event in events if event.token is not None]
        return f"{shown_ids(tokenizer, source)} → {shown_ids(tokenizer, written)}"


def default_t5(tokenizer: Tokenizer, *, length: int) -> EncoderDecoder.Spec:
    """A small T5 with gated channels (2.5 million parameters beside its vocabulary)."""
    pad = tokenizer.special.pad
    config = {
        "vocab_size": tokenizer.vocab_size, "d_model": 192, "d_kv": 32, "num_heads": 6, "d_ff": 384,
        "feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 3, "n_positions": length,
        "decoder_start_token_id": 0 if pad is None else pad, "tie_word_embeddings": True,
    }  # fmt: skip
    return T5.read(Fields(config))


def pad_of(tokenizer: Tokenizer) -> int:
    """The padding id. Raises RequestError for a tokenizer without one."""
    if tokenizer.special.pad is None:
        raise RequestError(
            "The tokenizer has no padding token, which this objective needs",
            remedy="Leave out the tokenizer, and one is trained with it.",
        )
    return tokenizer.special.pad


def sentinels(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that stand for missing spans. Raises RequestError for a tokenizer without them."""
    return control_ids(tokenizer, SENTINELS)


def with_marks(*texts: str) -> Controls:
    """The special tokens of span corruption, and more."""
    return replace(SPANS, extra=(*SENTINELS, *texts))


def require_marks(wanted: int, time: int) -> None:
    """Raises RequestError where a window could have more missing spans than there are marks."""
    if wanted > len(SENTINELS):
        raise RequestError(
            f"Windows of {time} tokens may have {wanted} marks of missing spans, and there are {len(SENTINELS)}",
            remedy="Give shorter windows.",
        )
