"""Denoising (`objectives.denoising`): an encoder-decoder that writes a text whose sentences were shuffled and whose spans are
missing; BART's objective."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.models.bart import FAMILY as BART
from almanac.models.family import Fields
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.objectives.denoising import bart_noises
from almanac.pretrain.objectives.marks import control_ids, special_ids
from almanac.pretrain.objectives.text_to_text import TextToText, pad_of
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.controls import Controls
from almanac.train.criteria.corrupted import Corruption
from almanac.train.criteria.denoising import NoisyWindows

MASK, END = "<mask>", "</s>"
STOPS = ".!?"


@dataclass(frozen=True, kw_only=True)
class Denoising(TextToText):
    """BART's two noises: sentences in random order, and spans that are one mask each."""

    @property
    def controls(self) -> Controls:
        return Controls(bos="<s>", eos=END, pad="<pad>", extra=(MASK,))

    def spec(self, tokenizer: Tokenizer, *, time: int) -> EncoderDecoder.Spec:
        (end,) = control_ids(tokenizer, [END])
        config = {
            "vocab_size": tokenizer.vocab_size, "d_model": 192, "encoder_layers": 3, "decoder_layers": 3,
            "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 768, "decoder_ffn_dim": 768,
            "max_position_embeddings": time + self.added, "decoder_start_token_id": end,
        }  # fmt: skip
        return BART.read(Fields(config))

    def corruption(self, tokenizer: Tokenizer, *, time: int) -> Corruption:
        (mask, end), special = control_ids(tokenizer, [MASK, END]), set(special_ids(tokenizer))
        pieces = [(id, (tokenizer.id_to_token(id) or "").strip("Ġ▁")) for id in range(tokenizer.vocab_size)]
        stops = tuple(id for id, piece in pieces if id not in special and piece and piece[-1] in STOPS)
        noises = bart_noises(mask_id=mask, ends=stops or (end,))
        return NoisyWindows(noises=noises, start_id=end, pad_id=pad_of(tokenizer))
