"""What spikes would save: operations counted where they happen, times what one was measured to take.

A matrix that reads zeros and ones needs an addition per one and output, and nothing for a zero; any other reads real numbers
and needs a product and an addition for each of its weights. Horowitz 2014 ("Computing's energy problem", figure 1.1.9; 45
nm, 32-bit floats): an addition 0.9 pJ, a product 3.7 pJ. Whether a matrix reads spikes is looked up in what it reads, not
believed. Counted are linear maps, the head among them, and the update of each neuron; not counted are norms, gates, the
moving of data, and what a processor spends besides. No energy was measured: on this processor spikes save nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.nn.frontier.spiking import LeakyNeurons
from almanac.nn.head import TiedHead
from almanac.nn.linear import Linear

ACCUMULATE_PICOJOULES = 0.9
MULTIPLY_ACCUMULATE_PICOJOULES = 4.6  # 3.7 + 0.9


@dataclass
class SpikeRecord:
    """Counts over all calls since the recording began; numbers of operations and of neuron steps."""

    accumulates: float = 0.0  # additions that spikes caused
    multiply_accumulates: float = 0.0  # of maps that read real numbers, and of neurons
    dense_operations: float = 0.0  # what the same maps and neurons take when nothing is left out
    spikes: float = 0.0
    neuron_steps: float = 0.0
    binary_maps: int = 0  # calls of maps that read spikes
    real_maps: int = 0

    @property
    def rate(self) -> float:
        """Spikes per neuron and step."""
        return self.spikes / max(self.neuron_steps, 1.0)

    @property
    def joules(self) -> float:
        """The estimate, spikes being additions."""
        cost = ACCUMULATE_PICOJOULES * self.accumulates + MULTIPLY_ACCUMULATE_PICOJOULES * self.multiply_accumulates
        return cost * 1e-12

    @property
    def dense_joules(self) -> float:
        """The estimate for the same maps reading real numbers, none of them zero."""
        return MULTIPLY_ACCUMULATE_PICOJOULES * self.dense_operations * 1e-12

    def map(self, read: Tensor, out_features: int) -> None:
        """Counts a linear map from ``read`` [..., in] to ``out_features``."""
        ones = (read == 1).sum()
        self.dense_operations += read.numel() * out_features
        if bool(ones + (read == 0).sum() == read.numel()):
            self.accumulates += float(ones) * out_features
            self.binary_maps += 1
        else:
            self.multiply_accumulates += read.numel() * out_features
            self.real_maps += 1

    def neurons(self, spikes: Tensor) -> None:
        """Counts a step of each neuron; what comes out need not be binary, then what is not zero counts as a spike."""
        self.spikes += float((spikes != 0).sum())
        self.neuron_steps += spikes.numel()
        self.multiply_accumulates += spikes.numel()
        self.dense_operations += spikes.numel()


@contextmanager
def recording(network: nn.Module, *, neurons: type[nn.Module] = LeakyNeurons) -> Iterator[SpikeRecord]:
    """Counts what ``network`` does within the block; it computes what it did before.

    ``neurons`` is the kind of module whose first output is counted as spikes.
    """
    record, hooks = SpikeRecord(), []

    def of_map(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        with torch.no_grad():
            record.map(inputs[0], output.shape[-1])

    def of_neurons(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        with torch.no_grad():
            record.neurons(output[0])

    for module in network.modules():
        if isinstance(module, Linear | TiedHead):
            hooks.append(module.register_forward_hook(of_map))
        elif isinstance(module, neurons):
            hooks.append(module.register_forward_hook(of_neurons))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
