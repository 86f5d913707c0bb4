"""The weights a run begins with: a stream that does not grow with depth, whatever the layers are."""

from __future__ import annotations

import pytest
import torch

from almanac.core.technique import initialise
from almanac.models.family import family_for
from almanac.models.tiny import tiny_spec
from almanac.nn.future_heads import with_future
from almanac.nn.stack import Decoder
from almanac.pretrain.initial import initial


def spec(family: str, **changes: object) -> Decoder.Spec:
    found = tiny_spec(family_for(family), **changes)
    assert isinstance(found, Decoder.Spec)
    return found


def test_what_adds_to_the_stream_begins_smaller_and_nothing_else() -> None:
    made = spec("llama", num_hidden_layers=8)
    before = dict(initialise(made.build(), seed=3).named_parameters())
    after = dict(initial(made.build(), seed=3).named_parameters())
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {f"layers.{layer}.{name}.weight" for layer in range(8) for name in ("mixer.o", "channel.down")}
    for name in changed:
        torch.testing.assert_close(after[name], before[name] / 4)


@pytest.mark.parametrize(("family", "map"), [("mamba", "out"), ("rwkv", "o"), ("jamba", "down"), ("mixtral", "down")])
def test_every_kind_of_layer_has_such_maps(family: str, map: str) -> None:
    made = spec(family)
    before, after = (dict(fill(made.build(), seed=0).named_parameters()) for fill in (initialise, initial))
    smaller = [name for name in before if not before[name].equal(after[name])]
    assert any(map in name.split(".") for name in smaller)
    layers = {name.split(".")[1] for name in smaller}
    assert len(layers) == len(made.layers)


def test_the_decoder_within_another_network_is_meant_too() -> None:
    made = with_future(spec("llama", num_hidden_layers=2), 2)
    before, after = (dict(fill(made.build(), seed=0).named_parameters()) for fill in (initialise, initial))
    assert {name for name in before if not before[name].equal(after[name])} == {
        f"decoder.layers.{layer}.{name}.weight" for layer in range(2) for name in ("mixer.o", "channel.down")
    }


def test_the_stream_does_not_grow_with_depth() -> None:
    def growth(fill: object, layers: int) -> float:
        network = fill(spec("llama", num_hidden_layers=layers).build(), seed=0)  # type: ignore[operator]
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.data.mul_(5)
        tokens = torch.arange(16)[None]
        stream: list[torch.Tensor] = []
        network.norm.register_forward_pre_hook(lambda module, given: stream.append(given[0].detach()))
        with torch.no_grad():
            network(tokens)
            first = network.embed(tokens)
        return float(stream[0].std() / first.std())

    assert growth(initialise, 32) > 1.5 * growth(initial, 32)
