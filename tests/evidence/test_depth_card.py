"""The card of mixture of depths: equal compute, a meter that reads what is planted, a twin that draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from almanac.core.errors import AlmanacError
from almanac.core.technique import initialise
from almanac.evidence.nn.channel import depth as card
from almanac.evidence.nn.channel.depth import Size, area, rows_of, spec, table
from almanac.nn.channel.depth import DepthRouter
from almanac.nn.channel.moe.balance import record
from almanac.nn.stack import Decoder


@pytest.mark.parametrize("mutant", list(card.BUGS))
def test_the_oracle_sees_every_mutant_and_leaves_the_code_as_it_was(mutant: str) -> None:
    assert set(card.BUGS) == {item.name for item in card.CARD.mutants}
    with pytest.raises((AssertionError, AlmanacError)):
        card.check(mutant)
    card.check(None)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_arms_spend_alike(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = dataclasses.replace(card.SIZES[profile], steps=1, tests=2)
    monkeypatch.setitem(card.SIZES, profile, one)
    spent = {arm: card.run(arm, 0, profile, None).budget["flops"] for arm in ("depth", "shallow", "random", "full")}
    assert spent["depth"] == spent["random"] == pytest.approx(spent["shallow"], rel=0.005)
    assert spent["full"] > 2 * spent["depth"]


def test_rows_ask_the_table_and_are_drawn_anew() -> None:
    size = Size(keys=5, values=3)
    tokens = rows_of(size, rows=6, seed=1, part=0).view(6, -1, 4)
    first, second, value = tokens[..., 1] - 1, tokens[..., 2] - 1 - size.keys, tokens[..., 3] - 1 - 2 * size.keys
    assert torch.equal(value, table(size)[first, second])
    assert not tokens[..., 0].any()
    assert not torch.equal(tokens.flatten(1), rows_of(size, rows=6, seed=1, part=1))


def test_the_area_is_the_chance_of_standing_above() -> None:
    assert area(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert area(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == 0.5
    assert area(torch.tensor([0.5]), torch.tensor([0.0, 1.0, 1.0, 1.0])) == 0.25


def test_the_twin_draws_a_quarter_anew_every_time() -> None:
    size = card.SIZES["quick"]
    network = initialise(spec("random", size).build(), seed=0).train()
    assert isinstance(network, Decoder)
    card._draw_at_random(network, 0)
    tokens = rows_of(size, rows=4, seed=0, part=0)
    found = []
    for _ in range(2):
        with record(network, of=DepthRouter) as records:
            network(tokens)
        found += [choice.chosen for calls in records.values() for choice in calls]
    assert all((chosen.sum(1) == tokens.shape[1] // 4).all() for chosen in found)
    assert len({tuple(chosen.flatten().tolist()) for chosen in found}) == 2 * card.DEEP
