"""The starter adapter: it fits its base in any weight format, no other model, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_model.small import language_model

from almanac.adapt.lora import Lora
from almanac.assistant import starter
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import IntegrityError
from almanac.language_model.model import LanguageModel

TECHNIQUE = Lora(rank=2)
IDS = torch.arange(8, 20).view(1, 12)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A starter for the toy model, and what the model says with it."""
    lm = language_model("llama").attach(TECHNIQUE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in starter.learned(lm.network).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).half() * 0.1)
    starter.write(lm, tmp_path, technique=TECHNIQUE, details={"name": "toy"})
    return tmp_path, logits(lm)


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network.eval()(IDS)


def test_a_starter_gives_the_model_it_was_made_from(made: tuple[Path, torch.Tensor]) -> None:
    folder, expected = made
    lm = language_model("llama")
    found = starter.find(lm, folder)
    assert found is not None and not torch.allclose(logits(lm), expected)
    found.attach(lm)
    assert torch.allclose(logits(lm), expected, atol=1e-5)
    assert all("lora" in name for name in starter.learned(lm.network)) and starter.learned(lm.network)
    assert lm.provenance["steps"][-1]["details"]["name"] == "toy"


def test_it_is_found_for_its_base_in_another_weight_format_and_for_no_other_model(
    made: tuple[Path, torch.Tensor],
) -> None:
    folder, _ = made
    packed = language_model("llama")
    packed.attach(Int8())
    assert starter.find(packed, folder) is not None
    other = language_model("llama")
    with torch.no_grad():
        other.network.get_parameter("layers.1.mixer_norm.weight").mul_(1.01)  # trained on, or another model
    assert starter.find(other, folder) is None
    assert starter.find(language_model("llama"), folder / "nowhere") is None


def test_a_damaged_starter_is_refused(made: tuple[Path, torch.Tensor]) -> None:
    folder, _ = made
    data = bytearray((folder / starter.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / starter.WEIGHTS).write_bytes(bytes(data))
    lm = language_model("llama")
    found = starter.find(lm, folder)
    assert found is not None
    with pytest.raises(IntegrityError):
        found.attach(lm)
    assert not any("lora" in name for name in dict(lm.network.named_parameters()))
