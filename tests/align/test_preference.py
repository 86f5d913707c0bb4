"""Preference tuning on a toy: the preferred answers win, against the model as it was, and faults leave no trace."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from docs.toy_model import language_model

from almanac.adapt.lora import Lora
from almanac.align.preference import (
    Dpo,
    Pair,
    PairBatches,
    pair_rows,
    prefer,
    preference_batches,
    starts_at_reference,
    with_reference,
)
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import PreflightError, RequestError, SelectionError
from almanac.language_model.model import LanguageModel
from almanac.train.events.event import Event, StepDone
from almanac.train.run_folder import read_run
from almanac.train.settings import TrainSettings

PAIRS = [
    Pair("What is the pump for?", "cooling water", "the archive"),
    Pair("Who signs?", "the head", "noon, or the lever of the lift"),
    Pair([{"role": "user", "content": "Which rooms are closed?"}], "the archive", "12"),
    Pair(
        [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "the filter"},
            {"role": "user", "content": "When is noon?"},
        ],
        "at 12",
        "cooling water",
    ),
]


def settings(**changes: Any) -> TrainSettings:
    given = {"learning_rate": 1e-2, "steps": 30, "step_tokens": 512, "micro_tokens": 512, "save_every": 10, **changes}
    return TrainSettings(**given)


def rows_of(lm: LanguageModel, *, micro_tokens: int = 512) -> list[Any]:
    return with_reference(lm.network, pair_rows(lm, PAIRS, max_tokens=256)[0], micro_tokens=micro_tokens)


def alone(lm: LanguageModel, row: Any) -> float:
    """Log-probability of a row's targets, token by token."""
    tokens = torch.tensor([row.tokens])
    with torch.no_grad():
        laws = lm.network(tokens)[0].log_softmax(-1)
    return sum(float(laws[at - 1, row.tokens[at]]) for at in range(1, len(row)) if row.mask[at])


def test_only_the_last_answer_is_scored() -> None:
    lm = language_model()
    rows, finding = pair_rows(lm, PAIRS, max_tokens=256)
    for pair, row in zip(PAIRS, rows, strict=True):
        for answer, side in ((pair.chosen, row.chosen), (pair.rejected, row.rejected)):
            ids = [token for token, is_target in zip(side.tokens, side.mask, strict=True) if is_target]
            assert lm.tokenizer.decode(ids, skip_special_tokens=False) == f"{answer}<|im_end|>"
    assert finding.detail == "all 4 pairs are used"
    short, finding = pair_rows(lm, PAIRS, max_tokens=min(len(row) // 2 for row in rows))
    assert len(short) == 1 and "3 of 4 pairs were left out" in finding.detail


@pytest.mark.parametrize("micro_tokens", [1, 150, 10_000])
def test_the_reference_is_the_model_as_it_was(micro_tokens: int) -> None:
    lm = language_model()
    rows = rows_of(lm, micro_tokens=micro_tokens)
    for row in rows:
        assert row.reference == pytest.approx((alone(lm, row.chosen), alone(lm, row.rejected)), abs=1e-3)
    batches = preference_batches(rows, micro_tokens=micro_tokens)
    assert sum(batch.num_pairs for batch in batches) == 4
    total = sum(Dpo(beta=0.3).loss(lm.network, batch, normaliser=4)[0].item() for batch in batches)
    assert total == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("stored", [False, True], ids=["dense", "int8"])
def test_preferred_answers_win(stored: bool) -> None:
    lm = language_model()
    if stored:
        lm.attach(Int8())
    before, base = rows_of(lm), toys.tensors_of(lm.network)
    losses: list[float | None] = []

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            assert set(event.metrics) == {"margin", "correct", "chosen", "rejected"}

    torch.manual_seed(0)
    assert prefer(lm, PAIRS, beta=0.2, settings=settings(), on_event=listener) is lm
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] is not None and losses[-1] < 0.3
    for row in before:
        gained = alone(lm, row.chosen) - row.reference[0], alone(lm, row.rejected) - row.reference[1]
        assert gained[0] - gained[1] > 2
    assert [type(step) for step in lm.plan.techniques][-1] is Lora
    assert lm.provenance["steps"][-1]["step"] == "align.preference"
    after = toys.tensors_of(lm.network)
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())


def test_cutting_a_step_into_micro_batches_changes_nothing() -> None:
    lm = language_model()
    rows = rows_of(lm)
    lm.attach(Lora(rank=2))
    learned = {name: item for name, item in lm.network.named_parameters() if item.requires_grad}
    toys.stir(learned.values())
    gradients = []
    for micro_tokens in (1, 160, 10_000):
        lm.network.zero_grad()
        for batch in preference_batches(rows, micro_tokens=micro_tokens):
            Dpo(beta=0.3).loss(lm.network, batch, normaliser=4)[0].backward()
        gradients.append({name: item.grad.clone() for name, item in learned.items()})
    assert all(bool(item.any()) for item in gradients[0].values())
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_every_pair_is_seen_once_an_epoch_and_a_place_is_found_again() -> None:
    rows = rows_of(language_model())
    batches = PairBatches(rows, settings(steps=None, epochs=2, step_tokens=100))
    seen = [batch for step in batches for batch in step]
    assert sum(batch.num_pairs for batch in seen) == 8
    again = PairBatches(rows, settings(steps=None, epochs=2, step_tokens=100))
    next(again)
    state = again.state()
    expected = next(again)
    other = PairBatches(rows, settings(steps=None, epochs=2, step_tokens=100))
    other.load(state)
    assert torch.equal(next(other)[0].rows.tokens, expected[0].rows.tokens)
    assert other.digest() == again.digest() != PairBatches(rows[:3], settings()).digest()


def test_a_run_folder_keeps_what_was_found(tmp_path: Path) -> None:
    prefer(language_model(), PAIRS, settings=settings(steps=2), run_folder=tmp_path / "run")
    found = read_run(tmp_path / "run")["preflight"]
    assert found["reference"]["ok"] and found["preference gradients"]["ok"]
    assert "log 2 is 0.693147" in found["reference"]["detail"]


def test_a_model_that_is_not_its_reference_is_refused() -> None:
    """An adapter that is not at none changes the first loss; nothing of the run is left behind."""
    lm = language_model()
    rows = rows_of(lm)
    lm.attach(Lora(rank=2))
    toys.stir(item for name, item in lm.network.named_parameters() if "lora" in name)
    (batch, *_) = preference_batches(rows, micro_tokens=10_000)
    assert not starts_at_reference(lm.network, batch, criterion=Dpo(beta=1.0)).ok
    for row in rows:  # nor is one whose reference was taken elsewhere
        moved = replace(row, reference=(row.reference[0] + 1, row.reference[1]))
        (batch,) = preference_batches([moved], micro_tokens=10_000)
        assert not starts_at_reference(language_model().network, batch, criterion=Dpo(beta=1.0)).ok


def test_what_cannot_be_learned_is_refused_and_leaves_no_trace() -> None:
    lm = language_model()
    names = set(dict(lm.network.named_parameters()))
    with pytest.raises(RequestError, match="no pairs"):
        prefer(lm, [])
    with pytest.raises(RequestError, match="Pair 1 has two equal answers"):
        prefer(lm, [PAIRS[0], Pair("x", "same", "same")])
    with pytest.raises(RequestError, match="beta"):
        prefer(lm, PAIRS, beta=0.0)
    with pytest.raises(RequestError, match="does not end within 3 tokens"):
        prefer(lm, PAIRS, settings=settings(max_tokens=3))
    with pytest.raises(PreflightError, match="learning_rate"):
        prefer(lm, PAIRS, settings=settings(learning_rate=0.0))
    with pytest.raises(SelectionError):
        prefer(lm, PAIRS, plan=(Lora(rank=2), Lora(rank=4)))
    assert set(dict(lm.network.named_parameters())) == names and not lm.plan.techniques
