"""RETRO: what a model reads in the neighbours of its last chunk, against neighbours of other texts and none."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.spec import Normal
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect, Within
from almanac.evidence.fixtures.fitting import count, fit, flops
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.outcome import Outcome, require_disjoint
from almanac.nn.attention.full import attention
from almanac.nn.attention.neighbours import NeighbourStore, mean_embedding
from almanac.nn.attention.retro import ChunkedCrossAttention, chunked_cross_attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import TiedHead
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.stack import Decoder

EARLY, OWN, UNSHIFTED = "neighbours of the chunk being read", "its own text is a neighbour", "readers one token late"
CHUNK, CHUNKS = 4, 4  # tokens of a chunk, chunks of a text: who, what is known of them, and two of noise

CARD = Card(
    name="nn.attention.retro",
    title="Facts that no weight holds are read in retrieved neighbours",
    claim=(
        "language models that attend to the nearest chunks of a large database perform like models with up to 25 times the "
        "parameters; the gain comes from what the neighbours say"
    ),
    source="Borgeaud 2021, arXiv 2112.04426, abstract and section 4.1",
    toy_claim=(
        "texts name someone unseen and then say four tokens about them that stand only in a database: a model with chunked "
        "cross-attention to the nearest chunk predicts these better by a nat a token or more than with neighbours of other "
        "texts, and all other tokens no better"
    ),
    scope="language, parameters saved, inexact matches, neighbours that are only like the text, an encoder of neighbours",
    tier="planted",
    arms=(
        Arm(name="retro", role="method", what="the nearest chunk of any other document, with its continuation"),
        Arm(name="random", role="twin", what="as many neighbours, those of another text's chunks"),
        Arm(name="none", role="baseline", what="the same layers with no neighbours"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="gain", arm="retro", over="random"),
            expected=2.3,
            fail=1.0,
            says="facts are predicted a nat a token better with their own neighbours",
        ),
        Within(
            effect=Effect(metric="gain_elsewhere", arm="retro", over="none"),
            expected=0.0,
            margin=0.1,
            says="and no other token is: nothing of the future leaks",
        ),
    ),
    gates=(
        Gate(
            arm="none", metric="gain", at_least=-0.2, at_most=0.05, why="the weights can know nothing of unseen people"
        ),
        Gate(arm="random", metric="gain", at_least=-0.2, why="a twin that learned nonsense would be easy to beat"),
        Gate(
            arm="retro", metric="gain_elsewhere", at_most=0.05, why="what is random cannot be predicted by honest means"
        ),
    ),
    null="random",
    equal="flops",
    budget_arms=("retro", "random", "none"),
    mutants=(
        Mutant(name=EARLY, what="tokens read the neighbours of their own, unfinished chunk"),
        Mutant(name=OWN, what="the text itself is in the database and not left out"),
        Mutant(name=UNSHIFTED, what="a chunk's last token does not yet read its neighbours"),
    ),
    seeds=4,
    plot=Plot(metric="gain", y="nats per fact token below guessing"),
)


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The people and the training."""

    learned: int = 6144  # people whose texts are trained on
    asked: int = 512  # people who occur in the database alone, until the test
    vocab: int = 16
    hidden: int = 64
    rows: int = 32
    steps: int = 800
    rate: float = 3e-3


SIZES = {"full": Size(), "quick": Size(learned=2048, asked=256, steps=400, rate=5e-3)}


@dataclass(frozen=True)
class World:
    """``texts`` int64 [people, 16], those asked for last; ``nearest`` int64 [people, chunks, 8], -1 for no token."""

    texts: Tensor
    nearest: Tensor


@functools.cache
def world(size: Size, seed: int, leaks: bool) -> World:
    """Everyone's text and its neighbours among entries on people and all texts, but (unless it leaks) its own."""
    generator = torch.Generator().manual_seed(seed)
    people = size.learned + size.asked
    texts = torch.randint(0, size.vocab, (people, CHUNK * CHUNKS), generator=generator)
    table = torch.randn(size.vocab, 32, generator=generator)
    places = torch.randn(CHUNK, 32, generator=generator)
    mean = mean_embedding(table)

    def embed(chunks: Tensor) -> Tensor:  # the order counts, or another text would often be as near
        return mean(chunks) + (table[chunks.clamp(min=0)] * places).mean(1)

    entries, whole = texts[:, : 2 * CHUNK], texts
    store = NeighbourStore.of([*entries, *whole], chunk=CHUNK, embed=embed)
    chunks = texts.view(-1, CHUNK)
    own = people + torch.arange(people).repeat_interleave(CHUNKS)
    found = store.nearest(chunks, 1, documents=None if leaks else own)
    if leaks:  # the entry on a person would still come first
        found = store.nearest(chunks, 2)
        mine = store.documents[found.places] == own[:, None]
        tokens = found.tokens[torch.arange(len(chunks)), mine.int().argmax(1)]
    else:
        tokens = found.tokens[:, 0]
    rows = [row.tobytes() for row in texts.numpy()]
    require_disjoint(set(rows[: size.learned]), rows[size.learned :])
    return World(texts, tokens.view(people, CHUNKS, 2 * CHUNK))


class Reader(nn.Module):
    """A decoder whose middle layer reads neighbours, and vectors of the neighbours' tokens."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        norm = LayerNorm.Spec(hidden=size.hidden)
        block = Block.Spec(
            mixer_norm=norm,
            mixer=attention(size.hidden, num_heads=4),
            channel_norm=norm,
            channel=dense(size.hidden, 2 * size.hidden),
        )
        retro = chunked_cross_attention(size.hidden, num_heads=4, chunk=CHUNK, retrieved=2 * CHUNK)
        spec = Decoder.Spec(
            embed=Embedding.Spec(vocab_size=size.vocab, hidden=size.hidden, initialiser=Normal(std=0.1)),
            layers=(block, MixerBlock.Spec(mixer_norm=norm, mixer=retro), block),
            norm=norm,
            head=TiedHead.Spec(),
            context_length=CHUNK * CHUNKS,
            positions=LearnedPositions.Spec(length=CHUNK * CHUNKS, hidden=size.hidden, initialiser=Normal(std=0.1)),
        )
        self.decoder = spec.build()
        self.places = Embedding.Spec(vocab_size=2 * CHUNK, hidden=size.hidden, initialiser=Normal(std=0.1)).build()

    def forward(self, tokens: Tensor, nearest: Tensor) -> Tensor:
        """tokens int64 [b, t], nearest int64 [b, chunks, 2 c] -> logits [b, t, vocab]."""
        flat = nearest.flatten(1)
        vectors = self.decoder.embed(flat.clamp(min=0)) + self.places(torch.arange(2 * CHUNK)).repeat(CHUNKS, 1)
        positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        owners = torch.where(flat >= 0, 0, -1)
        return self.decoder(tokens, Context(positions=positions, encoder=vectors, encoder_segments=owners))


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Trains one arm; how far below guessing the nll of facts and of all else is."""
    size = SIZES[profile if profile in SIZES else "full"]
    with planted(mutant, BUGS):
        return train(arm, seed, size, world(size, seed, mutant == OWN))


def train(arm: str, seed: int, size: Size, given: World) -> Outcome:
    """`run` on a world."""
    texts, nearest = given.texts, given.nearest
    generator = torch.Generator().manual_seed(seed)
    if arm == "random":
        learned = torch.randperm(size.learned, generator=generator)
        asked = size.learned + torch.randperm(size.asked, generator=generator)
        nearest = nearest[torch.cat([learned, asked])]
    elif arm == "none":
        nearest = torch.full_like(nearest, -1)
    network = initialise(Reader(size), seed=seed)

    def loss(rows: Tensor) -> Tensor:
        logits = network(texts[rows], nearest[rows])[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), texts[rows][:, 1:], reduction="none")  # [b, t - 1]

    rounds = -(-size.steps * size.rows // size.learned)
    order = torch.cat([torch.randperm(size.learned, generator=generator) for _ in range(rounds)])
    batches = order[: size.steps * size.rows].view(size.steps, size.rows)
    fit(network.parameters(), lambda step: loss(batches[step]).mean(), steps=size.steps, rate=size.rate)
    with torch.no_grad():
        nll = loss(torch.arange(size.learned, len(texts))).mean(0)
    facts = torch.zeros(len(nll), dtype=torch.bool)
    facts[CHUNK - 1 : 2 * CHUNK - 1] = True
    guessing = math.log(size.vocab)
    return Outcome(
        metrics={
            "gain": guessing - float(nll[facts].mean()),
            "gain_elsewhere": guessing - float(nll[~facts].mean()),
        },
        budget={
            "flops": size.steps * flops(lambda: loss(batches[0]).mean().backward()),
            "parameters": float(count(network)),
            "tokens": float(batches.numel() * texts.shape[1]),
        },
        curves={"nll": [(float(place + 1), float(value)) for place, value in enumerate(nll)]},
    )


def check(mutant: str | None) -> None:
    """Which chunk's neighbours each token reads, by gradient; and that no text is its own neighbour."""
    size = Size(learned=64, asked=8)
    with planted(mutant, BUGS):
        layer = initialise(chunked_cross_attention(8, num_heads=2, chunk=3, retrieved=2).build(), seed=0)
        vectors = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        x = torch.randn(1, 11, 8, generator=torch.Generator().manual_seed(1))
        y, _ = layer(x, Context(positions=torch.arange(11)[None], encoder=vectors), None)
        for place in range(11):
            (reached,) = torch.autograd.grad(y[0, place].sum(), vectors, retain_graph=True)
            read = [chunk for chunk in range(4) if reached[0, 2 * chunk : 2 * chunk + 2].any()]
            wanted = [(place + 1) // 3 - 1] if place >= 2 else []
            assert read == wanted, f"token {place} reads the neighbours of {read}, not {wanted}"
        found = world(size, 0, mutant == OWN)
        following = found.texts.view(-1, CHUNKS, CHUNK)[:, 1:]
        noise = (found.nearest[:, 1:-1, CHUNK:] == following[:, 1:]).all(-1)
        assert not noise.any(), "a text's own continuation is retrieved"


_sound = ChunkedCrossAttention._whole


def _shifted(by: int) -> Any:
    def wrong(self: ChunkedCrossAttention, q: Tensor, brought: tuple[Tensor, ...]) -> Tensor:
        if by > 0:  # as if every token stood further on
            return _sound(self, F.pad(q, (0, 0, by, 0)), brought)[:, :, by:]
        y = _sound(self, q[:, :, -by:], brought)
        return torch.cat([torch.zeros_like(q[:, :, :-by]), y], dim=2)

    return wrong


BUGS: Bugs = {
    EARLY: Bug(ChunkedCrossAttention, "_whole", _shifted(CHUNK - 1)),
    OWN: (),  # of the data: see `world`
    UNSHIFTED: Bug(ChunkedCrossAttention, "_whole", _shifted(-1)),
}
