"""The table of tensor types: every type that is read and written here, by its number in the file and by name."""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.files.gguf import blocks, kquants, plain
from almanac.files.gguf.format import Format
from almanac.files.quoting import quoted

FORMATS: dict[int, Format] = {
    entry.ggml_id: entry
    for entry in (
        plain.F32,
        plain.F16,
        plain.BF16,
        blocks.Q4_0,
        blocks.Q4_1,
        blocks.Q5_0,
        blocks.Q5_1,
        blocks.Q8_0,
        kquants.Q4_K,
        kquants.Q5_K,
        kquants.Q6_K,
    )
}
_BY_NAME = {entry.name: entry for entry in FORMATS.values()}

# Types that exist and are not offered, so that the error can call them by name.
UNOFFERED = dict(
    zip(
        [9, 10, 11, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 34, 35, 39, 40, 41],
        "Q8_1 Q2_K Q3_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M "
        "TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0".split(),
        strict=True,
    )
)


def format_named(name: str) -> Format:
    """The type called `name`, such as "Q4_K". Raises UnsupportedError if it is not offered."""
    if name not in _BY_NAME:
        raise UnsupportedError(f"{quoted(name)} is not an offered GGUF type", remedy=f"Use {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]
