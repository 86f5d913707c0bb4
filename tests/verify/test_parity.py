"""The measures and gates of parity: a closed form, a planted difference, and nothing that is not a number passes."""

from __future__ import annotations

import math

import pytest
import torch
from language_model import small

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import LOSS_BOUNDS, Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import ParityError
from almanac.verify.parity import EQUAL, require_equal, require_within
from almanac.verify.probes import MAX_PROBE_TOKENS, TEXTS, Divergence, divergence, probe_ids, probe_logits


def test_divergence_is_its_definition() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    found = divergence([p.log().unsqueeze(0), p.log().unsqueeze(0)], [q.log().unsqueeze(0), p.log().unsqueeze(0)])
    assert found.mean_kl == pytest.approx(0.5 * (0.5 * math.log(2) - 0.25 * math.log(2)), rel=1e-6)
    assert found.largest == pytest.approx(math.log(2), rel=1e-6)
    assert found.scale == pytest.approx(math.log(4), rel=1e-6)
    assert found.relative == pytest.approx(0.5, rel=1e-6)
    assert found.agreement == 0.5
    assert set(found.to_dict()) == {"largest", "scale", "relative", "mean_kl", "agreement"}


def test_a_shift_of_all_logits_is_no_loss_but_a_difference() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = divergence([logits], [logits + 1.0])
    assert found.mean_kl == pytest.approx(0.0, abs=1e-6)
    assert found.largest == pytest.approx(1.0, rel=1e-5)
    same = divergence([logits], [logits])
    assert (same.largest, same.mean_kl, same.agreement, same.relative) == (0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_that_is_no_number_passes_a_gate(value: float) -> None:
    logits = torch.zeros(2, 5)
    broken = logits.clone()
    broken[1, 2] = value
    for before, after in ((logits, broken), (broken, logits), (broken, broken)):
        found = divergence([before], [after])
        if before is after and value == float("-inf"):
            continue  # a forbidden token, equally forbidden
        with pytest.raises(ParityError):
            require_within(found, 1e9, "A step")
    with pytest.raises(ParityError):
        require_equal(divergence([logits], [broken]), "a step")


def test_the_gates_are_at_their_bounds() -> None:
    def found(relative: float, kl: float) -> Divergence:
        return Divergence(largest=relative * 8.0, scale=8.0, mean_kl=kl, agreement=1.0)

    require_equal(found(EQUAL, 9.0), "a step")
    require_within(found(9.0, 0.3), 0.3, "A step")
    with pytest.raises(ParityError, match="After a step"):
        require_equal(found(EQUAL * 1.001, 0.0), "a step")
    with pytest.raises(ParityError, match="A step costs"):
        require_within(found(0.0, 0.3001), 0.3, "A step")


def test_probes_are_what_the_tokenizer_makes_of_the_texts() -> None:
    lm = small.language_model("llama")
    rows = probe_ids(lm)
    assert len(rows) == len(TEXTS)
    assert all(row == lm.tokenizer.encode(text)[:MAX_PROBE_TOKENS] for row, text in zip(rows, TEXTS, strict=True))
    lm.network.train()
    first, again = probe_logits(lm, rows), probe_logits(lm, rows)
    assert lm.network.training, "probing leaves the mode as it was"
    assert all(a.equal(b) and a.dtype == torch.float32 for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("format", ["Q8_0", "Q5_1", "Q4_0"])
def test_every_step_is_recorded_with_its_bound(format: str) -> None:
    lm = small.language_model("llama", Lora(rank=2))
    lm.quantize(Blocks(format=format))
    lm.fold()
    steps = lm.provenance["parity"]
    assert [step["step"] for step in steps] == ["compress.quantize.blocks", "fold"]
    assert steps[0]["bound"] == LOSS_BOUNDS[format]
    assert 0 < steps[0]["mean_kl"] <= LOSS_BOUNDS[format]
    assert steps[1]["relative"] <= EQUAL


def test_fewer_bits_cost_more() -> None:
    """The order that the bounds assume, measured."""
    costs = []
    for technique in (Blocks(format="Q8_0", targets="**"), Int8(), Blocks(format="Q5_1"), Blocks(format="Q4_0")):
        lm = small.language_model("llama")
        lm.quantize(technique, bound=5.0)
        costs.append(lm.provenance["parity"][0]["mean_kl"])
    assert costs[0] < costs[2] < costs[3]
    assert costs[1] < costs[2]


def test_a_bound_may_be_tightened_and_then_holds() -> None:
    lm = small.language_model("llama")
    lm.quantize(Blocks(format="Q4_0"), bound=5.0)
    cost = lm.provenance["parity"][0]["mean_kl"]
    for bound, passes in ((cost * 1.01, True), (cost * 0.99, False)):
        other = small.language_model("llama")
        if passes:
            other.quantize(Blocks(format="Q4_0"), bound=bound)
        else:
            with pytest.raises(ParityError):
                other.quantize(Blocks(format="Q4_0"), bound=bound)
            assert not other.plan.techniques
            assert other.provenance == {"source": "toy"}
