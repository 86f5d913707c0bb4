"""Specs as trees: walking, replacing by pattern, and axes that every leaf declares."""

from __future__ import annotations

import pytest
import torch
import toys

from almanac.core.errors import SelectionError
from almanac.core.spec import AXES, Constant, Normal
from almanac.core.technique import Plan, initialise
from almanac.nn.activation import Relu
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.channel.dense import Dense


def test_walk_names_every_spec_from_the_root() -> None:
    paths = [path for path, _ in toys.plain().walk()]
    assert paths[0] == ""
    assert paths[1:4] == ["embed", "layers.0", "layers.0.mixer_norm"]
    assert "layers.1.mixer.position" in paths
    assert len(set(paths)) == len(paths)


def test_replace_changes_what_matches_and_nothing_else() -> None:
    spec = toys.plain()
    other = spec.replace("layers.1.mixer", mask=SlidingWindow(size=3)).replace("layers.*.channel", activation=Relu())
    assert [layer.mixer.mask for layer in other.layers] == [spec.layers[0].mixer.mask, SlidingWindow(size=3)]
    assert all(isinstance(layer.channel, Dense.Spec) and layer.channel.activation == Relu() for layer in other.layers)
    assert other.embed == spec.embed
    assert spec == toys.plain()
    assert spec.replace("", context_length=5) == spec.with_(context_length=5)
    nested = spec.replace("layers.0", mixer=spec.layers[0].mixer.with_(mask=SlidingWindow(size=2)))
    assert nested.layers[0].mixer.mask == SlidingWindow(size=2)
    with pytest.raises(SelectionError):
        spec.replace("layers.2.mixer", mask=SlidingWindow(size=3))
    with pytest.raises(TypeError):
        spec.replace("layers.0.mixer", width=3)


@pytest.mark.parametrize("name", sorted(toys.specs()))
def test_every_leaf_names_its_axes(name: str) -> None:
    """One table of rules per mesh must be able to shard every layer."""
    for path, leaf in toys.leaves(toys.specs()[name].build()).items():
        assert len(leaf.axes) == len(leaf.shape), path
        assert set(leaf.axes) <= set(AXES), path
        assert leaf.axes.count("embed") <= 1, path


def test_initialisers_do_what_they_say() -> None:
    spec = toys.plain().replace("layers.0.mixer.q", initialiser=Constant(value=0.5))
    spec = spec.replace("layers.1.mixer.q", initialiser=Normal(std=2.0))
    model = initialise(spec.build(), seed=0)
    weights = [layer.mixer.q.weight.detach() for layer in model.layers]
    assert torch.equal(weights[0], torch.full_like(weights[0], 0.5))
    assert 1.9 < float(weights[1].std()) < 2.1


def test_plans_grow_and_shrink_by_value() -> None:
    from almanac.adapt.lora import Lora
    from almanac.compress.quantize.int8 import Int8

    plan = Plan().then(Int8()).then(Lora()).then(Lora(name="second"))
    assert plan.without(Lora()) == Plan(techniques=(Int8(), Lora(name="second")))
    assert plan.without(Lora(name="second")) == Plan().then(Int8()).then(Lora())
    with pytest.raises(ValueError, match="not in"):
        plan.without(Lora(name="third"))


def test_replay_applies_in_order() -> None:
    """Int8 first and LoRA on top is not LoRA first: the order is part of the plan."""
    from almanac.adapt.lora import Lora
    from almanac.compress.quantize.int8 import Int8

    twice = Plan().then(Lora(name="a")).then(Lora(name="b"))
    model = toys.model_of(toys.plain())
    twice.replay(toys.plain(), model)
    assert [name for name, _ in model.layers[0].mixer.q.around.named_children()] == ["a", "b"]
    first = model.layers[0].mixer.q.wrapper("a")
    assert first is model.layers[0].mixer.q.chain[0]
    again = toys.model_of(toys.plain())
    spec, same = Plan().then(Int8()).replay(toys.plain(), again)
    assert same is again
    assert spec == toys.plain()
