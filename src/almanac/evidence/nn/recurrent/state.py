"""Decoding with a state: what it holds and what one more token costs as the past grows, counted and never timed.

Bytes are those of the tensors that can be reached from the state, whatever it says of itself. Work is counted twice: the
operations of matrix products as torch counts them, and the numbers that every operation reads or writes, which sees what is
no matrix product. Attention is computed with no fused kernel, which would hide both.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from almanac.core.spec import Spec
from almanac.core.state import Context, StackState, State
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, Effect
from almanac.evidence.fixtures.fitting import count
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import attention
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.attention.sparse import sparse_attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.delta import gated_delta
from almanac.nn.recurrent.mamba import mamba
from almanac.nn.recurrent.mamba2 import mamba2
from almanac.nn.recurrent.rwkv4 import rwkv4
from almanac.nn.recurrent.rwkv6 import rwkv6
from almanac.nn.recurrent.rwkv7 import rwkv7
from almanac.nn.recurrent.state import RecurrentState
from almanac.nn.stack import Decoder

KEPT, DROPPED, AGAIN, ROUNDED = "past kept beside", "state not carried over", "past read again", "state rounded"
HIDDEN, HEADS, LAYERS, VOCAB, WINDOW = 32, 4, 2, 17, 32
LENGTHS = {"quick": (64, 128, 256, 512), "full": (64, 128, 256, 512, 1024, 2048, 4096)}
SINGLE, PIECE = 16, 64  # tokens fed one by one at first, and then at once
FIXED = {  # numbers in the state of a layer, from the papers' equations
    "mamba": 3 * 2 * HIDDEN + 2 * HIDDEN * 16,  # the convolution's past, and 16 states a channel
    "mamba2": 3 * (2 * HIDDEN + 2 * 16) + 2 * HIDDEN * 16,
    "rwkv4": HIDDEN + 3 * HIDDEN,  # the last token, two sums and their exponent
    "rwkv6": HIDDEN + HIDDEN * HIDDEN // HEADS,  # the last token, and a matrix a head
    "rwkv7": HIDDEN + HIDDEN * HIDDEN // HEADS,
    "gated delta": 3 * 3 * HIDDEN + HIDDEN * HIDDEN // HEADS,
}

CARD = Card(
    name="nn.recurrent.state",
    title="Decoding with a state of fixed size",
    claim=(
        "a recurrent model decodes with constant memory and constant computation per token, whatever the length of the past, "
        "where the cache of attention and the cost of reading it grow with the past"
    ),
    source="Peng 2023, arXiv 2305.13048, abstract; Gu 2023, arXiv 2312.00752, section 1",
    toy_claim=(
        "for six recurrent mixers, the bytes of state, the multiplications and the numbers touched by one more token are the "
        "same after 4095 tokens as after 63; for attention what lies beyond a first token's grows with an exponent of 1; "
        "logits decoded with the state are those of one pass over the whole text"
    ),
    scope=(
        "seconds; what is lost by forgetting; trained models; a sliding window, whose state is bounded as well and of "
        "another size at the beginning of a text"
    ),
    tier="exact",
    arms=(
        *(Arm(name=name, role=METHOD, what=f"two layers of {name} with channels, random") for name in FIXED),
        Arm(name="attention", role=BASELINE, what="the same with attention, keys and values cached"),
        Arm(name="window", role=CONTROL, what=f"the same with attention to the last {WINDOW} tokens"),
    ),
    claims=(
        *(
            Always(
                effect=Effect(metric="growth", arm=name),
                expected=1.0,
                least=1.0,
                most=1.0,
                says=f"{name}: bytes, multiplications and numbers touched do not grow",
            )
            for name in FIXED
        ),
        Always(
            effect=Effect(metric="bytes_exponent", arm="attention"),
            expected=1.0,
            least=0.99,
            most=1.01,
            says="the cache of attention grows with the past",
        ),
        Always(
            effect=Effect(metric="work_exponent", arm="attention"),
            expected=1.0,
            least=0.99,
            most=1.01,
            says="and so do the multiplications of a token that reads it",
        ),
    ),
    gates=(
        *(
            Gate(arm=name, metric="error", at_most=1e-4, why="logits with the state are those of one pass")
            for name in (*FIXED, "attention", "window")
        ),
        *(
            Gate(arm=name, metric="without", at_least=0.01, why="without the state logits are others")
            for name in (*FIXED, "attention", "window")
        ),
    ),
    null="attention",
    mutants=(
        Mutant(name=KEPT, what="every state holds on to the ones before it, and says nothing of it"),
        Mutant(name=DROPPED, what="every call begins with an empty state"),
        Mutant(name=AGAIN, what="the past's tokens are kept and read again for every token"),
        Mutant(name=ROUNDED, what="states are rounded to bfloat16 after every call"),
    ),
    seeds=3,
    budget_minutes=5,
    plot=Plot(metric="bytes", lines=True, x="tokens", y="bytes of state", log_x=True),
    version=2,  # what is said of windows, whose state is bounded now
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Decodes texts of every length with a state, counts their last token, and compares all logits with one pass."""
    lengths = LENGTHS["quick" if profile == "quick" else "full"]
    network = model(arm, seed)
    tokens = torch.randint(0, VOCAB, (1, lengths[-1]), generator=torch.Generator().manual_seed(seed))
    with planted(mutant, BUGS), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = network(tokens)
        runs = [decoded(network, tokens[:, :length]) for length in lengths]
        first = decoded(network, tokens[:, :1])
        alone = decoded(network, tokens[:, -1:])
    error = max(relative(item.logits, expected[:, : item.logits.shape[1]]) for item in runs)
    held = [(float(length), item.held) for length, item in zip(lengths, runs, strict=True)]
    pasts = [float(length - 1) for length in lengths]
    return Outcome(
        metrics={
            "error": error,
            "without": relative(alone.logits, expected[:, -1:]),
            "growth": max(last / start for start, last in zip(runs[0].counts, runs[-1].counts, strict=True)),
            "bytes_exponent": exponent(held),
            "work_exponent": exponent([(p, r.operations - first.operations) for p, r in zip(pasts, runs, strict=True)]),
            "touched_exponent": exponent([(p, r.touched - first.touched) for p, r in zip(pasts, runs, strict=True)]),
            "bytes": runs[-1].held,
        },
        budget={"tokens": float(sum(lengths)), "parameters": float(count(network))},
        curves={
            "bytes": held,
            "operations": [(float(n), item.operations) for n, item in zip(lengths, runs, strict=True)],
            "touched": [(float(n), item.touched) for n, item in zip(lengths, runs, strict=True)],
        },
    )


@dataclass(frozen=True)
class Run:
    """Logits [1, t, vocab] of a text, the bytes held after it, and what its last token took."""

    logits: Tensor
    held: float
    operations: float
    touched: float

    @property
    def counts(self) -> tuple[float, float, float]:
        """All that may grow."""
        return self.held, self.operations, self.touched


def decoded(network: Decoder, tokens: Tensor) -> Run:
    """One text [1, t] through a state with just the room for it: single tokens, pieces, and a single token at the end."""
    total = tokens.shape[1]
    state, parts, start = network.init_state(1, total), [], 0
    while start < total - 1:
        size = 1 if start < SINGLE else min(PIECE, total - 1 - start)
        logits, state = step(network, tokens[:, start : start + size], state)
        parts.append(logits)
        start += size
    with FlopCounterMode(display=False) as operations, Touched() as touched:
        logits, state = step(network, tokens[:, start:], state)
    held = float(sum(tensor.nbytes for tensor in tensors_of(state)))
    return Run(torch.cat([*parts, logits], dim=1), held, float(operations.get_total_flops()), float(touched.total))


def step(network: Decoder, tokens: Tensor, state: StackState) -> tuple[Tensor, StackState]:
    """Logits of tokens that continue a state, and the state after them."""
    hidden, following = network.hidden(tokens, state)
    assert following is not None
    return network.logits(hidden), following


class Touched(TorchDispatchMode):
    """Counts the numbers that operations read or write; views, which move none, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(item.numel() for item in tree_leaves((args, kwargs, made)) if isinstance(item, Tensor))
        return made


def tensors_of(state: State) -> Iterator[Tensor]:
    """Every tensor that can be reached from a state, each storage once, by what the interpreter says refers to what."""
    waiting, seen, storages = [state], {id(state)}, set[int]()
    while waiting:
        for item in gc.get_referents(waiting.pop()):
            if id(item) in seen or isinstance(item, type | ModuleType | FunctionType):
                continue
            seen.add(id(item))
            if not isinstance(item, Tensor):
                waiting.append(item)
            elif item.untyped_storage().data_ptr() not in storages:
                storages.add(item.untyped_storage().data_ptr())
                yield item


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of x^b by least squares on logarithms; 0 where nothing but zeros was counted."""
    if not any(value for _, value in points):
        return 0.0
    xs, ys = [math.log(x) for x, _ in points], [math.log(max(value, 1.0)) for _, value in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


def mixer(arm: str, layer: int) -> Spec:
    """The arm's mixer."""
    rope = Rope.Spec(rotary_dim=HIDDEN // HEADS)
    made: dict[str, Spec] = {
        "mamba": mamba(HIDDEN),
        "mamba2": mamba2(HIDDEN, num_heads=HEADS, head_dim=2 * HIDDEN // HEADS, num_states=16),
        "rwkv4": rwkv4(HIDDEN),
        "rwkv6": rwkv6(HIDDEN, num_heads=HEADS),
        "rwkv7": rwkv7(HIDDEN, num_heads=HEADS, first=layer == 0),
        "gated delta": gated_delta(HIDDEN, num_heads=HEADS, head_dim=HIDDEN // HEADS),
        "attention": attention(HIDDEN, num_heads=HEADS, position=rope),
        "window": sparse_attention(HIDDEN, num_heads=HEADS, mask=SlidingWindow(size=WINDOW), position=rope),
    }
    return made[arm]


def model(arm: str, seed: int) -> Decoder:
    """Two layers with every parameter moved away from where it begins, so that none is idle."""
    norm = LayerNorm.Spec(hidden=HIDDEN)
    spec = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=tuple(
            Block.Spec(mixer_norm=norm, mixer=mixer(arm, layer), channel_norm=norm, channel=dense(HIDDEN, 2 * HIDDEN))
            for layer in range(LAYERS)
        ),
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB)),
        context_length=LENGTHS["full"][-1],
    )
    network = initialise(spec.build(), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in network.parameters():
        nn.init.normal_(noise := torch.empty_like(parameter), std=0.2, generator=generator)
        parameter.data += noise
    assert isinstance(network, Decoder)
    return network.eval()


def check(mutant: str | None) -> None:
    """Logits in float64, bytes by formula and by what states say of themselves, and attention's operations by formula."""
    tokens = torch.randint(0, VOCAB, (1, 40), generator=torch.Generator().manual_seed(0))
    with planted(mutant, BUGS), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for arm, numbers in {**FIXED, "attention": 2 * 40 * HIDDEN}.items():
            network = model(arm, 0).double()
            state, parts = network.init_state(1, 40), []
            for place in range(40):
                logits, state = step(network, tokens[:, place : place + 1], state)
                parts.append(logits)
            assert relative(torch.cat(parts, dim=1), network(tokens)) < 1e-9, f"{arm}: token by token it is another"
            held = sum(tensor.numel() for tensor in tensors_of(state))
            assert held == LAYERS * numbers, f"{arm}: {held} numbers in the state"
            assert state.nbytes == sum(tensor.nbytes for tensor in tensors_of(state)), f"{arm}: hidden bytes"
        network = model("attention", 0)
        short, long = (decoded(network, tokens[:, :length]).operations for length in (20, 40))
        assert long - short == LAYERS * 20 * 2 * 2 * HIDDEN, "attention's scores and sums"


_after, _hidden = RecurrentState.after, Decoder.hidden


def _keeping(self: RecurrentState, parts: Sequence[Tensor], time: int) -> RecurrentState:
    found = _after(self, parts, time)
    vars(found)["before"] = self
    return found


def _dropping(self: RecurrentState, parts: Sequence[Tensor], time: int) -> RecurrentState:
    return _after(self, [torch.zeros_like(part) for part in parts], time)


def _rounding(self: RecurrentState, parts: Sequence[Tensor], time: int) -> RecurrentState:
    return _after(self, [part.bfloat16().to(part.dtype) for part in parts], time)


def _reading_again(
    self: Decoder, tokens: Tensor, state: StackState | None = None, context: Context | None = None
) -> tuple[Tensor, StackState | None]:
    if state is None:
        return _hidden(self, tokens, None, context)
    text = torch.cat([vars(state).get("tokens", tokens[:, :0]), tokens], dim=1)
    hidden, found = _hidden(self, text, self.init_state(1, text.shape[1]))
    vars(found)["tokens"] = text
    return hidden[:, -tokens.shape[1] :], found


BUGS = {
    KEPT: Bug(RecurrentState, "after", _keeping),
    DROPPED: Bug(RecurrentState, "after", _dropping),
    AGAIN: Bug(Decoder, "hidden", _reading_again),
    ROUNDED: Bug(RecurrentState, "after", _rounding),
}
