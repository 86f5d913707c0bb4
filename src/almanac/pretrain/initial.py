"""The weights that a run from nothing begins with.

Every leaf is filled as its spec says. In a decoder the maps that add to the residual stream then begin smaller, by one over
the root of how many they are, so that the stream does not grow with depth (Radford 2019, "Language models are unsupervised
multitask learners", section 2.3). On 200 steps of a model of four layers this gave 4.67 nats for 4.70
(`benchmarks/pretrain.py --quality --model small`).
"""

from __future__ import annotations

import torch
from torch import nn

from almanac.core.technique import initialise
from almanac.nn.stack import Decoder

ADDING = ("o", "out", "down")
"""What the maps are called, in mixers and channels, whose result is added to the residual stream."""


def initial(network: nn.Module, *, seed: int) -> nn.Module:
    """Fills a freshly built network, deterministically, and returns it."""
    initialise(network, seed=seed)
    for part in network.modules():
        if isinstance(part, Decoder):
            _shrink(part)
    return network


def _shrink(decoder: Decoder) -> None:
    found = {
        name: parameter
        for name, parameter in decoder.named_parameters()
        if parameter.dim() >= 2 and name.startswith("layers.") and _adds(name)
    }
    branches = {".".join(name.split(".")[:3]) for name in found}  # layers.0.mixer, layers.0.channel
    with torch.no_grad():
        for parameter in found.values():
            parameter.mul_(max(1, len(branches)) ** -0.5)


def _adds(name: str) -> bool:
    """Whether a weight, ``layers.0.mixer.o.weight`` or of experts ``layers.0.channel.experts.down``, is of such a map."""
    parts = name.split(".")
    return parts[-1] in ADDING or (parts[-1] == "weight" and parts[-2] in ADDING)
