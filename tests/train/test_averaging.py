"""Averages against torch's own, closed forms and a noisy descent; they resume bit for bit and give weights back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from train import small_run
from train.test_loop import Spoilt, adapters, spoilt_loss
from train.test_resume import fingerprint, stopped_at

from almanac.core.errors import FileFormatError, ShapeError, TrainingError, UnsupportedError
from almanac.core.value import Value
from almanac.train.averaging.average import AverageRule, Averaging, State, adopt, averaged, mean_of
from almanac.train.averaging.ema import Ema
from almanac.train.averaging.lawa import Lawa
from almanac.train.averaging.uniform import Uniform
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train

RULES: dict[str, AverageRule] = {"ema": Ema(decay=0.9), "uniform": Uniform(start=0.4), "lawa": Lawa(last=3, every=2)}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def path_of_weights(steps: int = 20) -> list[dict[str, Tensor]]:
    dice = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(3, 4, generator=dice), "b": torch.randn(4, generator=dice)} for _ in range(steps)]


def after(rule: AverageRule, path: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    state: State = {}
    for step, weights in enumerate(path, 1):
        rule.take(state, weights, (step, len(path)))
    return rule.mean(state)


def test_each_rule_is_its_closed_form() -> None:
    path = path_of_weights()
    stacked = torch.stack([weights["w"] for weights in path]).double()
    shares = torch.zeros(20, dtype=torch.float64)
    shares[0] = 1.0
    for n in range(1, 20):
        decay = min(0.9, (1 + n) / (10 + n))
        shares *= decay
        shares[n] = 1 - decay
    expected = {
        "ema": (shares[:, None, None] * stacked).sum(0),
        "uniform": stacked[8:].mean(0),  # steps 9 to 20: from 0.4 of the run on
        "lawa": stacked[[15, 17, 19]].mean(0),  # after steps 16, 18 and 20
    }
    for name, rule in RULES.items():
        torch.testing.assert_close(after(rule, path)["w"].double(), expected[name], atol=1e-6, rtol=0)
        assert Value.from_dict(rule.to_dict()) == rule
    assert after(Uniform(start=0.0, every=20), path)["b"].equal(path[-1]["b"])
    assert after(Lawa(last=3, every=21), path) == {}


def test_uniform_is_torchs_averaged_model() -> None:
    network, state = nn.Linear(3, 4), State()
    peer = AveragedModel(network)
    for step, weights in enumerate(path_of_weights(), 1):
        adopt(network, {"weight": weights["w"].T, "bias": weights["b"]})
        peer.update_parameters(network)
        Uniform(start=0.0).take(state, dict(network.named_parameters()), (step, 20))
    for name, mean in Uniform().mean(state).items():
        torch.testing.assert_close(mean, peer.module.get_parameter(name).detach(), atol=1e-6, rtol=0)


def test_an_average_is_float32_and_a_copy() -> None:
    weights = {"w": torch.ones(4, dtype=torch.bfloat16)}
    for rule in (Ema(), Uniform(start=0.0), Lawa(every=1)):
        state: State = {}
        rule.take(state, weights, (1, 10))
        weights["w"].add_(1)
        assert rule.mean(state)["w"].dtype == torch.float32
        assert not torch.equal(rule.mean(state)["w"], weights["w"].float())


@every_rule
def test_averages_cut_the_noise_of_a_constant_rate(rule: AverageRule) -> None:
    """SGD on a quadratic with noise: the mean of positions is nearer to the minimum than the last position is."""
    dice = torch.Generator().manual_seed(1)
    x, state, wide = torch.zeros(2000), State(), rule.with_(**({"decay": 0.99} if isinstance(rule, Ema) else {}))
    for step in range(1, 401):
        x = x - 0.3 * ((x - 1) + torch.randn(2000, generator=dice))
        wide.take(state, {"x": x}, (step, 400))
    last, mean = float((x - 1).square().mean()), float((wide.mean(state)["x"] - 1).square().mean())
    assert mean < (0.6 if isinstance(rule, Lawa) else 0.1) * last


SHORT: dict[str, Any] = {"steps": 12, "step_tokens": 64, "save_every": 4}


@every_rule
def test_a_resumed_average_is_the_uninterrupted_one(rule: AverageRule, tmp_path: Path) -> None:
    found = []
    for name in ("whole", "cut"):
        if name == "cut":
            stopped_at(tmp_path / name, 7, **SHORT, keepers=(Averaging(rule),))
        kept = Averaging(rule)
        small_run.run(tmp_path / name, listeners=(kept,), **SHORT)
        found.append(kept.weights())
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "cut")
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_forgotten_average_is_found_out(tmp_path: Path) -> None:
    stopped_at(tmp_path, 7, **SHORT, keepers=(Averaging(Ema()),))
    for wrong in ((), (Averaging(Ema(), name="other"),)):
        with pytest.raises(FileFormatError, match="holds the memory of"):
            small_run.run(tmp_path, listeners=wrong, **SHORT)
    with pytest.raises(TrainingError, match="one name"):
        small_run.run(listeners=(Averaging(Ema()), Averaging(Uniform())), **SHORT)


def test_looking_at_an_average_changes_nothing_of_the_run() -> None:
    """Swapped in after every step and evaluated, the run ends as without; within the block the weights are the average."""
    plain, watched, kept, seen = small_run.adapted(), small_run.adapted(), Averaging(Ema(decay=0.8)), 0
    small_run.run(network=plain, **SHORT)

    def look(event: Event) -> None:
        nonlocal seen
        if isinstance(event, StepDone):
            with averaged(watched, kept.weights()) as network:
                own = dict(network.named_parameters())
                seen += all(torch.equal(own[name], mean) for name, mean in kept.weights().items())

    small_run.run(network=watched, listeners=(kept, look), **SHORT)
    assert seen == 12
    expected = adapters(plain)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapters(watched).items())
    assert kept.weights().keys() == expected.keys()  # what learns alone


def test_a_step_without_update_is_not_taken_in() -> None:
    network, kept = small_run.adapted(), Averaging(Uniform(start=0.0))
    chosen = small_run.settings(steps=4, micro_tokens=512)
    batches = chosen.batches(small_run.doubling_rows())
    criterion = Spoilt(spoil=spoilt_loss(float("nan"), {2, 4}))
    train(network, batches, settings=chosen, criterion=criterion, listeners=(kept,))
    assert int(kept.state()["count"]) == 2


def test_checkpoints_are_averaged_and_others_refused() -> None:
    path = path_of_weights(3)
    torch.testing.assert_close(mean_of(path)["b"], torch.stack([weights["b"] for weights in path]).mean(0))
    for wrong in ([], [path[0], {"w": path[1]["w"]}], [path[0], {"w": path[1]["w"].T, "b": path[1]["b"]}]):
        with pytest.raises(ShapeError):
            mean_of(wrong)
    network = nn.Linear(4, 3)
    before = network.weight.detach().clone()
    with pytest.raises(ShapeError, match="not a weight"):
        adopt(network, {"weight": path[0]["w"], "other": path[0]["b"]})
    assert torch.equal(network.weight, before)
    with pytest.raises(TrainingError, match="no weights yet"):
        Averaging(Ema()).weights()
    for make in (lambda: Ema(decay=1.0), lambda: Uniform(start=1.0), lambda: Lawa(last=0)):
        with pytest.raises(UnsupportedError):
            make()
