"""Packing: what a network makes of an example, and learns from it, is the same behind others in a row as it is alone.

Every mixer that runs along the sequence is asked: those that attend, by their masks, and those that remember, by what they
forget where an example begins. Outputs and gradients are compared in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.data import collate
from almanac.data.collate import Row, packed_batches, padded_batches
from almanac.data.pack import pack_rows
from almanac.evidence.card import BASELINE, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, Effect
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.attention.gated_linear import gated_linear
from almanac.nn.attention.linear import linear_attention
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.attention.sparse import sparse_attention
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.delta import gated_delta
from almanac.nn.recurrent.gru import gru
from almanac.nn.recurrent.lstm import lstm
from almanac.nn.recurrent.mamba import mamba
from almanac.nn.recurrent.mamba2 import mamba2
from almanac.nn.recurrent.retnet import retention
from almanac.nn.recurrent.rwkv4 import rwkv4
from almanac.nn.recurrent.rwkv6 import rwkv6
from almanac.nn.recurrent.rwkv7 import rwkv7
from almanac.nn.recurrent.s4 import s4
from almanac.nn.recurrent.s4d import s4d
from almanac.nn.stack import Decoder
from almanac.train import criterion
from almanac.train.criterion import NextToken

HIDDEN, HEADS, VOCAB = 32, 4, 40
UNMARKED, MERGED, RUNNING, CROSSING = (
    "unmarked",
    "segments ignored",
    "positions run on",
    "neighbours predict first tokens",
)
LENGTHS = (3, 5, 8, 13, 21, 24, 4, 17, 9, 6, 2, 12)
HEAD_DIM = HIDDEN // HEADS
MIXERS: dict[str, Spec] = {
    "attention": attention(HIDDEN, num_heads=HEADS, position=Rope.Spec(rotary_dim=HEAD_DIM)),
    "learned positions": attention(HIDDEN, num_heads=HEADS),
    "window": sparse_attention(
        HIDDEN, num_heads=HEADS, mask=SlidingWindow(size=5), position=Rope.Spec(rotary_dim=HEAD_DIM)
    ),
    "linear attention": linear_attention(HIDDEN, num_heads=HEADS),
    "gated linear": gated_linear(HIDDEN, num_heads=HEADS),
    "retention": retention(HIDDEN, num_heads=HEADS),
    "gated delta": gated_delta(HIDDEN, num_heads=HEADS, head_dim=HEAD_DIM),
    "mamba": mamba(HIDDEN),
    "mamba2": mamba2(HIDDEN, num_heads=HEADS, head_dim=2 * HEAD_DIM, num_states=16),
    "rwkv4": rwkv4(HIDDEN),
    "rwkv6": rwkv6(HIDDEN, num_heads=HEADS),
    "rwkv7": rwkv7(HIDDEN, num_heads=HEADS, first=True),
    "s4": s4(HIDDEN),
    "s4d": s4d(HIDDEN),
    "lstm": lstm(HIDDEN),
    "gru": gru(HIDDEN),
}

CARD = Card(
    name="data.pack",
    title="Packed examples are those that would stand alone, in every mixer",
    claim=(
        "sequences packed into one row give the same model as separate ones if attention is confined to each and "
        "positions begin anew, at a fraction of the padding"
    ),
    source="Krell 2021, arXiv 2107.02027 (said in our words)",
    toy_claim=(
        f"twelve examples of 2 to 24 tokens in rows of 24: in {len(MIXERS)} kinds of mixers, two layers deep, every "
        "output and every gradient is that of the examples alone, to 1e-9 in float64"
    ),
    scope=(
        "time; what packing does to the order of examples; mixers with memories outside the sequence; decoding, which "
        "never packs; whether crossing examples would hurt a model much"
    ),
    tier="exact",
    arms=(
        *(Arm(name=name, role=METHOD, what=f"two layers of {name}, packed") for name in MIXERS),
        Arm(name=UNMARKED, role=BASELINE, what="rotary attention, not told where examples begin"),
    ),
    claims=tuple(
        Always(
            effect=Effect(metric="error", arm=name),
            expected=1e-13,
            most=1e-9,
            says=f"{name}: packed outputs and gradients are those of examples alone",
        )
        for name in MIXERS
    ),
    gates=(
        Gate(arm=UNMARKED, metric="error", at_least=0.01, why="neighbours would be seen if nothing hid them"),
        Gate(arm="attention", metric="saved", at_least=0.2, why="packing leaves out at least a fifth of the numbers"),
    ),
    null=UNMARKED,
    mutants=(
        Mutant(name=MERGED, what="all examples of a row are one segment"),
        Mutant(name=RUNNING, what="positions run on through a row", arms=("learned positions",)),
        Mutant(name=CROSSING, what="the first token of an example is predicted from the one before it"),
    ),
    seeds=3,
    budget_minutes=3,
    plot=Plot(metric="error", y="largest relative error"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The largest relative error of any output of any example, and of any parameter's gradient."""
    network, rows = model(arm, seed), examples(seed)
    with planted(mutant or (UNMARKED if arm == UNMARKED else None), BUGS):
        batches = packed_batches(rows, 24 * 8)
        error = max(outputs(network, batches, rows), gradients(network, batches, rows))
    packed, padded = (
        sum(batch.tokens.numel() for batch in found) for found in (batches, padded_batches(rows, 24 * 64))
    )
    return Outcome(metrics={"error": error, "saved": 1 - packed / padded, "tokens": float(packed)})


def outputs(network: Decoder, batches: Sequence[Tokens], rows: Sequence[Row]) -> float:
    """The largest difference of logits, as a share of the largest logit; examples are found again by their tokens."""
    worst, found = 0.0, 0
    with torch.no_grad():
        alone = {row.tokens: network(torch.tensor([row.tokens]))[0] for row in rows}
        for batch in batches:
            logits = network(batch.tokens, criterion.context_of(batch))
            spans = [(row, span) for row in range(len(logits)) for span in spans_of(batch, row, rows)]
            for row, (start, end) in spans:
                expected = alone[tuple(batch.tokens[row, start:end].tolist())]
                worst = max(worst, relative(logits[row, start:end], expected))
                found += 1
    assert found == len(rows), "an example was lost"
    return worst


def spans_of(batch: Tokens, row: int, rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Where the examples of a row of a batch stand, found by their tokens and not by what the batch says of itself."""
    ids, known, start, found = batch.tokens[row].tolist(), {item.tokens for item in rows}, 0, []
    while start < len(ids):
        ends = [end for end in range(start + 1, len(ids) + 1) if tuple(ids[start:end]) in known]
        if not ends:
            break  # padding
        found.append((start, ends[-1]))
        start = ends[-1]
    return found


def gradients(network: Decoder, batches: Sequence[Tokens], rows: Sequence[Row]) -> float:
    """The largest relative error of a parameter's gradient, of the sum of losses over all targets."""
    expected, found = (
        gradient_of(network, given)
        for given in ([batch for row in rows for batch in padded_batches([row], 24)], batches)
    )
    return max(relative(found[name], expected[name]) for name in expected)


def gradient_of(network: Decoder, batches: Sequence[Tokens]) -> dict[str, Tensor]:
    """By parameter name."""
    network.zero_grad()
    for batch in batches:
        if batch.num_targets:
            NextToken().loss(network, batch, normaliser=1.0)[0].backward()
    return {name: item.grad.clone() for name, item in network.named_parameters() if item.grad is not None}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number (or as it is, of numbers next to nothing)."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


def examples(seed: int) -> list[Row]:
    """No two alike and none the beginning of another, since each begins with a token of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [number, *torch.randint(len(LENGTHS), VOCAB, (length - 1,), generator=generator).tolist()]
        rows.append(Row(tuple(ids), (False, *[True] * (length - 1))))
    return rows


def model(arm: str, seed: int) -> Decoder:
    """Two layers in float64, every parameter moved away from where it begins, so that none is idle."""
    mixer = MIXERS.get(arm, MIXERS["attention"])
    made = spec(Tiny(hidden=HIDDEN, layers=2, context=64), mixer=lambda hidden: mixer, vocab=VOCAB)
    if arm == "learned positions":
        made = dataclasses.replace(made, positions=LearnedPositions.Spec(length=64, hidden=HIDDEN))
    network = initialise(made.build(), seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in network.parameters():
        nn.init.normal_(noise := torch.empty_like(parameter), std=0.1, generator=generator)
        parameter.data += noise
    assert isinstance(network, Decoder)
    return network.eval()


def check(mutant: str | None) -> None:
    """Two mixers on one seed, and the batch by hand."""
    with planted(mutant, BUGS):
        (batch,) = packed_batches(
            [Row((1, 2), (True, True)), Row((3, 4, 5), (True,) * 3), Row((6, 7, 8, 9, 10), (True,) * 5)], 10
        )
        assert batch.tokens.tolist() == [[6, 7, 8, 9, 10], [3, 4, 5, 1, 2]]
        assert batch.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]], "positions"
        assert batch.loss_mask.tolist() == [[False, *[True] * 4], [False, True, True, False, True]], "targets"
        for arm in ("attention", "mamba"):
            network, rows = model(arm, 0), examples(0)
            assert outputs(network, packed_batches(rows, 96), rows) < 1e-9, f"{arm}: neighbours are seen"


def _merged(batch: Tokens) -> Tokens:
    return dataclasses.replace(batch, segments=batch.segments.clamp_max(0))


def _running(batch: Tokens) -> Tokens:
    return dataclasses.replace(batch, positions=torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens))


def _crossing(batch: Tokens) -> Tokens:
    begins = (batch.positions == 0) & (batch.segments > 0)
    return dataclasses.replace(batch, loss_mask=batch.loss_mask | begins)


BUGS = {
    MERGED: Bug(collate, "pack_rows", lambda *given, **named: _merged(pack_rows(*given, **named))),
    RUNNING: Bug(collate, "pack_rows", lambda *given, **named: _running(pack_rows(*given, **named))),
    CROSSING: Bug(collate, "pack_rows", lambda *given, **named: _crossing(pack_rows(*given, **named))),
    UNMARKED: Bug(criterion, "context_of", lambda batch: Context(batch.positions)),
}
