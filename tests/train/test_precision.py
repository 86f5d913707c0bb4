"""Precision: small gradients are lost without a scale and kept with one; overflows lose nothing; runs resume; 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from train import small_run
from train.test_loop import Spoilt, adapters, recorded, spoilt_gradient, steps_of
from train.test_resume import fingerprint, stopped_at

from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import UnsupportedError
from almanac.core.value import Value
from almanac.nn.linear import Linear
from almanac.train.criterion import Criterion
from almanac.train.events.event import Event, Started
from almanac.train.float8 import BACKWARD, FORWARD, Float8, fits, float8_linear, float8_maps, to_float8
from almanac.train.loop import train
from almanac.train.optimizers.optimizer import Optimizer
from almanac.train.precision import BFloat16, Float16, Full, LossScale, Precision
from almanac.train.schedules.linear import Linear as Line
from almanac.train.settings import TrainSettings

HALF = Float16(first_scale=2.0**16, patience=8)
STATIC_ONE = Float16(first_scale=1.0, growth=1.0)


@dataclass(frozen=True, kw_only=True)
class Descent(Optimizer):
    """Steps that are the gradients themselves."""

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters.values(), lr=0.0)

    def state_bytes(self, parameters: Any) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Faint(Criterion):
    """A loss so small that its gradients lie below float16's smallest number."""

    size: float = 1e-6

    def weight(self, batch: Any) -> float:
        return 1.0

    def tokens(self, batch: Any) -> int:
        return len(batch)

    def loss(self, network: nn.Module, batch: Tensor, *, normaliser: float) -> tuple[Tensor, dict[str, Tensor]]:
        return network(batch).float().square().mean() * self.size / normaliser, {}


class OneBatch:
    """The same rows at every step."""

    def __init__(self, rows: Tensor, steps: int) -> None:
        self.rows, self.steps, self.position = rows, steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Tensor]]:
        return self

    def __next__(self) -> list[Tensor]:
        self.position += 1
        return [self.rows]

    def state(self) -> dict[str, int]:
        return {"epoch": 0, "position": self.position}

    def load(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def digest(self) -> str:
        return "one"


def gradient_of(precision: Precision) -> Tensor:
    """The gradients of one step through two maps, read off the weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    settings = TrainSettings(
        learning_rate=1e6,
        warmup=0.0,
        schedule=Line(floor=1.0),
        optimizer=Descent(),
        clip_norm=None,
        precision=precision,
    )
    train(network, OneBatch(torch.randn(64, 16), 1), settings=settings, criterion=Faint())
    return torch.cat([(a - b).flatten() for a, b in zip(before, network.parameters(), strict=True)]).detach()


def test_float16_without_a_scale_loses_small_gradients_and_with_one_keeps_them() -> None:
    exact, without, scaled, wide = (gradient_of(item) for item in (Full(), STATIC_ONE, Float16(), BFloat16()))
    alive = exact.abs() > 0.05 * exact.abs().max()
    assert float((without[alive] == 0).float().mean()) > 0.9
    assert float((scaled[alive] == 0).float().mean()) == 0
    assert float((scaled - exact).norm() / exact.norm()) < 5e-3
    assert float((wide - exact).norm() / exact.norm()) < 3e-2


def test_the_scale_moves_as_torchs_scaler_does() -> None:
    """Overflows in the first steps, in the middle and two in a row; growth after 4 good steps."""
    bad = {0, 1, 2, 9, 20, 21}
    ours, peer = LossScale(2.0**10, 2.0, 4), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(40):
        weight.grad = torch.tensor([math.inf if step in bad else 1.0])
        peer.scale(torch.ones(()))
        peer.step(optimizer)
        peer.update()
        ours.shrink() if step in bad else ours.grow()
        assert ours.value == peer.get_scale(), step


def test_a_scale_ends_at_one_and_a_static_one_never_moves() -> None:
    scale = LossScale(4.0, 2.0, 1)
    assert [scale.shrink() for _ in range(3)] == [True, True, False] and scale.value == 1.0
    static = LossScale(8.0, 1.0, 1)
    static.grow()
    assert not static.shrink() and static.value == 8.0


def weights_after(precision: Precision) -> tuple[dict[str, Tensor], list[Any], float]:
    """Adapters, steps and the last scale of a short run."""
    events: list[Event] = []
    network = small_run.adapted(dropout=0.1)
    small_run.run(network=network, listeners=(recorded(events),), precision=precision, steps=5)
    assert isinstance(events[0], Started)
    return adapters(network), steps_of(events), events[0].snapshot().facts["scale"]["value"]


def test_an_overflow_costs_neither_data_nor_dice() -> None:
    """From far too large a scale the first step is taken again and again; all after it is as if it had begun right."""
    high, steps, scale = weights_after(Float16(first_scale=2.0**60))
    assert 2.0**10 < scale < 2.0**40
    assert [step.skipped for step in steps] == [None] * 5
    right, _, _ = weights_after(Float16(first_scale=scale))
    assert all(torch.equal(right[name], high[name]) for name in high)
    plain, exact, _ = weights_after(Full())
    assert steps[-1].loss == pytest.approx(exact[-1].loss, rel=0.02)
    assert not all(torch.equal(plain[name], high[name]) for name in high)


def test_a_fault_of_its_own_is_skipped_and_leaves_the_scale() -> None:
    network, events = small_run.adapted(), []
    chosen = small_run.settings(steps=6, micro_tokens=512, precision=Float16(first_scale=2.0**4))
    bad = set(range(3, 3 + 5))  # the third step and its four repeats with 8, 4, 2, 1
    criterion = Spoilt(spoil=spoilt_gradient(math.nan, bad))
    batches = chosen.batches(small_run.doubling_rows())
    scales: list[float] = []

    def listener(event: Event) -> None:
        events.append(event)
        if steps_of([event]):
            scales.append(events[0].snapshot().facts["scale"]["value"])

    train(network, batches, settings=chosen, criterion=criterion, listeners=(listener,))
    assert [step.skipped for step in steps_of(events)] == [None, None, "gradient", None, None, None]
    assert scales == [16.0] * 6


SHORT = {"steps": 12, "step_tokens": 64, "save_every": 4}


@pytest.mark.parametrize("precision", [BFloat16(), HALF], ids=["bfloat16", "float16"])
def test_half_precision_learns_as_full_does_and_resumes_bit_for_bit(precision: Precision, tmp_path: Path) -> None:
    losses = {}
    for name, item in (("half", precision), ("full", Full())):
        events: list[Event] = []
        small_run.run(tmp_path / name, listeners=(recorded(events),), precision=item, **SHORT)
        losses[name] = [step.loss for step in steps_of(events)]
    assert losses["half"] != losses["full"]
    assert losses["half"] == pytest.approx(losses["full"], rel=0.02)
    stop_and_go(tmp_path / "cut", precision)
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "half")


def stop_and_go(folder: Path, precision: Precision) -> None:
    stopped_at(folder, 7, **{**SHORT, "precision": precision})
    small_run.run(folder, precision=precision, **SHORT)


def test_a_forgotten_scale_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run.run(tmp_path / "whole", precision=HALF, **SHORT)
    monkeypatch.setattr("almanac.train.training.replace", lambda scale, **facts: scale)
    stop_and_go(tmp_path / "cut", HALF)
    assert fingerprint(tmp_path / "cut")["facts"] != fingerprint(tmp_path / "whole")["facts"]


def test_weights_and_moments_stay_in_float32(tmp_path: Path) -> None:
    kinds: dict[str, set[torch.dtype]] = {"products": set()}
    network = small_run.adapted()
    maps = [module for module in network.modules() if isinstance(module, Linear)]
    maps[0].register_forward_hook(lambda module, inputs, output: kinds["products"].add(output.dtype))
    snapshots: list[Any] = []

    def listener(event: Event) -> None:
        snapshots.append(event.snapshot() if steps_of([event]) == [] and not snapshots else None)

    small_run.run(tmp_path, network=network, listeners=(listener,), precision=BFloat16(), steps=2)
    assert kinds["products"] == {torch.bfloat16}
    saved = snapshots[0].tensors
    assert {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()} == {torch.float32}


def test_values_survive_json_and_odd_scales_are_refused() -> None:
    for precision in (Full(), BFloat16(), HALF, Float8()):
        settings = TrainSettings(precision=precision)
        assert Value.from_dict(settings.to_dict()) == settings
    assert "precision" not in TrainSettings().to_dict()
    for wrong in (
        {"first_scale": 1000.0},
        {"growth": 0.5},
        {"growth": 3.0},
        {"patience": 0},
        {"first_scale": math.inf},
    ):
        with pytest.raises(UnsupportedError):
            Float16(**wrong)


def test_eight_bits_are_refused_where_the_device_has_none(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cpu has no products in 8 bits"):
        small_run.run(tmp_path / "run", precision=Float8(), steps=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [FORWARD, BACKWARD])
def test_codes_times_scale_are_the_values_to_half_a_step(kind: torch.dtype) -> None:
    values = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 1e-3
    codes, scale = to_float8(values, kind)
    back = codes.float() * scale
    half_step = 2.0 ** -(4 if kind == FORWARD else 3)
    smallest = float(torch.finfo(kind).smallest_normal * scale)
    assert bool(((back - values).abs() <= half_step * values.abs().clamp(min=smallest)).all())
    assert codes.float().abs().max() == torch.finfo(kind).max
    assert not to_float8(torch.zeros(3), kind)[0].float().any()


@pytest.mark.parametrize("rows", [(5,), (32,), (3, 7)])
def test_the_product_in_8_bits_and_its_gradients(rows: tuple[int, ...]) -> None:
    """The arithmetic itself, which torch also has on the processor: 4 % of random errors, and exact where codes are."""
    dice = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(shape, generator=dice) for shape in ((*rows, 32), (48, 32), (48,)))
    g = torch.randn(*rows, 48, generator=dice)
    found = []
    for product in (float8_linear, nn.functional.linear):
        leaves = [item.clone().requires_grad_() for item in (x, w, b)]
        y = product(*leaves)
        y.backward(g.to(y.dtype))
        found.append([y.detach().float(), *(leaf.grad for leaf in leaves)])
    for ours, exact, bound in zip(*found, (0.06, 0.12, 0.12, 0.02), strict=True):
        assert ours.shape == exact.shape and float((ours - exact).norm() / exact.norm()) < bound
    powers = 2.0 ** torch.randint(-2, 3, (16, 32), generator=dice)
    powers[0, 0] = 448 / 2**4  # makes the scale a power of two
    eye = torch.eye(32) * 448
    torch.testing.assert_close(float8_linear(powers, eye).float(), 448 * powers, rtol=2**-8, atol=0)


def test_a_map_to_the_vocabulary_stays_wide() -> None:
    for axes, expected in ((("ffn", "embed"), True), (("vocab", "embed"), False)):
        assert fits(Linear.Spec(in_features=32, out_features=64, axes=axes).build()) == expected
    assert not fits(Linear.Spec(in_features=32, out_features=65).build())


def test_maps_that_fit_run_in_8_bits_and_no_trace_is_left() -> None:
    network = toys.toy("plain", Int8())
    for path in ("layers.0.mixer.q", "layers.1.channel.up"):
        leaf = network.get_submodule(path)
        leaf.set_weight(nn.Parameter(leaf.dense_weight().detach().clone()))
    names = set(network.state_dict())
    tokens = toys.tokens(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = network(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16), float8_maps(network) as paths:
        assert paths == [
            "layers.0.mixer.q",
            "layers.1.channel.up",
        ]  # neither stored weights nor the map to the vocabulary
        rough = network(tokens)
    assert 0 < float((rough - exact).detach().norm() / exact.detach().norm()) < 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(tokens), exact)
    assert set(network.state_dict()) == names
