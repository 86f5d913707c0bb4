"""mBART (Liu 2020, arXiv 2001.08210): BART in many languages, with norms before the sublayers and one after each stack.

Texts begin with the code of their language; where the configuration names no such token, with the end of a text, as
translations of the first models do.
"""

from __future__ import annotations

from almanac.models.bart import COPIES, keys, read_stacks, settled, write_stacks
from almanac.models.encoder_decoder_family import EncoderDecoderFamily
from almanac.models.family import Config, Fields
from almanac.models.shape import if_read_back
from almanac.nn.encoder_decoder import EncoderDecoder


def read(fields: Fields) -> EncoderDecoder.Spec:
    """config.json -> spec."""
    return read_stacks(fields, prenorm=True, start=2)


def write(spec: EncoderDecoder.Spec) -> Config | None:
    """Spec -> config.json, or None when it is no mBART."""
    return if_read_back(write_stacks(spec), read, spec)


FAMILY = EncoderDecoderFamily(
    "mbart", "MBartForConditionalGeneration", read, write, keys, copies=COPIES, settled=settled
)
