"""transformers as an oracle: quiet, with random parameters, watched layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="the oracle `transformers` is not installed")


@contextmanager
def quiet() -> Iterator[None]:
    """transformers announces its own deprecations through warnings; those of other libraries stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"transformers\..*")
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)


def randomised(model: nn.Module, *, seed: int, std: float = 0.1) -> Any:
    """``model`` in evaluation mode with every parameter random, norms and biases included; vectors lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std + (1 if parameter.dim() == 1 else 0))
    return model.eval()


def watched(layers: Iterable[nn.Module], run: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """What ``run`` gives, and what each call of the layers gave, in the order of the calls."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.no_grad(), quiet():
            return run(), seen
    finally:
        for hook in hooks:
            hook.remove()


def largest_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest absolute difference of tensors pair by pair, nan where either is; shapes must be equal."""
    found = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        worst = float((mine - other).abs().max())
        found = worst if worst != worst else max(found, worst)
        if found != found:
            return found
    return found
