"""Prefixes: where texts are divided, that only the rest is scored, and that a prefix mask is what the loss supposes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import toys

from almanac.core.errors import RequestError
from almanac.core.state import Context
from almanac.nn.attention.masks import PrefixLM
from almanac.objectives.example_dice import example_dice
from almanac.objectives.next_token import next_token
from almanac.objectives.prefix import PrefixSplit, prefix_length, prefix_rows


def test_lengths_are_uniform_between_the_bounds() -> None:
    counts = Counter(prefix_length(9, PrefixSplit(), example_dice(0, number)) for number in range(4000))
    assert sorted(counts) == list(range(1, 9))
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 24.3  # 7 degrees of freedom, 1e-3
    narrow = {prefix_length(100, PrefixSplit(least=0.2, most=0.5), example_dice(1, n)) for n in range(2000)}
    assert min(narrow) == 20 and max(narrow) == 50 and len(narrow) == 31
    assert prefix_length(2, PrefixSplit(least=0.9), example_dice(0, 0)) == 1
    with pytest.raises(RequestError):
        prefix_length(1, PrefixSplit(), example_dice(0, 0))
    with pytest.raises(RequestError):
        PrefixSplit(least=0.6, most=0.5)


def test_only_what_follows_the_prefix_is_scored_and_learns_from_all_of_it() -> None:
    """The loss has gradient at positions from the last of the prefix on; every prefix token sees the others."""
    texts = [toys.tokens(1, 8)[0].tolist(), toys.tokens(1, 5, seed=1)[0].tolist()]
    batch, prefix = prefix_rows(texts, [5, 2])
    assert batch.loss_mask.tolist() == [[at >= 5 for at in range(8)], [2 <= at < 5 for at in range(8)]]
    spec = toys.plain().replace("layers.*.mixer", mask=PrefixLM())
    model = toys.model_of(spec)
    embedded = []
    model.embed.register_forward_hook(lambda module, inputs, output: embedded.append(output.requires_grad_()) or None)
    logits = model(batch.tokens, Context(batch.positions, batch.segments, prefix))
    logits.retain_grad()
    next_token(logits, batch)[0].backward(retain_graph=True)
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [
        [4 <= at < 7 for at in range(8)],
        [1 <= at < 4 for at in range(8)],
    ]
    (reach,) = torch.autograd.grad(logits[0, 0].sum(), embedded[0])
    assert (reach[0].abs().sum(-1) > 0).tolist() == [True] * 5 + [False] * 3
