"""What a set-up on a processor-only machine must look like: the build of torch that the pins mean, and nothing dragged in."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_torch_is_the_pinned_release() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in pins, "the local build tag must not be pinned"
    assert torch.__version__.split("+")[0] == "2.13.0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with an accelerator may hold its packages")
@pytest.mark.parametrize("name", ["torchvision", "torchaudio", "triton"])
def test_nothing_of_an_accelerator_was_dragged_in(name: str) -> None:
    assert importlib.util.find_spec(name) is None


def test_every_dependency_is_pinned_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert loose == []
