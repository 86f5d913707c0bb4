"""mT5 (Xue 2020, arXiv 2010.11934): T5 1.1 in a hundred languages; its logits are never scaled."""

from __future__ import annotations

from almanac.models.encoder_decoder_family import EncoderDecoderFamily
from almanac.models.family import Config, Fields
from almanac.models.shape import if_read_back
from almanac.models.t5 import COPIES, keys, read_stacks, settled, write_stacks
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.head import TiedHead


def read(fields: Fields) -> EncoderDecoder.Spec:
    """config.json -> spec."""
    spec = read_stacks(fields, gate="gated-gelu")
    return spec.with_(head=TiedHead.Spec()) if fields.flag("tie_word_embeddings", True) else spec


def write(spec: EncoderDecoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no mT5."""
    return if_read_back(write_stacks(spec), read, spec)


FAMILY = EncoderDecoderFamily("mt5", "MT5ForConditionalGeneration", read, write, keys, copies=COPIES, settled=settled)
