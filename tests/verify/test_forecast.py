"""Forecasts: what is counted is what autograd keeps, and run.json ends with forecast and measurement side by side."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import torch
import toys
from torch import nn
from train import small_run

from almanac.compress.quantize.int8 import Int8
from almanac.core.batch import Tokens, pad_rows
from almanac.data.collate import padded_batches
from almanac.train.activation_checkpointing import ActivationCheckpointing
from almanac.train.events.event import Forecasted
from almanac.train.run_folder import read_run
from almanac.verify.forecast import Forecaster, forecast_memory, peak_bytes, resident_bytes, saved_bytes


class TwoProducts(nn.Module):
    """tanh(x W) V with trainable matrices: backward keeps x and tanh(x W), each once, and neither W nor V anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
        self.embed = nn.Embedding(10, 8).requires_grad_(False)

    def hidden(self, tokens: torch.Tensor, state: object = None, context: object = None) -> tuple[torch.Tensor, None]:
        return self.second(torch.tanh(self.first(self.embed(tokens)))), None


def batch(rows: int, time: int) -> Tokens:
    return pad_rows([[1] * time] * rows, [[True] * time] * rows, pad_id=0)


def test_what_backward_keeps_is_counted_once() -> None:
    network = TwoProducts()
    assert saved_bytes(network, batch(3, 5)) == 4 * 3 * 5 * (8 + 16)


def test_what_was_counted_is_let_go() -> None:
    network = small_run.adapted()
    seen: list[weakref.ref[torch.Tensor]] = []
    for module in network.modules():
        module.register_forward_hook(
            lambda module, given, made: seen.append(weakref.ref(made)) if isinstance(made, torch.Tensor) else None
        )
    saved_bytes(network, batch(2, 8))
    gc.collect()
    assert len(seen) > 10 and not any(item() is not None for item in seen)  # else every run keeps a batch's activations


def test_memory_grows_with_tokens_and_trained_numbers() -> None:
    network = small_run.adapted()
    small, large = (
        forecast_memory(network, batch(2, 8), settings=small_run.settings(micro_tokens=n)) for n in (64, 640)
    )
    assert large.activations == 10 * small.activations > 0
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert small.learning == 3 * 4 * trained
    assert small.weights == sum(p.nbytes for p in network.parameters())
    parts = (small.resident, small.learning, small.activations, small.logits, small.expanded)
    assert small.peak == sum(parts)
    per_token = [saved_bytes(network, batch(rows, 16)) / (rows * 16) for rows in (1, 4)]
    assert abs(per_token[1] / per_token[0] - 1) < 0.1
    assert not network.training


def test_only_the_stored_weights_are_expanded() -> None:
    stored = forecast_memory(small_run.adapted(Int8()), batch(1, 8), settings=small_run.settings())
    dense = forecast_memory(small_run.adapted(), batch(1, 8), settings=small_run.settings())
    assert stored.expanded == 4 * max(toys.VOCAB * toys.HIDDEN, 96 * toys.HIDDEN) and dense.expanded == 0
    assert stored.weights < 0.5 * dense.weights


def test_blocks_that_compute_again_keep_less() -> None:
    network = small_run.adapted()
    plain, less = (
        forecast_memory(network, batch(2, 8), settings=small_run.settings(activations=kind))
        for kind in (None, ActivationCheckpointing())
    )
    assert 0 < less.activations < 0.3 * plain.activations


def test_run_json_tells_forecast_and_measurement(tmp_path: Path) -> None:
    network = small_run.adapted()
    memory = forecast_memory(network, padded_batches(small_run.doubling_rows(4), 256)[0], settings=small_run.settings())
    told = []
    small_run.run(tmp_path, network=network, steps=10, listeners=(Forecaster(memory, told.append),))
    content = read_run(tmp_path)
    forecast, measured = content["forecast"], content["measured"]
    assert forecast["steps"] == measured["steps"] == 10
    assert told == [Forecasted(forecast["seconds"], forecast["peak_bytes"], forecast["energy"]["watt_hours"])]
    assert forecast["energy"]["watt_hours"] > 0 and measured["energy"]["watt_hours"] > 0
    assert 0.05 < measured["seconds"] / forecast["seconds"] < 20  # a loaded machine; the order of magnitude is meant
    assert forecast["peak_bytes"] == memory.peak and forecast["memory"]["learning"] == memory.learning
    assert 0 < resident_bytes() <= 1.05 * measured["peak_bytes"] <= 1.05 * peak_bytes()
