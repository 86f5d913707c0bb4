"""Who can read on beyond the length it was trained at: ALiBi, against the positions it was written to replace.

All arms are the same character model of 64 tokens, trained on the same rows from the same weights; they differ in how they
tell places apart. Each then predicts the same 32 characters with 64 to 1024 characters before their end, so that only the
length of the past differs. An honest rival stands beside ALiBi: rotary positions that never look further than 64 back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text, tiny
from almanac.evidence.fixtures.fitting import count, flops, next_nll
from almanac.evidence.fixtures.kept import kept
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.outcome import Outcome
from almanac.nn.attention.full import Attention, attention
from almanac.nn.attention.masks import Causal, SlidingWindow
from almanac.nn.positions import alibi
from almanac.nn.positions.alibi import Alibi
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.positions.rope import Rope
from almanac.nn.positions.sinusoidal import SinusoidalPositions
from almanac.nn.stack import Decoder

SHORT, LONG, SCORED = 64, 1024, 32
LENGTHS = (64, 128, 256, 512, 1024)
SIZES = {
    "quick": tiny.Tiny(time=SHORT, steps=120, context=LONG),
    "full": tiny.Tiny(time=SHORT, steps=400, context=LONG),
}
STRETCHES = {"quick": 24, "full": 96}
WIDE = Normal(std=0.3)
# the paper's: powers of a half for 8 heads, and every other one of those of 16 heads for the 4 that are left
SLOPES = torch.tensor([2.0**-power for power in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)])

CARD = Card(
    name="nn.positions.alibi",
    title="Reading beyond the trained length: ALiBi and the rest",
    claim=(
        "a model trained on 1024 tokens with linear biases reaches on 2048 the perplexity of a sinusoidal model trained on "
        "2048, whereas sinusoidal, and to a lesser degree rotary, models get worse soon after the trained length"
    ),
    source="Press 2021, arXiv 2108.12409, section 3 and figure 1; Vaswani 2017, arXiv 1706.03762, section 3.5",
    toy_claim=(
        "of character models trained at 64, one with ALiBi predicts the last 32 characters of 1024 about as well as of 64; "
        "with sinusoidal, learned or rotary positions the same characters become much harder"
    ),
    scope=(
        "any use of the far past: ALiBi is a soft window here, and a rotary model with a hard window of 64 is printed beside "
        "it; speed and memory; models of more than 0.4 M parameters"
    ),
    tier="real",
    arms=(
        Arm(name="alibi", role=METHOD, what="linear biases on the scores"),
        Arm(name="sinusoidal", role=BASELINE, what="sinusoids added to the embedding"),
        Arm(name="learned", role=CONTROL, what="a learned table of 1024 rows, of which training saw 64"),
        Arm(name="rope", role=CONTROL, what="rotary positions"),
        Arm(name="none", role=CONTROL, what="no positions but the causal mask"),
        Arm(name="rope, window", role=TWIN, what="the rotary model, its attention cut to 64 tokens when it is read"),
        Arm(name="alibi, window", role=CONTROL, what="the ALiBi model, its attention cut to 64 tokens"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="rise", arm="alibi"),
            expected=0.1,
            fail=0.25,
            says="with ALiBi the nll of the same characters rises by at most a quarter nat from 64 to 1024",
        ),
        AtLeast(
            effect=Effect(metric="rise", arm="sinusoidal"),
            expected=1.5,
            fail=0.5,
            says="with sinusoids it rises by half a nat or more: they do not extrapolate",
        ),
        AtLeast(
            effect=Effect(metric="rise", arm="learned"),
            expected=1.5,
            fail=0.5,
            says="rows of a learned table that were never trained do not serve either",
        ),
        AtLeast(
            effect=Effect(metric="rise", arm="rope"),
            expected=1.5,
            fail=0.5,
            says="rotary positions alone do not extrapolate",
        ),
    ),
    gates=(
        Gate(
            arm="sinusoidal",
            metric="nll_64",
            at_most=2.6,
            why="the baseline must have learned the text at its own length",
        ),
        Gate(arm="alibi", metric="nll_64", at_most=2.6, why="a model that learned nothing would rise by nothing"),
    ),
    null="sinusoidal",
    equal="flops",
    budget_arms=("alibi", "sinusoidal", "learned", "rope", "none"),
    mutants=(
        Mutant(name="slope sign", what="biases grow with distance"),
        Mutant(name="slopes of other counts", what="heads that are no power of two get 2^(-8h/n)"),
        Mutant(name="heads out of order", what="slopes follow the key-value groups and not the query heads"),
        Mutant(name="window off by the cache", what="a kept past is cut one token early"),
        Mutant(name="no bias", what="the bias is made and not added"),
    ),
    seeds=4,
    plot=Plot(metric="nll", lines=True, x="characters read", y="nll of the last 32 characters (nats)", log_x=True),
)


def spec(kind: str, size: tiny.Tiny) -> Decoder.Spec:
    """TINY with positions of ``kind``."""
    positions = {"alibi": Alibi.Spec(num_heads=size.heads), "rope": Rope.Spec(rotary_dim=size.hidden // size.heads)}
    added = {
        "sinusoidal": SinusoidalPositions.Spec(hidden=size.hidden, scale=size.hidden**-0.5),
        "learned": LearnedPositions.Spec(length=size.context, hidden=size.hidden),
    }
    made = tiny.spec(size, mixer=lambda hidden: attention(hidden, num_heads=size.heads, position=positions.get(kind)))
    return made.with_(positions=added.get(kind))


def network(kind: str, size: tiny.Tiny, seed: int, mutant: str | None) -> Decoder:
    """The trained model of a kind, from disk if it was trained before; weights that all kinds have start alike."""
    model = initialise(spec("none", size).build(), seed=seed)
    start = model.state_dict()
    model = initialise(spec(kind, size).build(), seed=seed)
    model.load_state_dict(start, strict=False)
    assert isinstance(model, Decoder)

    def make() -> dict[str, Tensor]:
        tiny.train(model, size, seed=seed)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    key = f"positions/{spec(kind, size).digest()}/{size.digest()}/{text.digest()}/{seed}/{mutant}"
    model.load_state_dict(kept(key, make, code=__name__))
    return model.eval()


@torch.no_grad()
def nll_of_last(model: Decoder, stretches: Tensor, length: int) -> float:
    """Mean nll of the last 32 characters of stretches [rows, 1024], of which the last ``length`` are read."""
    total, rows = 0.0, max(1, 8192 // length)
    for part in stretches[:, -length:].split(rows):
        hidden, _ = model.hidden(part)
        logits = model.logits(hidden[:, -SCORED - 1 : -1])
        total += float(F.cross_entropy(logits.flatten(0, 1), part[:, -SCORED:].flatten(), reduction="sum"))
    return total / (SCORED * len(stretches))


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One way to tell places apart, read at all lengths."""
    kind, _, window = arm.partition(", ")
    size = SIZES[profile if profile in SIZES else "full"]
    stretches = text.held_out(rows=STRETCHES[profile if profile in STRETCHES else "full"], time=LONG)
    with planted(mutant, BUGS):
        model = network(kind, size, seed, mutant)
        tokens = size.steps * size.rows * size.time
        step = flops(lambda: next_nll(model, stretches[: size.rows, :SHORT]).backward())
        if window:
            windowed = spec(kind, size).replace("layers.*.mixer", mask=SlidingWindow(size=SHORT)).build()
            windowed.load_state_dict(model.state_dict())
            assert isinstance(windowed, Decoder)
            model = windowed.eval()
        curve = [(float(length), nll_of_last(model, stretches, length)) for length in LENGTHS]
    metrics = {f"nll_{length:.0f}": nll for length, nll in curve} | {"rise": curve[-1][1] - curve[0][1]}
    budget = {"flops": step * size.steps, "tokens": float(tokens), "parameters": float(count(model))}
    return Outcome(metrics, budget, {"nll": curve}, data=text.digest())


def check(mutant: str | None) -> None:
    """ALiBi's attention against its equation, for 12 heads in 3 groups, whole and continued, with and without a window."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 10, 48, generator=generator)
    with planted(mutant, BUGS), torch.no_grad():
        for size in (None, 4):
            mask = SlidingWindow(size=size) if size else Causal()
            made = attention(48, num_heads=12, num_kv_heads=4, position=Alibi.Spec(num_heads=12), mask=mask)
            layer = initialise(made.replace("{q,k,v,o}", initialiser=WIDE).build(), seed=0)
            assert isinstance(layer, Attention)
            q, k, v = (part(x)[0].unflatten(-1, (-1, 4)).transpose(0, 1) for part in (layer.q, layer.k, layer.v))
            places = torch.arange(10)
            distance = places[:, None] - places
            scores = q @ k.repeat_interleave(3, 0).mT / 2 - SLOPES[:, None, None] * distance
            hidden = (distance < 0) | (distance >= (size or 10))
            y = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v.repeat_interleave(3, 0)
            expected = layer.o(y.transpose(0, 1).flatten(1))
            whole, _ = layer(x, Context(positions=places[None]))
            assert torch.allclose(whole[0], expected, atol=1e-4), "attention is not what the equation says"
            state, parts = layer.init_state(1, 10), []
            for start, end in ((0, 3), (3, 4), (4, 9), (9, 10)):
                part, state = layer(x[:, start:end], Context(positions=places[None, start:end]), state)
                parts.append(part[0])
            assert torch.allclose(torch.cat(parts), expected, atol=1e-4), "a kept past changes what is attended to"


def _disordered(self: Alibi, queries: Tensor, keys: Tensor) -> Tensor:
    return SOUND(self, queries, keys).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _early(self: SlidingWindow, queries: Tensor, keys: Tensor) -> Tensor:
    continued = queries.shape[-2] != keys.shape[-1]
    return ALLOWED(self, queries, keys) & (keys > queries - self.size + continued)


def _proportional(num_heads: int, gentlest: float = 8.0) -> list[float]:
    return [2.0 ** (-gentlest * head / num_heads) for head in range(1, num_heads + 1)]


SOUND, ALLOWED = Alibi.forward, SlidingWindow.allowed
BUGS: Bugs = {
    "slope sign": Bug(Alibi, "forward", lambda self, queries, keys: -SOUND(self, queries, keys)),
    "slopes of other counts": Bug(alibi, "slopes", _proportional),
    "heads out of order": Bug(Alibi, "forward", _disordered),
    "window off by the cache": Bug(SlidingWindow, "allowed", _early),
    "no bias": Bug(Alibi, "forward", lambda self, queries, keys: 0 * SOUND(self, queries, keys)),
}
