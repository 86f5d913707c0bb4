"""Blocks of 32 weights with a scale each: every bit is worth its share, and a block keeps an outlier to itself."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.compress.quantize.blocks import Blocks, store
from almanac.core.site import Leaf, select
from almanac.evidence.card import METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect
from almanac.evidence.compress.quantize.int8 import each_leaf
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.tiny import Tiny, held_out_nll, trained
from almanac.evidence.outcome import Outcome
from almanac.files.gguf.format import Format
from almanac.files.gguf.formats import format_named
from almanac.nn.attention.full import Attention
from almanac.nn.stack import Decoder
from almanac.nn.stored import kernels

WHOLE_ROWS = "4 bits by row"
NAMES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")

CARD = Card(
    name="compress.quantize.blocks",
    title="GGUF's blocks: divergence falls with every bit, scales counted",
    claim="Block-wise rounding confines outliers to their block; 8-bit blocks are as good as the full precision, and "
    "perplexity rises in the order of bits a weight",
    source="llama.cpp's quantization table (Q8_0 to Q4_0), pull request 1684 (2023); block-wise rounding: Dettmers 2021, "
    "arXiv 2110.02861, section 2",
    toy_claim=(
        "of a trained model with planted outlier columns (four inputs of each output projection ×16, the function kept), "
        "4-bit blocks lose at most 0.9 of the KL divergence that 4 bits by row lose; a bit more at least halves it; 8-bit "
        "blocks change the nll by at most 0.005; bits a weight count the scales and are those of the bytes held"
    ),
    scope="K-quants (blocks of 256 do not divide these rows), importance matrices, large models, speed",
    tier="planted",
    arms=(
        *(Arm(name=name, role=METHOD, what=f"the layers' weights in {name} blocks") for name in NAMES),
        Arm(name=WHOLE_ROWS, role=TWIN, what="the codes of Q4_0, but one scale for a whole row"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="kl when planted", arm="Q4_0", over=WHOLE_ROWS, ratio=True),
            expected=0.5,
            fail=0.9,
            says="divergence of 4-bit blocks over 4 bits by row, planted",
        ),
        AtMost(effect=Effect(metric="cost", arm="Q8_0"), expected=0.0003, fail=0.005, says="nats that Q8_0 costs"),
        AtMost(
            effect=Effect(metric="kl", arm="Q5_0", over="Q4_0", ratio=True),
            expected=0.25,
            fail=0.5,
            says="divergence of 5 bits over 4 (a quarter if errors halve)",
        ),
        AtMost(
            effect=Effect(metric="kl", arm="Q5_1", over="Q4_1", ratio=True),
            expected=0.25,
            fail=0.5,
            says="the same with a minimum for every block",
        ),
        AtMost(
            effect=Effect(metric="kl", arm="Q8_0", over="Q5_0", ratio=True),
            expected=0.02,
            fail=0.1,
            says="divergence of 8 bits over 5 (1/64 if errors halve with each bit)",
        ),
    ),
    gates=(
        Gate(arm=WHOLE_ROWS, metric="nll", at_most=2.6, why="the model has learned the text (unigram: 3.1 nats)"),
        Gate(arm=WHOLE_ROWS, metric="planting", at_most=1e-3, why="planting leaves the function as it was"),
        Gate(arm="Q4_0", metric="bits off", at_most=1e-9, why="bits a weight are those of the bytes held"),
    ),
    null=WHOLE_ROWS,
    mutants=(
        Mutant(name="nibbles swapped", what="low and high halves of a byte read the other way round"),
        Mutant(name="minimum forgotten", what="a block with a minimum decoded without it"),
        Mutant(name="one scale for a row", what="every block of a row gets the first block's scale"),
        Mutant(name="scale counted, not kept", what="scales rounded to powers of two"),
    ),
    equal="tokens",
    budget_arms=(*NAMES, WHOLE_ROWS),
    seeds=5,
    plot=Plot(metric="kl by bits", lines=True, x="bits a weight, scales counted", y="KL to the float model, nats"),
)

QUICK, FULL = Tiny(hidden=64, layers=2, steps=150), Tiny()
FACTOR, CHANNELS = 16.0, 4


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """KL to the model as it was, and nll, after rounding the layers' weights as the arm says."""
    tiny = QUICK if profile == "quick" else FULL
    float_logits, before = _reference(seed, tiny)
    plain, planted = trained(tiny, seed=seed), plant_columns(trained(tiny, seed=seed))
    kept = held_out_nll(planted)
    with _broken(mutant):
        for network in (plain, planted):
            _round(network, arm)
        bits = bits_of(plain) if arm != WHOLE_ROWS else 4 + 16 / tiny.hidden
        metrics = {
            "nll": before,
            "planting": abs(kept - before),
            "cost": held_out_nll(plain) - before,
            "kl": _divergence(float_logits, plain),
            "kl when planted": _divergence(float_logits, planted),
            "bits": bits,
            "bits off": abs(bits - declared(arm)) if arm != WHOLE_ROWS else 0.0,
        }
    spent = {"tokens": tiny.steps * tiny.rows * tiny.time}
    return Outcome(metrics, spent, {"kl by bits": [(bits, metrics["kl"])]}, data=text.digest())


def declared(name: str) -> float:
    """Bits a weight of a format, its scales counted."""
    chosen = format_named(name)
    return 8 * chosen.block_bytes / chosen.block_size


def bits_of(network: Decoder) -> float:
    """Bits that the layers' matrices hold, by weight."""
    leaves = list(select(network, "layers.**", of=Leaf).values())
    return 8 * sum(leaf.weight.nbytes for leaf in leaves) / sum(leaf.shape.numel() for leaf in leaves)


def _round(network: Decoder, arm: str) -> None:
    if arm != WHOLE_ROWS:
        Blocks(format=arm).attach(network)
        return
    each_leaf(network, _by_row, targets="layers.**")


def _by_row(weight: Tensor) -> Tensor:
    """Codes -8 to 7, the weight of largest size of a row at -8 exactly, as Q4_0 has them for a block."""
    extreme = weight.gather(1, weight.abs().argmax(dim=1, keepdim=True))
    scale = extreme / -8
    return (weight / scale).round().clamp(-8, 7) * scale


@torch.no_grad()
def plant_columns(network: Decoder, *, factor: float = FACTOR) -> Decoder:
    """Multiplies four columns of every output projection and divides the value rows that feed them."""
    for layer in network.layers:
        mixer = layer.get_submodule("mixer")
        assert isinstance(mixer, Attention)
        mixer.o.dense_weight()[:, :CHANNELS] *= factor
        mixer.v.dense_weight()[:CHANNELS] /= factor
        if mixer.v.bias is not None:
            mixer.v.bias[:CHANNELS] /= factor
    return network


@functools.lru_cache(maxsize=2)
def _reference(seed: int, tiny: Tiny) -> tuple[Tensor, float]:
    network = trained(tiny, seed=seed)
    with torch.no_grad():
        return network(_tokens()).log_softmax(-1), held_out_nll(network)


def _tokens() -> Tensor:
    return text.held_out(rows=64, time=64)


@torch.no_grad()
def _divergence(reference: Tensor, network: Decoder) -> float:
    """Mean KL in nats a token of the network from the model as it was."""
    found = network(_tokens()).log_softmax(-1)
    return float(F.kl_div(found, reference, reduction="none", log_target=True).sum(-1).mean())


def check(mutant: str | None) -> None:
    """Decoded weights against a slow loop over the bytes, with and without the compiled kernels; bytes as declared."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 96, generator=generator) * torch.tensor([0.01, 1.0, 30.0])[:, None]
    with _broken(mutant):
        for name in NAMES:
            stored = store(weight, format_named(name))
            slow = torch.tensor([[_loop(name, row)] for row in stored.codes.tolist()]).view(3, 96)
            assert torch.equal(stored.dense(), slow), f"{name}: decoded weights"
            with kernels.disabled():
                assert torch.equal(stored.dense(), slow), f"{name}: decoded weights in torch"
            assert 8 * stored.nbytes / weight.numel() == declared(name), f"{name}: bits"
            error = (slow - weight).abs().view(3, 3, 32).amax(dim=-1)
            spread = weight.view(3, 3, 32).abs().amax(dim=-1)
            assert bool((error <= spread * HALF_STEPS[name]).all()), f"{name}: more than its step"


HALF_STEPS = {"Q8_0": 0.005, "Q5_0": 0.07, "Q5_1": 0.04, "Q4_0": 0.13, "Q4_1": 0.075}
"""Largest error as a share of the block's largest magnitude: a half step, or a whole one where codes are lopsided."""


def _loop(name: str, row: list[int]) -> list[float]:
    """Weights of one row from its bytes, one at a time, as ggml lays them out."""
    chosen, found = format_named(name), list[float]()
    for start in range(0, len(row), chosen.block_bytes):
        block = bytes(row[start : start + chosen.block_bytes])
        scale = struct.unpack("<e", block[:2])[0]
        if name == "Q8_0":
            found += [scale * code for code in struct.unpack("<32b", block[2:])]
            continue
        shifted = name.endswith("_1")
        least = struct.unpack("<e", block[2:4])[0] if shifted else 0.0
        rest = block[4:] if shifted else block[2:]
        high = int.from_bytes(rest[:4], "little") if name.startswith("Q5") else 0
        codes = rest[4:] if name.startswith("Q5") else rest
        middle = 0 if shifted else 16 if name.startswith("Q5") else 8
        for place in range(32):
            low = codes[place] & 15 if place < 16 else codes[place - 16] >> 4
            code = low | (high >> place & 1) << 4
            found.append(scale * (code - middle) + least)
    return torch.tensor(found, dtype=torch.float64).float().tolist()


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The formats' encoding with a planted bug, put right again afterwards."""
    if mutant is None:
        yield
        return
    change = MUTANTS[mutant]
    Format.quantize = lambda self, values: change(self, _quantize(self, values))
    try:
        yield
    finally:
        Format.quantize = _quantize


_quantize = Format.quantize


def _apart(chosen: Format, rows: Tensor) -> Tensor:
    """Rows of bytes as blocks, uint8 [rows, blocks, block_bytes]; a view of a copy."""
    return rows.clone().view(*rows.shape[:-1], -1, chosen.block_bytes)


def _swapped(chosen: Format, rows: Tensor) -> Tensor:
    found = _apart(chosen, rows)
    found[..., -16:] = (found[..., -16:] >> 4) | (found[..., -16:] << 4)
    return found.view(rows.shape)


def _no_minimum(chosen: Format, rows: Tensor) -> Tensor:
    found = _apart(chosen, rows)
    if chosen.name.endswith("_1"):
        found[..., 2:4] = 0
    return found.view(rows.shape)


def _one_scale(chosen: Format, rows: Tensor) -> Tensor:
    found = _apart(chosen, rows)
    found[..., :2] = found[..., :1, :2].clone()
    return found.view(rows.shape)


def _powers(chosen: Format, rows: Tensor) -> Tensor:
    found = _apart(chosen, rows)
    found[..., 0] = 0
    found[..., 1] &= 0xFC  # sign and exponent
    return found.view(rows.shape)


MUTANTS: dict[str, Callable[[Format, Tensor], Tensor]] = {
    "nibbles swapped": _swapped,
    "minimum forgotten": _no_minimum,
    "one scale for a row": _one_scale,
    "scale counted, not kept": _powers,
}
