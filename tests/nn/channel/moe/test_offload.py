"""Experts that are elsewhere: the same outputs, no more at hand than was allowed, and honest counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import NotFoundError, SelectionError, ShapeError, UnsupportedError
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.channel.moe.offload import Memory, Store, offload, spill
from almanac.nn.stack import Decoder

MATRIX = toys.HIDDEN * 32 * 4  # bytes of one expert's map


def model(*, experts: int = 4, seed: int = 0) -> Decoder:
    channel = gated_experts(toys.HIDDEN, 32, num_experts=experts, num_chosen=2)
    return toys.model_of(toys.plain().replace("layers.*", channel=channel), seed=seed)


def logits(one: Decoder, time: int = 12) -> Tensor:
    with torch.no_grad():
        return one(toys.tokens(2, time))


@pytest.mark.parametrize("room", [0, MATRIX, 7 * MATRIX, 1 << 30])
@pytest.mark.parametrize("place", ["memory", "file", "int8"])
def test_outputs_are_equal_whatever_the_room(room: int, place: str, tmp_path: Path) -> None:
    one = model()
    if place == "int8":
        Int8(targets="**.experts.*").attach(one)
    before = logits(one)
    file = spill(one, tmp_path / "experts.safetensors") if place == "file" else None
    names = {name for name, _ in one.named_parameters() if "experts" not in name}
    store = offload(one, room_bytes=room, file=file)
    for _ in range(2):
        torch.testing.assert_close(logits(one), before, rtol=0, atol=1e-5)
        assert store.held_bytes <= room
    assert {name for name, _ in one.named_parameters()} == names
    assert store.fetched_bytes == store.misses * MATRIX
    if room == 1 << 30:
        assert store.misses <= 2 * 3 * 4
        assert store.hits >= store.misses
    if room == 0:
        assert store.hits == 0
        assert store.hit_rate == 0


def test_the_least_recently_used_goes_first() -> None:
    weight = torch.arange(5.0)[:, None, None].expand(5, 2, 2)
    source, device = Memory(weight), torch.device("cpu")
    store = Store(room_bytes=3 * 16)
    for index in (0, 1, 2, 0, 3, 1, 0):
        assert torch.equal(store.get("map", index, source, device), weight[index])
    # 0 1 2 | 0 hits | 3 pushes 1 out | 1 pushes 2 out | 0 hits
    assert (store.hits, store.misses) == (2, 5)
    assert [index for _, index in store.kept] == [3, 1, 0]
    assert store.hit_rate == pytest.approx(2 / 7)
    assert store.fetched_bytes == 5 * 16


def test_gradients_reach_adapters_through_offloaded_experts() -> None:
    gradients = []
    for away in (False, True):
        one = model()
        if away:
            offload(one, room_bytes=3 * MATRIX)
        Lora(targets="layers.0.**").attach(one)
        toys.stir(item for name, item in one.named_parameters() if "around" in name)
        one(toys.tokens(2, 9)).square().mean().backward()
        gradients.append({name: item.grad for name, item in one.named_parameters() if item.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    one = model()
    before = logits(one)
    with pytest.raises(UnsupportedError):
        offload(one, room_bytes=-1)
    with pytest.raises(SelectionError):
        offload(toys.toy("plain"), room_bytes=1)
    with pytest.raises(ShapeError):
        offload(one, room_bytes=1, file=spill(model(experts=3), tmp_path / "other.safetensors"))
    with pytest.raises(NotFoundError):
        offload(one, room_bytes=1, file=spill(model(), tmp_path / "half.safetensors", targets="layers.0.**"))
    assert torch.equal(logits(one), before)
