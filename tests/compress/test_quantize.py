"""Quantizing whole models: what is chosen, what it saves, what it costs, and what it refuses whole."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.compress.quantize.blocks import Blocks
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import AlmanacError, UnsupportedError
from almanac.core.technique import Attachment
from almanac.core.weight import StoredWeight
from almanac.files.gguf.formats import FORMATS
from almanac.models.family import family_for
from almanac.nn.stack import Decoder
from almanac.nn.stored.blocks import BlockWeight
from almanac.nn.stored.rowwise import RowwiseInt8

SMALL = [entry.name for entry in FORMATS.values() if entry.block_size == 32]


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(toys.tokens(4, 40))


def nbytes(model: Decoder) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "plain", "gpt2", "mistral", "qwen2", "smollm3"])
@pytest.mark.parametrize("technique", [Int8(), *(Blocks(format=format, targets="**") for format in SMALL)], ids=str)
def test_a_quantized_model_is_smaller_and_close(name: str, technique: Attachment) -> None:
    """Mean squared error of the logits stays below what the bits allow; the floor comes from random toys."""
    plain = toys.toy(name)
    model = toys.toy(name, technique)
    bits = 8 if isinstance(technique, Int8) else int(technique.format[1])
    assert nbytes(model) < nbytes(plain) * (bits + 2) / 32
    noise = float((logits(model) - logits(plain)).square().mean() / logits(plain).var())
    assert 0 < noise < {8: 2e-3, 5: 4e-2, 4: 2e-1}[bits]
    for path, leaf in toys.leaves(model).items():
        assert isinstance(leaf.weight, StoredWeight), path
        assert leaf.bias is None or torch.equal(leaf.bias, toys.leaves(plain)[path].bias)


def test_more_bits_are_closer() -> None:
    plain = logits(toys.toy("llama"))
    errors = []
    for format in ("Q4_0", "Q5_0", "Q8_0", "F16", "F32"):
        errors.append(float((logits(toys.toy("llama", Blocks(format=format, targets="**"))) - plain).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_defaults_choose_their_places() -> None:
    blocks, int8 = toys.toy("plain", Blocks()), toys.toy("plain", Int8())
    for path, leaf in toys.leaves(blocks).items():
        assert isinstance(leaf.weight, BlockWeight) == path.startswith("layers."), path
    assert all(isinstance(leaf.weight, RowwiseInt8) for leaf in toys.leaves(int8).values())


def test_a_format_that_does_not_fit_changes_nothing() -> None:
    """Rows of 80 are no whole number of blocks; found at the last kind of layer, before the first is touched."""
    model = toys.model_of(toys.toy_of(family_for("llama"), intermediate_size=80))
    before = logits(model)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.channel\.down.*80"):
        Blocks().attach(model)
    assert not any(isinstance(leaf.weight, StoredWeight) for leaf in toys.leaves(model).values())
    assert torch.equal(logits(model), before)
    Int8().attach(model)  # has no blocks
    Blocks(targets="layers.*.mixer.*").attach(model)


def test_unknown_formats_are_refused() -> None:
    for format in ("Q9_9", "q4_1", "Q2_K", ""):
        with pytest.raises(UnsupportedError, match="Q4_K"):
            Blocks(format=format).attach(toys.toy("llama"))


def test_damage_is_not_rounded_away() -> None:
    for technique in (Int8(), Blocks()):
        model = toys.toy("llama")
        with torch.no_grad():
            model.layers[0].mixer.q.weight[0, 0] = float("nan")
        with pytest.raises(AlmanacError, match=r"finite|NaN"):
            technique.attach(model)


@pytest.mark.parametrize("technique", [Int8(), Blocks(format="Q8_0"), Blocks(format="Q4_1")], ids=str)
def test_quantizing_again_the_same_way_changes_nothing(technique: Attachment) -> None:
    once = toys.toy("qwen2", technique)
    before = logits(once)
    technique.attach(once)
    torch.testing.assert_close(logits(once), before, rtol=0, atol=1e-5)


def test_information_lost_is_said_to_be_lost() -> None:
    for technique in (Int8(), Blocks()):
        model = toys.toy("llama", technique)
        with pytest.raises(UnsupportedError, match="undone"):
            technique.detach(model)
        with pytest.raises(UnsupportedError, match="fold"):
            technique.fold(model)
