"""BitNet's packed file (Ma 2024, arXiv 2402.17764; Ma 2025, arXiv 2504.12285): four ternary digits to the byte, one scale.

    byte_rk = sum over j < 4 of (digit_{r + j R, k} + 1) · 4^j,   R = rows / 4

so that byte row r holds the rows r, r + R, r + 2R and r + 3R. ``linear_class`` tells what ``weight_scale`` is: a dense weight
is scale · digit of an ``autobitlinear`` (whose bias is scaled too), digit / scale of a ``bitlinear``. Where its
``quantization_mode`` is online, files hold the float weights that training moves, and a dense weight is what every call
rounds them to: s · clip(round(W / s), -1, 1), s = mean |W|. The published models also round what enters each map to 8 bits;
we deviate in leaving that in float.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.family import Fields
from almanac.models.packing import Made, Packing

PER_BYTE = 4
SCALE = "weight_scale"
SMALLEST = 1e-5  # of a mean magnitude, theirs
IN_LAYER, MAP = re.compile(r"\.\d+\."), re.compile(r"_proj\.weight$")
KINDS, MODES = ("bitlinear", "autobitlinear"), ("offline", "online")


def read(settings: Fields, source: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The dense tensors; every map comes with its scale, or, online, is rounded by its own.

    Raises UnsupportedError for maps with a norm of their own, FileFormatError for tensors that are not of this form.
    """
    kind, mode = settings.text("linear_class", KINDS[0]), settings.text("quantization_mode", MODES[0])
    if kind not in KINDS or mode not in MODES or settings.flag("use_rms_norm", False):
        raise UnsupportedError(
            f"{settings.origin}: {quoted(kind)}, {quoted(mode)}, or maps with a norm of their own",
            remedy=f"Read are {' and '.join(KINDS)}, {' and '.join(MODES)}, without such norms.",
        )
    if mode == "online" and kind == "autobitlinear":
        return Made({name: _online(name, source) for name in source})
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in source:
        owner, _, leaf = name.rpartition(".")
        scale = f"{owner}.{SCALE}"
        if leaf == SCALE and f"{owner}.weight" in source:
            continue
        if scale in source and leaf == "weight":
            makers[name] = partial(_scaled, name, source, divides=kind == "bitlinear")
        elif scale in source and leaf == "bias" and kind == "autobitlinear":
            makers[name] = partial(_product, name, scale, source)
        else:
            makers[name] = partial(_plain, name, source)
    return Made(makers)


def digits(packed: Tensor) -> Tensor:
    """uint8 [rows / 4, in] -> int8 [rows, in] of -1, 0 and 1. Raises FileFormatError for another digit."""
    codes = torch.cat([packed >> (2 * place) & 3 for place in range(PER_BYTE)])
    if codes.numel() and int(codes.max()) > 2:
        raise FileFormatError("A ternary digit that is none of three", remedy="Fetch the model again.")
    return codes.to(torch.int8) - 1


def rounded(weight: Tensor) -> Tensor:
    """A float weight -> the ternary one that an online map computes with, float32."""
    wide = weight.float()
    each = 1.0 / wide.abs().mean().clamp(min=SMALLEST)
    return (wide * each).round().clamp(-1, 1) / each


def _scaled(name: str, source: Mapping[str, Tensor], *, divides: bool) -> Tensor:
    weight, scale = source[name], source[f"{name.removesuffix('weight')}{SCALE}"]
    if weight.dim() != 2 or scale.numel() != 1 or not scale.is_floating_point():
        raise FileFormatError(
            f"{quoted(name)} of shape {tuple(weight.shape)} with {scale.numel()} scales is no ternary matrix",
            remedy="Fetch the model again.",
        )
    ternary = digits(weight).to(scale.dtype) if weight.dtype == torch.uint8 else weight  # or never packed
    if divides:
        return ternary.float() / scale.float()
    return ternary * scale if weight.dtype == torch.uint8 else ternary.float() * scale.float()


def _product(name: str, scale: str, source: Mapping[str, Tensor]) -> Tensor:
    return source[name].float() * source[scale].float()


def _plain(name: str, source: Mapping[str, Tensor]) -> Tensor:
    if (tensor := source[name]).dtype == torch.uint8:
        raise FileFormatError(f"{quoted(name)} is packed and has no scale", remedy="Fetch the complete model again.")
    return tensor


def _online(name: str, source: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    if not (IN_LAYER.search(name) and name.endswith(".weight")) or source[name].dim() != 2:
        return partial(_plain, name, source)
    if not MAP.search(name):
        raise UnsupportedError(
            f"{quoted(name)}: a matrix that may or may not be rounded at every call",
            remedy="Fetch the model with packed weights, or a GGUF file of it.",
        )
    return lambda: rounded(source[name])


PACKING = Packing("bitnet", read)
