"""Next-token prediction (`objectives.next_token`): a decoder that goes on from what it reads; the usual objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from almanac.core.errors import RequestError
from almanac.core.spec import Spec
from almanac.generate.sampling import sampling
from almanac.language_model.model import LanguageModel
from almanac.models.family import Fields, family_for
from almanac.nn.stack import Decoder
from almanac.pretrain.objectives.objective import Objective, Shown, require_room
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.criterion import Criterion
from almanac.train.criterion import NextToken as NextTokenCriterion

TEMPERATURE = 0.8  # of the samples


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Every token but a document's first is to be told from those before it."""

    @property
    def covers_text(self) -> bool:
        return True

    @property
    def added(self) -> int:
        """Tokens that a row has beside those of its window."""
        return 0

    def spec(self, tokenizer: Tokenizer, *, time: int) -> Decoder.Spec:
        return default_spec(tokenizer.vocab_size, time=time + self.added)

    def shaped(self, given: Spec) -> Spec:
        if not isinstance(given, Decoder.Spec):
            raise RequestError(f"{given.kind()} is no decoder", remedy="Name a decoder, or another objective.")
        return given

    def require(self, spec: Spec, tokenizer: Tokenizer, *, time: int) -> None:
        assert isinstance(spec, Decoder.Spec)
        require_room(spec.embed.vocab_size, tokenizer, lengths=[(spec.context_length, time + self.added)])

    @property
    def criterion(self) -> Criterion:
        return NextTokenCriterion()

    def sample(self, model: LanguageModel | nn.Module, tokenizer: Tokenizer, shown: Shown) -> str:
        """What the model writes after the beginning of a document."""
        assert isinstance(model, LanguageModel)
        begin = [tokenizer.special.bos] if tokenizer.special.bos is not None else shown.rows.tokens[0, :1].tolist()
        most = min(shown.max_tokens, model.network.context_length - len(begin))
        return model.generate(begin, max_tokens=most, sampling=sampling(temperature=TEMPERATURE, seed=shown.seed))


def default_spec(vocab_size: int, *, time: int) -> Decoder.Spec:
    """A small Llama (1.8 million parameters beside its vocabulary) that can be saved for transformers and llama.cpp."""
    config = {
        "vocab_size": vocab_size, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": time, "tie_word_embeddings": True,
        "rope_theta": 10_000.0,
    }  # fmt: skip
    spec = family_for("llama").read(Fields(config))
    assert isinstance(spec, Decoder.Spec)
    return spec
