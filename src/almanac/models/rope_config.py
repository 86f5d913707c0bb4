"""Rotary positions in the hub's configurations, both ways: theta, the part of a head that is turned, and every scaling.

Two spellings are read, ``rope_parameters`` and ``rope_theta`` beside ``rope_scaling``; the first is written.
"""

from __future__ import annotations

import math

from almanac.core.errors import FileFormatError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.family import Config, Fields
from almanac.nn.positions import rope


def read_rope(
    fields: Fields, head_dim: int, *, interleaved: bool = False, theta: float = 10_000.0, kind: str | None = None
) -> rope.Rope.Spec:
    """The rotary positions of a configuration; ``theta`` where it is silent.

    ``kind``: which of several in ``rope_parameters``, as configurations with layers of two kinds have them.
    """
    table = fields.table("rope_parameters")
    if kind is not None and kind in table:
        table = Fields(table, f"{fields.origin}: rope_parameters").table(kind)
    given = {**fields.table("rope_scaling"), **table}
    settings = Fields(given, f"{fields.origin}: rope")
    base = settings.number("rope_theta", fields.number("rope_theta", theta))
    share = fields.number("partial_rotary_factor", settings.number("partial_rotary_factor", 1.0))
    name = settings.text("rope_type", settings.text("type", "default"))
    scaling = _scaling(name, settings, fields)
    return rope.Rope.Spec(rotary_dim=int(head_dim * share), theta=base, scaling=scaling, interleaved=interleaved)


def _scaling(kind: str, settings: Fields, fields: Fields) -> rope.Scaling | None:
    if kind in ("default", "mrope"):
        return None
    if kind == "linear":
        return rope.Linear(factor=settings.number("factor"))
    if kind == "dynamic":
        return rope.Dynamic(factor=settings.number("factor"), original=_original(settings, fields))
    if kind == "yarn":
        return _yarn(settings, fields)
    if kind in ("longrope", "su"):
        return _longrope(settings, fields)
    if kind == "llama3":
        low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
        if not low < high:
            raise FileFormatError(
                f"{settings.origin}: low_freq_factor {low} is not below high_freq_factor {high}",
                remedy="Fetch the model again.",
            )
        original = settings.integer("original_max_position_embeddings")
        return rope.Llama3(factor=settings.number("factor"), low=low, high=high, original=original)
    raise UnsupportedError(
        f"Rotary scaling {quoted(kind)}",
        remedy="default, linear, dynamic, yarn, longrope and llama3 are read; the model would be wrong without its own.",
    )


def _original(settings: Fields, fields: Fields) -> int:
    """The context length before scaling: its own field, beside the scaling or in it, or the model's length."""
    length = fields.any("original_max_position_embeddings") or fields.any("max_position_embeddings", 2048)
    return settings.integer("original_max_position_embeddings", length)


def _yarn(settings: Fields, fields: Fields) -> rope.Yarn:
    original = _original(settings, fields)
    factor = settings.number("factor", fields.integer("max_position_embeddings", 2048) / original)
    attention = settings.number("attention_factor", 0.0) if settings.any("attention_factor") else None
    one, all_dim = settings.any("mscale"), settings.any("mscale_all_dim")
    if attention is None and one and all_dim:
        attention = yarn_temperature(factor, float(one)) / yarn_temperature(factor, float(all_dim))
    return rope.Yarn(
        factor=factor,
        original=original,
        fast=settings.number("beta_fast", 32.0),
        slow=settings.number("beta_slow", 1.0),
        attention=attention,
        whole=settings.flag("truncate", True),
    )


def yarn_temperature(factor: float, weight: float = 1.0) -> float:
    """0.1 · weight · ln(factor) + 1, equation 22 of YaRN with DeepSeek's weight."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(settings: Fields, fields: Fields) -> rope.LongRope:
    tables = [settings.any(name) for name in ("short_factor", "long_factor")]
    if not all(isinstance(table, list) and table for table in tables):
        raise FileFormatError(f"{settings.origin}: longrope without its factors", remedy="Fetch the model again.")
    short, long = (tuple(float(item) for item in table) for table in tables)
    original = _original(settings, fields)
    factor = settings.number("factor", fields.integer("max_position_embeddings", 2048) / original)
    default = 1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    attention = settings.number("attention_factor", default)
    return rope.LongRope(short=short, long=long, original=original, attention=attention)


def write_rope(spec: rope.Rope.Spec, head_dim: int) -> Config:
    """The ``rope_parameters`` of a spec."""
    out: Config = {"rope_type": "default", "rope_theta": spec.theta}
    if spec.rotary_dim != head_dim:
        out["partial_rotary_factor"] = spec.rotary_dim / head_dim
    return out | _written(spec.scaling)


def _written(scaling: rope.Scaling | None) -> Config:
    original = "original_max_position_embeddings"
    match scaling:
        case rope.Linear():
            return {"rope_type": "linear", "factor": scaling.factor}
        case rope.Dynamic():
            return {"rope_type": "dynamic", "factor": scaling.factor, original: scaling.original}
        case rope.Yarn():
            return {
                "rope_type": "yarn", "factor": scaling.factor, original: scaling.original, "beta_fast": scaling.fast,
                "beta_slow": scaling.slow, "truncate": scaling.whole, "attention_factor": scaling.attention,
            }  # fmt: skip
        case rope.LongRope():
            return {
                "rope_type": "longrope", "short_factor": list(scaling.short), "long_factor": list(scaling.long),
                original: scaling.original, "attention_factor": scaling.attention,
            }  # fmt: skip
        case rope.Llama3():
            return {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high, original: scaling.original,
            }  # fmt: skip
        case _:
            return {}
