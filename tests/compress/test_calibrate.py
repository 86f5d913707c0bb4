"""Calibration: the statistics are those of what each map is really fed, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.compress.calibrate import Inputs, batches, by_layer, observe
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import UnsupportedError
from almanac.core.site import select
from almanac.nn.linear import Linear

TOKENS = [toys.tokens(2, 20), toys.tokens(3, 11, seed=1)]


@pytest.mark.parametrize("techniques", [(), (Int8(),)], ids=["dense", "int8"])
def test_statistics_are_those_of_the_inputs(techniques: tuple[Int8, ...]) -> None:
    model = toys.toy("plain", *techniques).train()
    sites = select(model, "**", of=Linear)
    before = {name: (item, item.requires_grad) for name, item in model.named_parameters()}
    expected: dict[str, list[Tensor]] = {path: [] for path in sites}
    hooks = [
        site.register_forward_pre_hook(lambda module, given, path=path: expected[path].append(given[0].flatten(0, -2)))
        for path, site in sites.items()
    ]
    found = observe(model, sites, TOKENS, gram=True)
    for hook in hooks:
        hook.remove()
    for path, inputs in found.items():
        x = torch.cat(expected[path])
        assert inputs.count == len(x) == 73
        torch.testing.assert_close(inputs.absolute, x.abs().sum(dim=0))
        torch.testing.assert_close(inputs.largest, x.abs().amax(dim=0))
        torch.testing.assert_close(inputs.squares, x.square().sum(dim=0))
        torch.testing.assert_close(inputs.gram, x.T @ x, rtol=1e-4, atol=1e-4)
    assert model.training
    assert {name: (item, item.requires_grad) for name, item in model.named_parameters()} == before


def test_the_model_is_put_back_when_a_pass_fails() -> None:
    model = toys.toy("plain")
    sites = select(model, "layers.**", of=Linear)
    before = {path: site.weight for path, site in sites.items()}
    with pytest.raises(Exception, match="outside the vocabulary"):
        observe(model, sites, [torch.full((1, 3), toys.VOCAB)])
    assert all(site.weight is before[path] for path, site in sites.items())


def test_what_no_token_reached_counts_as_white() -> None:
    idle = Inputs.nothing(3, gram=True, device=torch.device("cpu"))
    idle.add(torch.zeros(0, 3))
    white = idle.or_white()
    assert white.count == 1
    assert torch.equal(white.gram if white.gram is not None else torch.empty(0), torch.eye(3))
    idle.add(torch.ones(2, 3))
    assert idle.or_white() is idle


def test_batches_without_data_and_with_none() -> None:
    model = toys.toy("plain")
    drawn = batches(model, None)
    assert torch.equal(drawn[0], batches(model, None)[0])
    assert int(drawn[0].max()) < toys.VOCAB
    assert batches(model, iter(TOKENS))[1] is TOKENS[1]
    with pytest.raises(UnsupportedError, match="no calibration tokens"):
        batches(model, [])
    with pytest.raises(UnsupportedError, match="needs calibration"):
        batches(torch.nn.Linear(2, 2), None)


def test_layers_come_in_order_and_whole() -> None:
    groups = by_layer(select(toys.toy("plain"), "**", of=Linear))
    assert [sorted({path.split(".")[1] for path in group}) for group in groups] == [["0"], ["1"], ["projection"]]
    assert [len(group) for group in groups] == [6, 6, 1]
