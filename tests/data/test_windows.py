"""Windows: every token a target once, documents apart, an order that no number of processes changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.errors import FileFormatError, RequestError
from almanac.data.windows import Share, WindowBatches, batch_of


@dataclass(frozen=True)
class Stream:
    """Tokens in memory, each its own place, so that every one can be told."""

    ends: Tensor
    digest: str = "d"

    @property
    def num_tokens(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, length: int) -> Tensor:
        return torch.arange(start, start + length)


STREAM = Stream(torch.tensor([5, 6, 30, 31, 32, 75, 101]))


def batches(**changes: object) -> WindowBatches:
    settings = {"time": 6, "rows": 4, "micro_rows": 3, "seed": 7} | changes
    return WindowBatches(STREAM, **settings)  # type: ignore[arg-type]


def starts_of(micro: list[Tokens]) -> list[int]:
    return [int(row[0]) for batch in micro for row in batch.tokens]


def test_every_token_is_a_target_once_but_the_first_of_each_document() -> None:
    """101 tokens: 20 windows of 6 overlapping by one, 5 steps of 4."""
    found = Counter[int]()
    steps = list(batches())
    assert len(steps) == len(batches()) == 5
    for micro in steps:
        assert [batch.tokens.shape for batch in micro] == [(3, 6), (1, 6)]
        for batch in micro:
            assert not batch.loss_mask[:, 0].any()
            found.update(batch.tokens[batch.loss_mask].tolist())
    firsts = {0, *STREAM.ends[:-1].tolist()}
    assert found == Counter(set(range(101)) - firsts)


def test_documents_are_told_apart() -> None:
    batch = batch_of(STREAM, [3, 28, 50], 6)
    assert batch.tokens.tolist() == [[3, 4, 5, 6, 7, 8], [28, 29, 30, 31, 32, 33], [50, 51, 52, 53, 54, 55]]
    assert batch.segments.tolist() == [[0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 3, 3], [0] * 6]
    assert batch.positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert batch.loss_mask.tolist() == [[False, True, False, False, True, True], [False, True] + [False] * 3 + [True],
                                        [False] + [True] * 5]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_order_is_the_same_for_any_number_of_processes(ranks: int) -> None:
    alone = [starts_of(micro) for micro in batches(steps=12)]
    parts = [[starts_of(micro) for micro in batches(steps=12, share=Share(rank, ranks))] for rank in range(ranks)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == alone
    assert {batches(share=Share(rank, ranks)).digest() for rank in range(ranks)} == {batches().digest()}


def test_epochs_are_other_orders_and_seeds_too() -> None:
    def epoch(index: int, seed: int = 7) -> list[int]:
        run = batches(steps=10, seed=seed)
        return list(chain(*[starts_of(micro) for micro in run][5 * index : 5 * index + 5]))

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(0, 100, 5))
    assert len({tuple(epoch(0)), tuple(epoch(1)), tuple(epoch(0, seed=8))}) == 3


@pytest.mark.parametrize("done", [0, 1, 5, 7, 12])
def test_it_goes_on_where_it_was(done: int) -> None:
    run, again = batches(steps=12), batches(steps=12)
    for _ in range(done):
        next(run)
    again.load(run.state())
    assert [starts_of(micro) for micro in again] == [starts_of(micro) for micro in run]


def test_a_state_of_another_run_is_refused() -> None:
    for state in (
        {"seed": 8, "epoch": 0, "position": 1},
        {"seed": 7, "epoch": 1, "position": 1},
        {"seed": 7, "epoch": 2, "position": 13},
    ):
        with pytest.raises(FileFormatError):
            batches(steps=12).load(state)


@pytest.mark.parametrize(
    "changes",
    [{"time": 1}, {"rows": 0}, {"rows": 21}, {"micro_rows": 0}, {"share": Share(0, 3)}, {"share": Share(2, 2)}],
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        batches(**changes)


def test_the_digest_is_of_all_that_decides() -> None:
    changed = [{}, {"seed": 8}, {"time": 5}, {"rows": 5}, {"steps": 9}]
    assert len({batches(**changes).digest() for changes in changed}) == len(changed)
