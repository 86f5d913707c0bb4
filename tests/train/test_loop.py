"""The loop learns, on every kind of base alike; faults stop before the update; what it borrows it gives back."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from train import small_run

from almanac.adapt.lora import Lora
from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.batch import Tokens
from almanac.core.errors import TrainingError
from almanac.core.site import Leaf
from almanac.core.technique import Technique
from almanac.core.weight import StoredWeight
from almanac.data.collate import Row, padded_batches
from almanac.files.safetensors import open_safetensors
from almanac.nn.stack import Decoder
from almanac.train.checkpoint import Checkpoints
from almanac.train.criterion import NextToken
from almanac.train.events.event import Ended, Event, Started, StepDone
from almanac.train.events.progress import Progress, Reading
from almanac.train.interrupt import stopping_on_signals
from almanac.train.loop import train
from almanac.train.optimizers.adamw import AdamW
from almanac.train.schedules.linear import Linear

BASES: dict[str, tuple[Technique, ...]] = {"dense": (), "int8": (Int8(),), "q4_1": (Blocks(format="Q4_1"),)}
every_base = pytest.mark.parametrize("base", BASES)


@dataclass(frozen=True, kw_only=True)
class Spoilt(NextToken):
    """Next-token prediction in which some micro-batches, counted over the whole run, go wrong."""

    spoil: Callable[[int, Tensor, nn.Module], Tensor]
    count: list[int] = field(default_factory=lambda: [0])

    def loss(self, network: nn.Module, batch: Tokens, *, normaliser: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(network, batch, normaliser=normaliser)
        self.count[0] += 1
        return self.spoil(self.count[0], loss, network), metrics

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "spoilt"}


def adapters(network: Decoder) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


def base_of(network: Decoder) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}


def recorded(into: list[Event]) -> Callable[[Event], None]:
    return into.append


def steps_of(events: list[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def expanded(network: Decoder) -> Decoder:
    """The same network with every stored weight written out."""
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        if isinstance(module, Leaf) and isinstance(module.weight, StoredWeight):
            module.set_weight(nn.Parameter(module.weight.dense(), requires_grad=False))
    return copied


@every_base
@pytest.mark.parametrize("packed", [False, True])
def test_adapters_learn_a_mapping_and_nothing_else_moves(base: str, packed: bool) -> None:
    network, events = small_run.adapted(*BASES[base]), []
    before, frozen = adapters(network), base_of(network)
    small_run.run(network=network, listeners=(recorded(events),), steps=80, packed=packed)
    steps = steps_of(events)
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert steps[-1].metrics["correct"] > 0.5
    assert all(not torch.equal(tensor, before[name]) for name, tensor in adapters(network).items())
    after = base_of(network)
    assert after.keys() == frozen.keys() and all(torch.equal(after[name], frozen[name]) for name in frozen)


@every_base
def test_gradients_are_those_of_the_expanded_base(base: str) -> None:
    network = toys.toy("llama", *BASES[base], Lora(rank=8))
    dense = expanded(network)
    batch = padded_batches(small_run.doubling_rows(8), 256)[0]
    for each in (network, dense):
        NextToken().loss(each, batch, normaliser=batch.num_targets)[0].backward()
    expected = dict(dense.named_parameters())
    compared = 0
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad - expected[name].grad).abs().max() <= 1e-5
            compared += int(parameter.grad.abs().max() > 1e-4)
    assert compared == len(adapters(network))


def test_micro_batches_of_any_size_train_alike() -> None:
    results = []
    for micro_tokens in (16, 32, 128):
        network = small_run.adapted()
        small_run.run(network=network, steps=5, micro_tokens=micro_tokens)
        results.append(adapters(network))
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=0)


def test_same_seed_same_bits() -> None:
    networks = [small_run.adapted(dropout=0.1) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        torch.rand(3)
        small_run.run(network=network, steps=6, seed=seed)
    first, second, third = (adapters(network) for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_what_is_borrowed_is_given_back() -> None:
    network, dice = small_run.adapted(dropout=0.5), torch.get_rng_state()
    seen = []

    def listener(event: Event) -> None:
        seen.append((network.training, torch.are_deterministic_algorithms_enabled()))

    network.eval()
    with torch.no_grad():
        small_run.run(network=network, steps=2, listeners=(listener,))
        assert not torch.is_grad_enabled()
    assert set(seen) == {(True, True)}
    assert not network.training and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_that_somebody_left_are_not_learned_from() -> None:
    clean, left = small_run.adapted(), small_run.adapted()
    for parameter in left.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    for network in (clean, left):
        small_run.run(network=network, steps=2)
    after = adapters(left)
    assert all(torch.equal(tensor, after[name]) for name, tensor in adapters(clean).items())


def test_nothing_to_train_is_an_error() -> None:
    network = toys.toy("llama").requires_grad_(False)
    with pytest.raises(TrainingError, match="No parameter"):
        small_run.run(network=network)


NAN, INF = math.nan, math.inf


def spoilt_loss(value: float, when: set[int]) -> Callable[[int, Tensor, nn.Module], Tensor]:
    return lambda count, loss, network: loss * value if count in when else loss


def spoilt_gradient(value: float, when: set[int]) -> Callable[[int, Tensor, nn.Module], Tensor]:
    """A finite loss whose gradient is not."""

    def spoil(count: int, loss: Tensor, network: nn.Module) -> Tensor:
        if count not in when:
            return loss
        first = next(parameter for parameter in network.parameters() if parameter.requires_grad)
        return loss + _Poison.apply(first, value)

    return spoil


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: float) -> Tensor:
        ctx.value, ctx.shape = value, parameter.shape
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.full(ctx.shape, ctx.value), None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("kind", "reason"), [(spoilt_loss, "loss"), (spoilt_gradient, "gradient")])
def test_a_fault_stops_before_the_update(kind: Any, reason: str, value: float, tmp_path: Path) -> None:
    """R12, 42 faults: a step with a fault leaves weights, moments and statistics bit for bit as they were."""
    network, states, events = small_run.adapted(), [], []
    bad = {1, 3, 4, 6, 8, 10, 12}

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started | StepDone):
            states.append(adapters(network))

    chosen = small_run.settings(steps=12, micro_tokens=512)  # one micro-batch a step
    train(
        network,
        chosen.batches(small_run.doubling_rows()),
        settings=chosen,
        criterion=Spoilt(spoil=kind(value, bad)),
        listeners=(listener,),
        run_folder=tmp_path,
    )
    steps = steps_of(events)
    assert [step.skipped for step in steps] == [reason if step.step in bad else None for step in steps]
    for step, before, after in zip(steps, states[:-1], states[1:], strict=True):
        unchanged = all(torch.equal(before[name], after[name]) for name in before)
        assert unchanged == (step.step in bad)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for step, line in zip(steps, log, strict=True):
        assert (step.gradient_norm is None) == (line["gradient_norm"] is None) == (step.step in bad)
        assert (line["loss"] is None) == (step.step in bad and reason == "loss")
        assert step.smoothed_loss is None or math.isfinite(step.smoothed_loss)
    for generation in Checkpoints(tmp_path / "checkpoints").generations():
        saved = open_safetensors(tmp_path / "checkpoints" / generation / "tensors.safetensors")
        assert all(bool(torch.isfinite(saved[name]).all()) for name in saved if saved[name].is_floating_point())


def test_a_few_faults_cost_little() -> None:
    """R12: within 2 % of the clean run, on answers that are a throw of a die, so that the loss ends on a floor."""
    rng = random.Random(0)
    rows = [
        Row((rng.randrange(1, 90), small_run.ASK, rng.randrange(1, 7), small_run.END), (False, False, True, True))
        for _ in range(800)
    ]
    losses = []
    for when in (set[int](), {9, 20, 31}):
        events: list[Event] = []
        network = small_run.adapted()
        chosen = small_run.settings(steps=50, step_tokens=128, micro_tokens=512, learning_rate=2e-2)
        criterion = Spoilt(spoil=spoilt_gradient(NAN, when))
        train(network, chosen.batches(rows), settings=chosen, criterion=criterion, listeners=(recorded(events),))
        assert sum(step.skipped is not None for step in steps_of(events)) == len(when)
        batch = padded_batches(rows, 10_000)[0]
        with torch.no_grad():
            losses.append(float(NextToken().loss(network.eval(), batch, normaliser=batch.num_targets)[0]))
    assert losses[0] < 0.5 * steps_of(events)[0].loss
    assert abs(losses[1] / losses[0] - 1) < 0.02


@pytest.mark.parametrize("kind", [spoilt_loss, spoilt_gradient])
def test_many_faults_in_a_row_end_the_run(kind: Any, tmp_path: Path) -> None:
    """Without returns to an earlier checkpoint; with them: test_spikes."""
    network, chosen = small_run.adapted(), small_run.settings(micro_tokens=512, max_bad_steps=3, max_rollbacks=0)
    criterion = Spoilt(spoil=kind(NAN, {4, 5, *range(8, 99)}))
    events: list[Event] = []
    with pytest.raises(TrainingError, match=r"3 steps in a row had no finite .* step 10"):
        train(
            network,
            chosen.batches(small_run.doubling_rows()),
            settings=chosen,
            criterion=criterion,
            listeners=(recorded(events),),
            run_folder=tmp_path,
        )
    assert [step.skipped is not None for step in steps_of(events)] == [False] * 3 + [True] * 2 + [False] * 2 + [
        True
    ] * 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in adapters(network).values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_step_loses_nothing(number: int, tmp_path: Path) -> None:
    """The half step is given up and taken again: the ledger, the dice and the weights are as if nothing had been."""

    def interrupt(count: int, loss: Tensor, network: nn.Module) -> Tensor:
        if count == 12:
            os.kill(os.getpid(), number)
        return loss

    def go(folder: Path, criterion: NextToken) -> Any:
        network, chosen = small_run.adapted(dropout=0.2), small_run.settings(steps=12)
        batches = chosen.batches(small_run.doubling_rows())
        outcome = train(network, batches, settings=chosen, criterion=criterion, run_folder=folder)
        return outcome, adapters(network)

    plain = lambda count, loss, network: loss  # noqa: E731
    whole, expected = go(tmp_path / "whole", Spoilt(spoil=plain))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stopped, _ = go(tmp_path / "cut", Spoilt(spoil=interrupt))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert whole.finished and not stopped.finished and 0 < stopped.step < 12
    resumed, weights = go(tmp_path / "cut", Spoilt(spoil=plain))
    assert resumed.finished and all(torch.equal(weights[name], expected[name]) for name in expected)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    strip = lambda lines: [{**json.loads(line), "seconds": 0} for line in lines]  # noqa: E731
    assert strip(logs[0]) == strip(logs[1])


def test_a_second_signal_acts_as_always() -> None:
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt), stopping_on_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)


def test_clipping_is_by_the_global_norm() -> None:
    """With a plain gradient step, the length of the whole update is learning rate times the limit."""
    network, events = small_run.adapted(), []
    before = adapters(network)
    chosen = small_run.settings(
        steps=1, learning_rate=1.0, warmup=0.0, clip_norm=0.01, optimizer=_Descent(), step_tokens=2048, micro_tokens=64
    )
    train(network, chosen.batches(small_run.doubling_rows()), settings=chosen, listeners=(recorded(events),))
    moved = torch.cat([(tensor - before[name]).flatten() for name, tensor in adapters(network).items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    assert steps_of(events)[0].gradient_norm > 0.05


@dataclass(frozen=True, kw_only=True)
class _Descent(AdamW):
    def build(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters.values(), lr=0.0)


def test_adamw_first_step_and_decay() -> None:
    """The first step of Adam is the rate in each coordinate; decay takes its share of matrices and leaves vectors."""
    matrix, vector = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.full((2,), 3.0))
    optimizer = AdamW(weight_decay=0.1, epsilon=1e-12).build({"matrix": matrix, "vector": vector})
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    matrix.grad, vector.grad = torch.tensor([[1.0, -2.0], [5.0, -1e-3]]), torch.tensor([1.0, -1.0])
    optimizer.step()
    signs = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    torch.testing.assert_close(matrix.detach(), 3.0 * (1 - 0.01 * 0.1) - 0.01 * signs)
    torch.testing.assert_close(vector.detach(), 3.0 - 0.01 * signs[0])


def test_events_tell_what_happened() -> None:
    events: list[Event] = []
    readings: list[Reading] = []
    rows = small_run.doubling_rows()
    outcome = small_run.run(
        network=small_run.adapted(), listeners=(recorded(events), Progress(readings.append)), steps=None, epochs=2
    )
    first, *_, last = events
    assert isinstance(first, Started) and isinstance(last, Ended) and last.finished
    steps = steps_of(events)
    assert [step.step for step in steps] == list(range(1, outcome.steps + 1))
    assert sum(step.targets for step in steps) == 2 * sum(sum(row.mask) for row in rows)
    assert sum(step.tokens for step in steps) >= 2 * sum(len(row) for row in rows)
    assert [step.epoch for step in steps][-1] == 2 and outcome.loss == steps[-1].smoothed_loss
    assert readings[-1].seconds_left == 0 and readings[0].seconds_left > 0 and readings[-1].tokens_per_second > 0
    assert str(readings[0]).startswith(f"step 1/{outcome.steps}  loss")


def test_a_full_disk_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("almanac.train.checkpoint.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(TrainingError, match="MiB left"):
        small_run.run(tmp_path, listeners=(recorded(events),))
    assert not events


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    network = small_run.adapted()

    def poison(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            with torch.no_grad():
                next(p for p in network.parameters() if p.requires_grad).fill_(math.nan)

    with pytest.raises(TrainingError):
        small_run.run(tmp_path, network=network, listeners=(poison,))
    small_run.run(tmp_path, network=small_run.adapted(), listeners=())  # goes on from step 5, and ends


def test_another_number_of_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, events = threading.Event(), []

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone):
            stop.set()

    small_run.run(tmp_path, listeners=(listener,), stop=stop)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    small_run.run(tmp_path, listeners=(recorded(events),))
    started = [event for event in events if isinstance(event, Started)]
    assert started[0].notes == () and "1 threads before, 2 now" in started[1].notes[0] and started[1].step == 1


def test_rows_may_be_long_and_targets_few() -> None:
    """A step in which most micro-batches hold a single target, one row at a time."""
    rows = [Row((1, 2, 3, 4, 5, 6, 7, 8), (False,) * at + (True,) + (False,) * (7 - at)) for at in range(1, 8)]
    chosen = small_run.settings(steps=3, micro_tokens=8, step_tokens=56, schedule=Linear(floor=1.0))
    assert train(small_run.adapted(), chosen.batches(rows), settings=chosen).finished


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
