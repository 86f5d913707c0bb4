"""GGUF's block formats against the `gguf` package, bit for bit, and our K quantisers against plain rounding."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.files.gguf import FORMATS, Format, format_named

BLOCK = [entry for entry in FORMATS.values() if entry.block_size > 1]
SIMPLE = [entry for entry in BLOCK if entry.block_size == 32]
K = [entry for entry in BLOCK if entry.block_size == 256]
LEVELS = {"Q4_K": 16, "Q5_K": 32}
# where the halves of a block lie
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
# zero, minus zero, least subnormal, a subnormal, least normal, 1, greatest, its negative, infinities, NaN
EXTREME_HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]


def named(entry: Format) -> str:
    return entry.name


def reference(entry: Format) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(entry.ggml_id)


def their_values(entry: Format, packed: Tensor) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(packed.numpy(), reference(entry)), dtype=np.float32)


def assert_same_bits(got: Tensor, want: np.ndarray) -> None:
    """Equal bits, minus zero included; for NaN any NaN."""
    assert got.dtype == torch.float32 and tuple(got.shape) == want.shape
    ours, theirs = got.numpy(), np.ascontiguousarray(want)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{(~same).sum()} of {same.size} differ"


def test_the_table_agrees_with_the_packages() -> None:
    for number, entry in FORMATS.items():
        assert reference(entry).name == entry.name and entry.ggml_id == number
        assert gguf.GGML_QUANT_SIZES[reference(entry)] == (entry.block_size, entry.block_bytes)
        assert format_named(entry.name) is entry
    with pytest.raises(UnsupportedError, match="Q4_K"):
        format_named("IQ2_XXS")


@pytest.mark.parametrize("entry", FORMATS.values(), ids=named)
def test_random_bytes_decode_as_the_package_decodes_them(entry: Format) -> None:
    generator = torch.Generator().manual_seed(entry.ggml_id)
    packed = torch.randint(0, 256, (3, 7, 11 * entry.block_bytes), dtype=torch.uint8, generator=generator)
    assert_same_bits(entry.dequantize(packed), their_values(entry, packed))


@pytest.mark.parametrize("entry", BLOCK, ids=named)
def test_extreme_scales_decode_as_the_package_decodes_them(entry: Format) -> None:
    generator = torch.Generator().manual_seed(1)
    halves = torch.tensor(EXTREME_HALVES, dtype=torch.int32)
    choices = torch.cartesian_prod(*[halves] * len(HALVES[entry.name])).view(-1, len(HALVES[entry.name]))
    packed = torch.randint(0, 256, (len(choices), entry.block_bytes), dtype=torch.uint8, generator=generator)
    for column, offset in enumerate(HALVES[entry.name]):
        packed[:, offset] = (choices[:, column] & 255).to(torch.uint8)
        packed[:, offset + 1] = (choices[:, column] >> 8).to(torch.uint8)
    assert_same_bits(entry.dequantize(packed), their_values(entry, packed))


@pytest.mark.parametrize("entry", FORMATS.values(), ids=named)
def test_more_elements_than_a_chunk_and_none_at_all(entry: Format) -> None:
    rows = (1 << 20) // entry.block_size + 3
    packed = torch.zeros(rows, entry.block_bytes, dtype=torch.uint8)
    packed[:: rows - 1] = 1  # the first and the last block
    values = entry.dequantize(packed)
    assert_same_bits(values[[0, 1, -2, -1]], their_values(entry, packed[[0, 1, -2, -1]]))
    assert entry.dequantize(torch.zeros(0, entry.block_bytes, dtype=torch.uint8)).shape == (0, entry.block_size)
    assert entry.dequantize(torch.zeros(2, 0, dtype=torch.uint8)).shape == (2, 0)
    assert entry.quantize(torch.zeros(0, entry.block_size)).shape == (0, entry.block_bytes)
    assert entry.quantize(torch.zeros(2, 0)).shape == (2, 0)


def inputs() -> dict[str, Tensor]:
    """float32 [rows, 256] with the cases that break quantisers."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(40, 256, generator=generator)
    spiky = normal.clone()
    spiky[:, ::32] *= 100
    half_steps = torch.arange(-128, 128).float().repeat(4, 1) / 2
    return {
        "normal": normal * 0.02,
        "wide": normal * torch.logspace(-6, 3, 40).unsqueeze(1),
        "spiky": spiky,
        "positive": normal.abs() + 1,
        "negative": -normal.abs() - 5,
        "ties": half_steps,
        "ties for the extreme": torch.tensor([3.0, -3.0]).repeat(2, 128),
        "zeros": torch.zeros(2, 256),
        "minus zeros": -torch.zeros(2, 256),
        "constant": torch.full((2, 256), -0.7),
        "one element": torch.nn.functional.one_hot(torch.arange(4) * 70, 256).float() * -3,
        "half subnormal": normal * 1e-6,
        "near the greatest half": normal.sign() * 60000,
    }


@pytest.mark.parametrize("entry", SIMPLE, ids=named)
@pytest.mark.parametrize("case", inputs())
def test_simple_formats_encode_to_the_packages_bytes(entry: Format, case: str) -> None:
    values = inputs()[case]
    with np.errstate(all="ignore"):
        want = gguf.quants.quantize(values.numpy(), reference(entry))
    assert np.array_equal(entry.quantize(values).numpy(), want)


def test_plain_formats_round_as_the_package_does() -> None:
    bits = torch.randint(-(2**31), 2**31, (64, 256), dtype=torch.int32, generator=torch.Generator().manual_seed(5))
    values = bits.view(torch.float32)
    values = torch.where(values.isnan() | (values.abs() > 60000), torch.tensor(0.1), values)
    specials = torch.tensor([[0.0, -0.0, 1e-45, -1e-40, 65504.0, float("inf"), float("-inf"), 1.0]])
    for entry in (format_named("F32"), format_named("F16"), format_named("BF16")):
        for tensor in (values, specials):
            want = gguf.quants.quantize(tensor.numpy(), reference(entry)).view(np.uint8)
            assert np.array_equal(entry.quantize(tensor).numpy(), want), entry.name
        assert entry.dequantize(entry.quantize(torch.tensor([float("nan")]))).isnan().all()
    exact = torch.randn(8, 32).half()
    assert torch.equal(format_named("F16").dequantize(format_named("F16").quantize(exact)).half(), exact)


def plain_rounding(entry: Format, values: Tensor) -> Tensor:
    """What the K format gives when every sub-block simply maps its extremes to the extreme codes."""
    if entry.name == "Q6_K":
        parts = values.view(-1, 16, 16)
        scale = parts.abs().amax(-1) / 31
        d = (scale.amax(1, keepdim=True) / 127).half().float()
        step = (d * (scale / d).round()).unsqueeze(-1)
        return (step * (parts / step).round().clamp(-32, 31)).view(values.shape)
    highest = 15 if entry.name == "Q4_K" else 31
    parts = values.view(-1, 8, 32)
    minimum = -parts.amin(-1).clamp(max=0)
    scale = (parts.amax(-1) + minimum) / highest
    d, dmin = ((x.amax(1, keepdim=True) / 63).half().float() for x in (scale, minimum))
    step, shift = (d * (scale / d).round()).unsqueeze(-1), (dmin * (minimum / dmin).round()).unsqueeze(-1)
    return (step * ((parts + shift) / step).round().clamp(0, highest) - shift).view(values.shape)


@pytest.mark.parametrize("entry", K, ids=named)
@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
def test_k_formats_err_less_than_plain_rounding(entry: Format, kind: str) -> None:
    torch.manual_seed(11)
    shape = (256, 512)
    values = {
        "normal": torch.randn(shape),
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample(shape),
        "student": torch.distributions.StudentT(3.0).sample(shape),
    }[kind] * 0.02
    error = (entry.dequantize(entry.quantize(values)) - values).square().mean()
    plain = (plain_rounding(entry, values) - values).square().mean()
    # measured ratios lie between 0.83 and 0.91; 0.95 leaves room for another machine's last bits, not for no search
    assert error < 0.95 * plain, f"{error / plain:.3f}"


@pytest.mark.parametrize("entry", K, ids=named)
@pytest.mark.parametrize("case", [case for case in inputs() if case != "near the greatest half"])
def test_k_round_trip_stays_within_the_step(entry: Format, case: str) -> None:
    values = inputs()[case]
    got = entry.dequantize(entry.quantize(values))
    if entry.name == "Q6_K":
        parts, levels, multipliers = values.view(-1, 16, 16), 32, 128
        extent = parts.abs().amax(-1, keepdim=True)
        shift = torch.zeros(())
    else:
        parts, levels, multipliers = values.view(-1, 8, 32), 15 if entry.name == "Q4_K" else 31, 63
        lowest = parts.amin(-1, keepdim=True).clamp(max=0)
        extent = parts.amax(-1, keepdim=True) - lowest
        shift = (-lowest).amax(1, keepdim=True) / multipliers
    # one step of the sub-block, the rounding of its scale (times the highest code) and of its minimum; a half's rounding
    bound = extent / levels + extent.amax(1, keepdim=True) / multipliers + shift
    bound = bound * 1.01 + extent.amax() * 1e-3 + 6e-8 * levels * multipliers
    assert ((got.view_as(parts) - parts).abs() <= bound).all()


@pytest.mark.parametrize("entry", K, ids=named)
def test_k_formats_keep_what_they_can_hold_exactly(entry: Format) -> None:
    assert not entry.dequantize(entry.quantize(torch.zeros(3, 256))).any()
    # every sub-block holds its extreme codes and all share one step, a power of two: nothing is lost
    codes = torch.arange(256) * 37 % 64 - 32 if entry.name == "Q6_K" else torch.arange(256) % LEVELS[entry.name]
    codes[::16] = codes.min()
    codes[1::16] = codes.max()
    values = codes.float().view(1, 256) * 0.5
    got = entry.dequantize(entry.quantize(values))
    if entry.name == "Q6_K":
        assert torch.equal(got, values)
    assert (got - values).abs().max() < 0.5 * 0.02


@pytest.mark.parametrize("entry", BLOCK, ids=named)
def test_what_a_block_cannot_hold_is_an_error(entry: Format) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        values = torch.zeros(2, 256)
        values[1, 255] = bad
        with pytest.raises(UnsupportedError, match="NaN or infinite"):
            entry.quantize(values)
    with pytest.raises(UnsupportedError, match="too large"):
        entry.quantize(torch.linspace(-1e38, 1e38, 256))
    with pytest.raises(ShapeError, match="whole"):
        entry.quantize(torch.zeros(4, 257))
    with pytest.raises(ShapeError):
        entry.quantize(torch.zeros(256, dtype=torch.int64))
    with pytest.raises(ShapeError):
        entry.dequantize(torch.zeros(entry.block_bytes + 1, dtype=torch.uint8))
    with pytest.raises(ShapeError):
        entry.dequantize(torch.zeros(entry.block_bytes))
    for scalar in (torch.zeros((), dtype=torch.uint8), torch.zeros(())):
        with pytest.raises(ShapeError):
            entry.dequantize(scalar)
        with pytest.raises(ShapeError):
            entry.quantize(scalar)


def test_half_overflow_of_finite_values_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="overflow"):
        format_named("F16").quantize(torch.tensor([70000.0]))
    with pytest.raises(UnsupportedError, match="overflow"):
        format_named("BF16").quantize(torch.tensor([3.4e38]))
    assert format_named("F32").quantize(torch.tensor([3.4e38])).shape == (4,)


@pytest.mark.parametrize("entry", BLOCK, ids=named)
def test_a_block_too_small_for_its_scale_becomes_zero(entry: Format) -> None:
    values = torch.full((1, 256), 1e-42)
    assert entry.dequantize(entry.quantize(values)).abs().max() < 1e-7


def test_half_and_bfloat_inputs_and_any_leading_dimensions() -> None:
    entry = format_named("Q4_0")
    values = torch.randn(2, 3, 64).bfloat16()
    assert torch.equal(entry.quantize(values), entry.quantize(values.float()))
    assert torch.equal(entry.quantize(values[1, 2, :32]), entry.quantize(values)[1, 2, :18])
    strided = torch.randn(64, 5).T
    assert torch.equal(entry.quantize(strided), entry.quantize(strided.contiguous()))
