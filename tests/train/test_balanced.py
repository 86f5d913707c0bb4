"""Training with balance losses: their share of a step, padding, corrections, and that they even the use of experts."""

from __future__ import annotations

import pytest
import torch
import toys

from almanac.core.batch import Tokens
from almanac.core.errors import SelectionError, UnsupportedError
from almanac.nn.channel.moe.balance import load, load_balance, mean_over, record, router_z
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.routing import SigmoidTop, correction
from almanac.nn.stack import Decoder
from almanac.train.balanced import Balanced


def model(**changes: object) -> Decoder:
    channel = gated_experts(toys.HIDDEN, 32, num_experts=4, num_chosen=1)
    return toys.model_of(toys.plain().replace("layers.*", channel=channel.replace("router", **changes)))


def batch(rows: int, *, padding: int = 0, seed: int = 0) -> Tokens:
    """Rows of 12 tokens, the last ``padding`` of each being none."""
    tokens = toys.tokens(rows, 12, seed=seed)
    place = torch.arange(12).expand(rows, -1)
    real = place < 12 - padding
    return Tokens(tokens, real & (place > 0), torch.where(real, place, 0), torch.where(real, 0, -1))


def test_the_loss_is_the_sum_of_its_parts() -> None:
    network, given = model(), batch(3, padding=4)
    criterion = Balanced(balance=0.3, z=0.2)
    normaliser = 2.0 * criterion.weight(given)
    total, metrics = criterion.loss(network, given, normaliser=normaliser)
    plain, _ = criterion.next_token.loss(network, given, normaliser=normaliser)
    with record(network) as records:
        criterion.next_token.loss(network, given, normaliser=normaliser)
    real = given.segments >= 0
    even, size = mean_over(records, load_balance, real), mean_over(records, router_z, real)
    torch.testing.assert_close(total, plain + 0.5 * (0.3 * even + 0.2 * size))
    torch.testing.assert_close(metrics["balance"], even.detach() * criterion.weight(given))
    assert not network.layers[0].channel.router.chain


def test_descent_evens_use() -> None:
    network, given = model(), batch(8)
    with torch.no_grad():
        network.layers[1].channel.router.projection.dense_weight()[0] += 0.05
    criterion, peaks = Balanced(balance=1.0), []
    optimizer = torch.optim.Adam(
        [leaf.weight for path, leaf in toys.leaves(network).items() if "router" in path], lr=0.01
    )
    for _ in range(60):
        optimizer.zero_grad()
        total, metrics = criterion.loss(network, given, normaliser=criterion.weight(given))
        total.backward()
        optimizer.step()
        peaks.append(float(metrics["balance"]) / criterion.weight(given))
    assert peaks[-1] < peaks[0] - 0.02
    assert peaks[-1] < 1.1


def test_corrections_move_against_the_load_and_by_the_rate() -> None:
    network, given = model(rule=SigmoidTop(), correction=correction(4)), batch(4)
    with torch.no_grad():
        for layer in network.layers:
            layer.channel.router.correction.dense_weight().zero_()
    with record(network) as records:
        Balanced().loss(network, given, normaliser=1.0)
    Balanced(rate=0.01).loss(network, given, normaliser=1.0)
    for path, layer in zip(records, network.layers, strict=True):
        share = load(records[path][0], given.segments >= 0)
        moved = layer.channel.router.correction.dense_weight()
        torch.testing.assert_close(moved, 0.01 * torch.sign(0.25 - share))


def test_models_without_experts_and_negative_weights_are_refused() -> None:
    with pytest.raises(SelectionError):
        Balanced().loss(toys.toy("plain"), batch(1), normaliser=1.0)
    with pytest.raises(UnsupportedError):
        Balanced(balance=-1)
