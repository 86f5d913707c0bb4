"""Writing only what a prefix tree holds: always valid, and the model's own law among what is valid, token by token."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import torch
from torch import Tensor

from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, METHOD, TWIN, Arm, Card, Mutant, Plot
from almanac.evidence.claim import Always, AtLeast, AtMost, Effect
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.outcome import Outcome
from almanac.generate.engine import Engine, Request, run_all
from almanac.generate.processors import prefix_tree
from almanac.generate.processors.prefix_tree import Node, PrefixTree
from almanac.generate.sampling import Sampling
from almanac.nn.stack import Decoder

TREE, FREE, FIRST = "prefix tree", "free", "first token only"
VOCAB, STOP, LENGTH = 12, 11, 4
SAMPLES = {"quick": 400, "full": 4000}

CARD = Card(
    name="generate.processors.prefix_tree",
    title="Constrained decoding is always valid, and samples the law that masking defines",
    claim="at each step tokens that do not continue an allowed sequence are masked, so that only allowed ones are written",
    source="De Cao 2021, Autoregressive entity retrieval, arXiv 2010.00904, section 3.2",
    toy_claim=(
        "of a random decoder asked for one of 20 sequences, every sample is one of them, and their shares are the products "
        "of the model's probabilities renormalised among the children of each node"
    ),
    scope="that this law is the model's own conditioned on being allowed (it is not: masking looks one step ahead); quality",
    tier="exact",
    arms=(
        Arm(name=TREE, role=METHOD, what="every step masked"),
        Arm(name=FREE, role=BASELINE, what="nothing masked"),
        Arm(name=FIRST, role=TWIN, what="only the first step masked"),
    ),
    claims=(
        Always(
            effect=Effect(metric="valid", arm=TREE),
            least=1.0,
            most=1.0,
            expected=1.0,
            says="share of samples that are allowed",
        ),
        AtMost(
            effect=Effect(metric="distance", arm=TREE),
            expected=0.02,
            fail=0.08,
            says="total variation between the samples' shares and the masked law (sampling alone: about 0.03)",
        ),
        AtLeast(
            effect=Effect(metric="valid", arm=TREE, over=FIRST),
            expected=0.99,
            fail=0.5,
            says="share that masking later steps makes valid",
        ),
    ),
    null=FREE,
    mutants=(
        Mutant(name="masked to zero", what="removed tokens keep a logit of 0"),
        Mutant(name="one step late", what="the children of the node before"),
        Mutant(name="shares alike", what="children are drawn uniformly"),
    ),
    plot=Plot(metric="valid", y="share of samples that are allowed"),
)


@functools.cache
def _model(seed: int) -> Decoder:
    made = initialise(spec(Tiny(hidden=16, layers=1, heads=2), vocab=VOCAB).build(), seed=seed)
    assert isinstance(made, Decoder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.head.projection.weight.copy_(torch.randn(VOCAB, 16, generator=generator))
    return made.eval()


@functools.cache
def _allowed(seed: int) -> tuple[tuple[int, ...], ...]:
    """20 sequences of 4 tokens, each ended by the stop token."""
    every = list(itertools.product(range(4), repeat=LENGTH))
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:20].tolist()
    return tuple((*every[place], STOP) for place in sorted(chosen))


def tree(sequences: Sequence[Sequence[int]]) -> Node:
    """The prefix tree of sequences."""
    root = Node()
    for sequence in sequences:
        node = root
        for token in sequence:
            following = node.children.setdefault(token, Node())
            assert isinstance(following, Node)
            node = following
    return root


@torch.no_grad()
def law(network: Decoder, prompt: Sequence[int], sequences: Sequence[Sequence[int]]) -> dict[tuple[int, ...], float]:
    """The masked law, enumerated: each sequence's probability."""
    found = {}
    for sequence in sequences:
        node, chance = tree(sequences), 1.0
        for place, token in enumerate(sequence):
            logits = network(torch.tensor([[*prompt, *sequence[:place]]]))[0, -1].double()
            children = sorted(node.children)
            chance *= float(logits[children].softmax(-1)[children.index(token)])
            following = node.children[token]
            assert isinstance(following, Node)
            node = following
        found[tuple(sequence)] = chance
    return found


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Samples of one arm, counted."""
    network, sequences, prompt = _model(seed), _allowed(seed), (5, 6)
    count = SAMPLES["quick" if profile == "quick" else "full"]
    root = tree(sequences)
    with _broken("first" if arm == FIRST else mutant):
        processors = () if arm == FREE else (PrefixTree(root=root, prompt_tokens=len(prompt)),)
        requests = [
            Request(
                tokens=prompt,
                max_tokens=LENGTH + 1,
                sampling=Sampling(processors=processors, greedy=False, seed=seed % 1000 + number),
                stop_tokens=frozenset((STOP,)),
            )
            for number in range(count)
        ]
        drawn = [tuple(tokens) for tokens in run_all(Engine(network), requests)]
    ended = [tuple(item) if item and item[-1] == STOP else (*item, STOP) for item in drawn]
    exact = law(network, prompt, sequences)
    shares = {item: ended.count(item) / count for item in exact}
    distance = 0.5 * (sum(abs(shares[item] - exact[item]) for item in exact) + max(0.0, 1 - sum(shares.values())))
    valid = sum(item in exact for item in ended) / count
    return Outcome({"valid": valid, "distance": distance}, {"samples": float(count)})


def check(mutant: str | None) -> None:
    """The processor's own distribution at a node is the softmax among its children; elsewhere nothing."""
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0])
    with _broken(mutant):
        processor = PrefixTree(root=tree([(0, 3), (0, 1), (2, 1)]), prompt_tokens=1)
        for tokens, children in (([4], [0, 2]), ([4, 0], [1, 3]), ([4, 2], [1])):
            found = processor(logits, tokens).softmax(-1)
            expected = torch.zeros(5)
            expected[children] = logits[children].softmax(-1)
            assert torch.allclose(found, expected), "not the children's renormalised law"


CALL = PrefixTree.__call__


@contextlib.contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    def zeroed(self: PrefixTree, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        kept = CALL(self, logits, tokens)
        return torch.where(kept == prefix_tree.REMOVED, 0.0, kept)

    def late(self: PrefixTree, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return CALL(self, logits, tokens[:-1] if len(tokens) > self.prompt_tokens else tokens)

    def alike(self: PrefixTree, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return CALL(self, torch.zeros_like(logits), tokens)

    def first(self: PrefixTree, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return CALL(self, logits, tokens) if len(tokens) == self.prompt_tokens else logits

    planted = {"masked to zero": zeroed, "one step late": late, "shares alike": alike, "first": first}
    with patch.object(PrefixTree, "__call__", planted[mutant]) if mutant in planted else contextlib.nullcontext():
        yield
