"""umT5 (Chung 2023, arXiv 2304.09151): mT5 with a table of relative positions in every layer."""

from __future__ import annotations

from almanac.models.encoder_decoder_family import EncoderDecoderFamily
from almanac.models.family import Config, Fields
from almanac.models.shape import if_read_back
from almanac.models.t5 import COPIES, keys, read_stacks, settled, write_stacks
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.head import TiedHead


def read(fields: Fields) -> EncoderDecoder.Spec:
    """config.json -> spec."""
    spec = read_stacks(fields, gate="gated-gelu", one_table=False)
    tied = TiedHead.Spec(scale=spec.embed.hidden**-0.5)
    return spec.with_(head=tied) if fields.flag("tie_word_embeddings", True) else spec


def write(spec: EncoderDecoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no umT5."""
    return if_read_back(write_stacks(spec), read, spec)


FAMILY = EncoderDecoderFamily("umt5", "UMT5ForConditionalGeneration", read, write, keys, copies=COPIES, settled=settled)
