"""Sites: order of wrappers, exact removal, and selection by pattern."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

from almanac.core.errors import SelectionError, ShapeError
from almanac.core.site import Around, Leaf, Site, select
from almanac.nn.linear import Linear


class Affine(Around):
    """y = times · following(x) + plus; ``inner`` is a linear map of its own, which selection must not find."""

    def __init__(self, times: float, plus: float) -> None:
        super().__init__()
        self.times, self.plus = times, plus
        self.inner = Linear.Spec(in_features=2, out_features=2).build()

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        return self.times * following(*inputs) + self.plus


def linear() -> Linear:
    site = Linear.Spec(in_features=2, out_features=2).build()
    site.set_weight(torch.eye(2))
    return site


def test_the_last_attached_is_the_outermost() -> None:
    site, x = linear(), torch.tensor([1.0, 2.0])
    site.wrap("first", Affine(2, 1))
    site.wrap("second", Affine(3, 10))
    assert site(x).tolist() == [3 * (2 * 1 + 1) + 10, 3 * (2 * 2 + 1) + 10]
    assert [wrapper.times for wrapper in site.chain] == [2, 3]
    site.unwrap("first")
    assert site(x).tolist() == [13.0, 16.0]
    site.unwrap("second")
    assert torch.equal(site(x), x)


def test_attached_and_removed_leaves_no_trace() -> None:
    site = linear()
    before = (list(dict(site.named_modules())), list(site.state_dict()))
    wrapper = Affine(2, 1)
    site.wrap("x", wrapper)
    assert "around.x.inner.weight" in site.state_dict()
    assert site.wrapper("x") is wrapper
    assert site.wrapper("y") is None
    assert site.unwrap("x") is wrapper
    assert (list(dict(site.named_modules())), list(site.state_dict())) == before
    assert site.chain == ()
    assert site.wrapper("x") is None


def test_names_are_taken_once() -> None:
    site = linear()
    site.wrap("x", Affine(2, 1))
    for name in ("x", "", "a.b", "keys", "forward"):
        with pytest.raises(SelectionError):
            site.wrap(name, Affine(5, 5))
    assert [wrapper.times for wrapper in site.chain] == [2]
    assert list(site.state_dict()) == ["weight", "around.x.inner.weight"]
    with pytest.raises(SelectionError):
        site.unwrap("y")
    clean = linear()
    with pytest.raises(SelectionError):
        clean.wrap("a.b", Affine(1, 0))
    assert list(clean.state_dict()) == ["weight"]


def test_a_wrapper_takes_over_the_mode_of_its_site() -> None:
    site = linear().eval()
    site.wrap("x", Affine(2, 1))
    assert not site.chain[0].training
    site.train()
    assert site.chain[0].training


def test_a_copied_site_runs_its_own_wrappers() -> None:
    site = linear()
    site.wrap("x", Affine(2, 1))
    other = copy.deepcopy(site)
    assert other.chain[0] is other.wrapper("x")
    assert other.chain[0] is not site.chain[0]
    other.chain[0].times = 7
    assert other(torch.ones(2)).tolist() == [8.0, 8.0]
    assert site(torch.ones(2)).tolist() == [3.0, 3.0]


def test_mixers_and_blocks_can_be_wrapped_whole() -> None:
    class Mute(Around):
        """Keeps a mixer's state and drops its output."""

        def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
            mixed, state = following(*inputs)
            return torch.zeros_like(mixed), state

    model = toys.toy("llama")
    tokens = toys.tokens(1, 9)
    before = model(tokens)
    for layer in model.layers:
        layer.mixer.wrap("mute", Mute())
    muted = model(tokens)
    assert not torch.equal(muted, before)
    alone = model(tokens[:, 4:5])
    torch.testing.assert_close(muted[:, 4:5], alone)  # without mixers a token sees itself alone
    for layer in model.layers:
        layer.mixer.unwrap("mute")
    assert torch.equal(model(tokens), before)


# --- selection


def test_selection_by_pattern_and_kind() -> None:
    model = toys.toy("plain")
    assert list(select(model, "layers.*.mixer.{q,v}")) == [f"layers.{i}.mixer.{n}" for i in range(2) for n in "qv"]
    assert next(iter(select(model, "**", of=Leaf))) == "embed"
    assert len(select(model, "**", of=Linear)) == 2 * 6 + 1
    assert set(select(model, "layers.*")) == {"layers.0", "layers.1"}
    chosen = select(model, "layers.1.mixer.q")["layers.1.mixer.q"]
    assert chosen is model.layers[1].mixer.q


def test_sites_inside_wrappers_are_not_selected() -> None:
    model = toys.toy("llama")
    before = list(select(model, "**"))
    for site in select(model, "layers.*.mixer.q").values():
        site.wrap("x", Affine(1, 0))
    assert list(select(model, "**")) == before


@pytest.mark.parametrize("pattern", ["nothing", "layers.*.mixer.x", "layers.9.**", ""])
def test_a_pattern_that_selects_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(SelectionError, match="Sites here are"):
        select(toys.toy("llama"), pattern, of=Linear)
    with pytest.raises(SelectionError, match="none"):
        select(nn.Linear(2, 2), "**", of=Site)


def test_a_leaf_refuses_a_weight_of_another_shape() -> None:
    site = linear()
    with pytest.raises(ShapeError):
        site.set_weight(torch.zeros(2, 3))
    assert torch.equal(site.dense_weight(), torch.eye(2))
    shared = nn.Parameter(torch.ones(2, 2))
    site.set_weight(shared)
    assert site.weight is shared
    result: Tensor = site(torch.tensor([1.0, 2.0]))
    assert result.tolist() == [3.0, 3.0]
