"""What linear maps are fed: statistics of their inputs over calibration text, for all compression that looks at data.

A map's weight is replaced for the time of a few forward passes by one that computes the same and keeps count of what it is
multiplied with: the innermost place there is, below every wrapper, which is where a rounded weight will stand.

Legend: in input channels of a map; x [tokens, in] its inputs over all calibration tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.weight import StoredWeight, by_group
from almanac.nn.linear_maps import LinearMap, matrices
from almanac.nn.stack import Decoder

ROWS, TIME = 8, 64  # of the tokens drawn where none are given


@dataclass
class Inputs:
    """Sums over tokens; all float32.

    - ``count``: tokens seen
    - ``absolute`` [in]: Σ |x|; ``largest`` [in]: max |x|; ``squares`` [in]: Σ x²
    - ``gram`` [in, in]: Σ x xᵀ, where it was asked for
    """

    count: int
    absolute: Tensor
    largest: Tensor
    squares: Tensor
    gram: Tensor | None = None

    @classmethod
    def nothing(cls, width: int, *, gram: bool, device: torch.device) -> Inputs:
        """No token yet."""
        zeros = torch.zeros(3, width, device=device).unbind()
        return cls(0, *zeros, torch.zeros(width, width, device=device) if gram else None)

    def add(self, x: Tensor) -> None:
        """Counts inputs [..., in]."""
        x = x.detach().flatten(0, -2).float()
        if not len(x):
            return
        self.count += len(x)
        self.absolute += x.abs().sum(dim=0)
        self.largest = torch.maximum(self.largest, x.abs().amax(dim=0))
        self.squares += x.square().sum(dim=0)
        if self.gram is not None:
            self.gram += x.T @ x

    @property
    def required_gram(self) -> Tensor:
        """``gram`` where it was asked for."""
        assert self.gram is not None, "observed without gram"
        return self.gram

    def or_white(self) -> Inputs:
        """These; or for a map that no token reached (an idle expert), those of white noise: all channels count alike."""
        if self.count:
            return self
        ones = torch.ones_like(self.squares)
        return Inputs(1, ones, ones, ones, None if self.gram is None else torch.eye(len(ones), device=ones.device))


class _Recorder(StoredWeight):
    """A weight that keeps count of what it is multiplied with, apart for each expert."""

    def __init__(self, weight: Tensor | StoredWeight, inputs: Sequence[Inputs]) -> None:
        super().__init__(tuple(weight.shape))
        self.kept = (weight,)  # in a tuple, so that nothing is registered twice
        self.inputs = inputs

    def dense(self) -> Tensor:
        weight = self.kept[0]
        return weight.dense() if isinstance(weight, StoredWeight) else weight

    def linear(self, x: Tensor) -> Tensor:
        self.inputs[0].add(x)
        weight = self.kept[0]
        return weight.linear(x) if isinstance(weight, StoredWeight) else F.linear(x, weight)

    def grouped(self, x: Tensor, ends: Tensor) -> Tensor:
        def product(rows: Tensor, index: int) -> Tensor:
            self.inputs[index].add(rows)
            weight = self.kept[0]
            return F.linear(rows, weight.expert(index) if isinstance(weight, StoredWeight) else weight[index])

        return by_group(x, ends, self.shape[1], product)


def batches(model: nn.Module, calibration: Iterable[Tensor] | None) -> list[Tensor]:
    """The calibration batches, int64 [b, t] without padding; tokens drawn evenly from the vocabulary where none are given.

    Drawn tokens make every technique work without data, but not well: give text like that which the model is for.

    Raises UnsupportedError where nothing is given and the model has no vocabulary, or what is given is empty.
    """
    if calibration is not None:
        found = [batch for batch in calibration if batch.numel()]
        if not found:
            raise UnsupportedError("There are no calibration tokens", remedy="Give batches of token ids [b, t].")
        return found
    if not isinstance(model, Decoder):
        raise UnsupportedError("This model needs calibration tokens", remedy="Give batches of token ids [b, t].")
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, model.vocab_size, (ROWS, min(TIME, model.context_length)), generator=generator)]


@torch.no_grad()
def observe(
    model: nn.Module, sites: Mapping[str, LinearMap], tokens: Sequence[Tensor], *, gram: bool = False
) -> dict[str, Inputs]:
    """Name of each matrix of ``sites`` (`matrices`) -> statistics of its inputs while ``model`` reads ``tokens``."""
    device = next(model.parameters()).device
    found = {
        path: {name: Inputs.nothing(matrix.shape[1], gram=gram, device=device) for name, matrix in named.items()}
        for path, named in matrices(sites).items()
    }
    training = model.training
    model.eval()
    try:
        with _recording(sites, found):
            for batch in tokens:
                model(batch.to(device))
    finally:
        model.train(training)
    return {name: inputs.or_white() for named in found.values() for name, inputs in named.items()}


@contextmanager
def _recording(sites: Mapping[str, LinearMap], found: Mapping[str, Mapping[str, Inputs]]) -> Iterator[None]:
    before = {path: site.weight for path, site in sites.items()}
    try:
        for path, site in sites.items():
            site.set_weight(_Recorder(before[path], list(found[path].values())))
        yield
    finally:
        for path, site in sites.items():
            site.set_weight(before[path])


def by_layer(sites: Mapping[str, LinearMap]) -> list[dict[str, LinearMap]]:
    """The sites in the order of the model, those of one layer (``layers.3``) together."""
    found: dict[str, dict[str, LinearMap]] = {}
    for path, site in sites.items():
        parts = path.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        found.setdefault(".".join(parts[: numbers[0] + 1]) if numbers else path, {})[path] = site
    return list(found.values())
