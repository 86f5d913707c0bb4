"""Windows of several stores: shares exact at any time, an order that no number of processes changes, exact resume."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from almanac.core.errors import FileFormatError, RequestError
from almanac.data.mixture.sampler import MixtureBatches
from almanac.data.windows import Share
from almanac.files.token_store import TokenStore, write_token_store

TIME = 9
WEIGHTS = {"a": 3.0, "b": 1.0, "c": 0.5}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    """Three stores whose tokens tell which they are: 1000 and on, 2000 and on, 3000 and on."""
    folder = tmp_path_factory.mktemp("stores")
    sizes = {"a": 200, "b": 90, "c": 50}
    made = {}
    for number, (name, size) in enumerate(sizes.items(), 1):
        first, half = 1000 * number, 1000 * number + size // 2
        parts = [[range(first, half)], [range(half, first + size)]]
        made[name] = write_token_store(folder / name, parts, vocab_size=5000)
    return made


def made(stores: dict[str, TokenStore], **changes: Any) -> MixtureBatches:
    return MixtureBatches(stores, WEIGHTS, **({"time": TIME, "rows": (8, 3), "steps": 40, "seed": 5} | changes))


def rows(batches: MixtureBatches) -> list[list[list[int]]]:
    return [[row for batch in step for row in batch.tokens.tolist()] for step in batches]


def test_each_source_has_its_share_at_any_time(stores: dict[str, TokenStore]) -> None:
    count: Counter[int] = Counter()
    for number, step in enumerate(rows(made(stores)), 1):
        count.update(row[0] // 1000 for row in step)
        for source, weight in zip((1, 2, 3), WEIGHTS.values(), strict=True):
            assert abs(count[source] - 8 * number * weight / 4.5) < 1.5
    assert count.total() == 320


def test_a_source_is_gone_through_once_an_epoch_and_in_another_order(stores: dict[str, TokenStore]) -> None:
    starts = [row[0] for step in rows(made(stores)) for row in step if row[0] < 2000]
    windows = 199 // (TIME - 1)
    assert sorted(starts[:windows]) == sorted(starts[windows : 2 * windows]) == list(range(1000, 1192, 8))
    assert starts[:windows] != starts[windows : 2 * windows]
    batches = made(stores)
    list(batches)
    assert batches.epochs["a"] == pytest.approx(len(starts) / windows)


def test_processes_share_the_same_steps(stores: dict[str, TokenStore]) -> None:
    whole = rows(made(stores))
    for ranks in (2, 4):
        parts = [rows(made(stores, share=Share(rank, ranks))) for rank in range(ranks)]
        assert [[row for part in step for row in part] for step in zip(*parts, strict=True)] == whole
    assert rows(made(stores, rows=(8, 8))) == whole and rows(made(stores, seed=6)) != whole


def test_a_run_goes_on_where_it_was(stores: dict[str, TokenStore]) -> None:
    whole = rows(made(stores))
    first = made(stores)
    for _ in range(17):
        next(first)
    state = first.state()
    second = made(stores)
    second.load(state)
    assert rows(second) == whole[17:] and second.state()["position"] == 40
    assert first.digest() == second.digest() != made(stores, time=5).digest()
    for wrong in (state | {"seed": 1}, state | {"position": 18}, state | {"counts": {"a": 1, "b": 0, "d": 0}},
                  state | {"counts": {"a": 0, "b": 136, "c": 0}}, state | {"position": 41}):  # fmt: skip
        with pytest.raises(FileFormatError):
            made(stores).load(wrong)


def test_windows_see_their_own_document_alone(stores: dict[str, TokenStore]) -> None:
    (step,) = made(stores, steps=1, rows=(200, 200))
    for batch in step:
        for tokens, mask, segments in zip(batch.tokens, batch.loss_mask, batch.segments, strict=True):
            breaks = torch.diff(segments, prepend=segments[:1]) > 0
            half = {1: 1100, 2: 2045, 3: 3025}[int(tokens[0]) // 1000]
            assert (tokens[breaks] == half).all() and not mask[0] and not mask[breaks].any()


def test_what_cannot_be_mixed_is_refused(stores: dict[str, TokenStore]) -> None:
    for weights in ({"a": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.0}, {"a": 1.0, "b": -1.0, "c": 1.0}):
        with pytest.raises(RequestError):
            MixtureBatches(stores, weights, time=TIME, rows=(8, 8), steps=1)
    for wrong in ({"rows": (9, 3), "share": Share(0, 2)}, {"time": 1}, {"steps": 0}, {"time": 60}):
        with pytest.raises(RequestError):
            made(stores, **wrong)
    without = MixtureBatches(stores, {"a": 1.0, "b": 0.0, "c": 0.0}, time=TIME, rows=(2, 2), steps=3)
    assert {row[0] // 1000 for step in rows(without) for row in step} == {1}
