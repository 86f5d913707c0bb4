"""What is computed again is the same, bit for bit, in every family; and memory falls as the paper says."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor
from train import small_run
from train.test_loop import adapters

from almanac.core.errors import SelectionError, UnsupportedError
from almanac.data.collate import padded_batches
from almanac.nn.stack import Decoder
from almanac.train.activation_checkpointing import ActivationCheckpointing
from almanac.train.criterion import NextToken

KINDS = {
    "all": ActivationCheckpointing(),
    "second": ActivationCheckpointing(every=2),
    "selective": ActivationCheckpointing(keep="products"),
}


def gradients(network: Decoder, kind: ActivationCheckpointing | None) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step over padded rows, the dice set before it."""
    network.train().zero_grad()
    batch = padded_batches(small_run.doubling_rows(6), 256)[0]
    torch.manual_seed(0)
    loss, _ = NextToken().loss(network, batch, normaliser=batch.num_targets)
    if kind is None:
        loss.backward()
    else:
        network.zero_grad()
        torch.manual_seed(0)
        with kind.applied(network):
            loss, _ = NextToken().loss(network, batch, normaliser=batch.num_targets)
            loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", toys.varied())
def test_gradients_are_the_same_bits(name: str, kind: str) -> None:
    network = toys.toy(name)
    names = set(toys.tensors_of(network))
    loss, expected = gradients(network, None)
    again, found = gradients(network, KINDS[kind])
    assert again == loss and found.keys() == expected.keys()
    assert all(torch.equal(found[path], expected[path]) for path in expected)
    assert set(toys.tensors_of(network)) == names and not any(
        path.endswith("around") for path, _ in network.named_modules()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_throws_the_same_dice_twice(kind: str) -> None:
    network = small_run.adapted(dropout=0.5)
    toys.stir((p for p in network.parameters() if p.requires_grad), seed=3)
    _, expected = gradients(network, None)
    _, found = gradients(network, KINDS[kind])
    assert expected and all(torch.equal(found[path], expected[path]) for path in expected)


def test_a_run_ends_with_the_same_bits() -> None:
    ends = []
    for kind in (None, *KINDS.values()):
        network = small_run.adapted(dropout=0.1)
        small_run.run(network=network, steps=6, activations=kind)
        ends.append(adapters(network))
    assert all(torch.equal(other[name], ends[0][name]) for other in ends[1:] for name in ends[0])


def deep(layers: int) -> Decoder:
    spec = toys.specs()["llama"]
    return toys.model_of(spec.with_(layers=(spec.layers[0],) * layers))


def kept_bytes(network: Decoder, kind: ActivationCheckpointing | None) -> int:
    """Of tensors that a forward pass leaves for backward, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    alive: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            alive[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    def run() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train().hidden(toys.tokens(4, 32))

    if kind is None:
        run()
    else:
        with kind.applied(network):
            run()
    return sum(size for size, _ in alive.values())


def test_memory_by_block_is_that_of_its_input() -> None:
    """The slope by depth: one hidden vector a token and block, against some thirty without."""
    slopes = {}
    for name, kind in {"none": None, "all": KINDS["all"], "selective": KINDS["selective"]}.items():
        slopes[name] = (kept_bytes(deep(12), kind) - kept_bytes(deep(4), kind)) / 8
    hidden_vector = 4 * 32 * toys.HIDDEN * 4
    assert slopes["all"] == hidden_vector
    assert slopes["none"] > 15 * hidden_vector


def test_sqrt_segments_keep_what_the_paper_says() -> None:
    """Each k-th of n blocks recomputed leaves the others: n(1 - 1/k) blocks whole; all recomputed, n inputs."""
    whole, every_second, every = (kept_bytes(deep(12), kind) for kind in (None, KINDS["second"], KINDS["all"]))
    assert every < every_second < whole
    assert every_second - every == pytest.approx((whole - every) / 2, rel=0.1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="keeps 'all'"):
        ActivationCheckpointing(keep="all")
    with pytest.raises(UnsupportedError, match="every 0-th"):
        ActivationCheckpointing(every=0)
    with pytest.raises(SelectionError), ActivationCheckpointing(blocks="blocks.*").applied(deep(1)):
        pass
