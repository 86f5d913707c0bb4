"""Computing activations again: what is kept for backward, what is computed twice, and that gradients are the same bits.

Bytes are those of all storages that a forward pass makes and that are alive when it is over, whoever holds them; operations
are those of matrix products, with attention written out, since a fused kernel would hide them. Nothing is timed.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from almanac.core.site import Around, select
from almanac.core.technique import initialise
from almanac.evidence.card import BASELINE, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, AtMost, Effect
from almanac.evidence.fixtures.fitting import flops
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.nn.recurrent.state import exponent
from almanac.evidence.outcome import Outcome
from almanac.nn.stack import Decoder
from almanac.train import activation_checkpointing
from almanac.train.activation_checkpointing import PRODUCTS, ActivationCheckpointing

WHOLE, INPUTS, SECOND, SELECTIVE = "nothing again", "every block again", "every second block again", "all but products"
DICE, NEVER, CUT = "dice not put back", "nothing computed again", "the graph ends at a block's input"
ROWS, TIME, HIDDEN, DROPPED = 2, 16, 32, 0.3
DEPTHS = {"quick": (2, 4, 8, 12, 16), "full": (4, 8, 16, 32, 48, 64)}
KINDS = {
    INPUTS: ActivationCheckpointing(),
    SECOND: ActivationCheckpointing(every=2),
    SELECTIVE: ActivationCheckpointing(keep=PRODUCTS),
}

CARD = Card(
    name="train.activation_checkpointing",
    title="Activations computed again: a block costs its input, and a third more arithmetic",
    claim=(
        "an n-layer network can be trained in O(√n) memory for the cost of one extra forward pass a mini-batch; "
        "dropping what is cheap to compute is a special case"
    ),
    source="Chen 2016, arXiv 1604.06174, abstract (said in our words)",
    toy_claim=(
        "what a forward pass keeps grows by exactly one block input for every block that is computed again; forward "
        "and backward together take at most 1.34 times the operations; with dropout on, every gradient is the same to "
        "the bit"
    ),
    scope=(
        "seconds; the paper's √n segments, which ours does not offer: every block here is a segment of its own, so "
        "that what is kept grows with an exponent of 1, by a smaller step; what the allocator of a device makes of "
        "it; the peak within backward"
    ),
    tier="exact",
    arms=(
        Arm(name=INPUTS, role=METHOD, what="of every block the input alone is kept"),
        Arm(name=WHOLE, role=BASELINE, what="all that backward needs is kept"),
        Arm(name=SECOND, role=CONTROL, what="every second block is computed again"),
        Arm(name=SELECTIVE, role=CONTROL, what="what products return is kept, the rest computed again"),
    ),
    claims=(
        Always(
            effect=Effect(metric="inputs_per_block", arm=INPUTS),
            expected=1.0,
            least=1.0,
            most=1.0,
            says="a further block keeps one input more",
        ),
        Always(
            effect=Effect(metric="operations", arm=INPUTS, over=WHOLE, ratio=True),
            expected=4 / 3,
            most=1.34,
            says="for at most one further forward pass",
        ),
        Always(
            effect=Effect(metric="differing", arm=INPUTS),
            expected=0.0,
            most=0.0,
            says="gradients are the same bits, dropout included",
        ),
        AtMost(
            effect=Effect(metric="kept", arm=INPUTS, over=WHOLE, ratio=True),
            expected=0.04,
            fail=0.1,
            says="and at the greatest depth less than a tenth is kept",
        ),
    ),
    gates=(
        Gate(arm=WHOLE, metric="moved", at_least=0.5, why="other dice of dropout give other gradients"),
        Gate(arm=WHOLE, metric="inputs_per_block", at_least=10, why="a block keeps much more than its input"),
    ),
    null=WHOLE,
    mutants=(
        Mutant(name=DICE, what="the second pass throws dice of its own"),
        Mutant(name=NEVER, what="blocks are run as they are, and all is kept"),
        Mutant(name=CUT, what="the second pass begins from a detached input, so that no gradient goes below a block"),
    ),
    seeds=3,
    budget_minutes=3,
    plot=Plot(metric="kept", lines=True, x="blocks", y="bytes kept for backward", log_x=True),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Counts bytes at every depth, and compares gradients and operations at the middle one."""
    depths = DEPTHS["quick" if profile == "quick" else "full"]
    with planted(mutant, BUGS), sdpa_kernel(SDPBackend.MATH):
        held = [(float(depth), float(kept_bytes(model(depth, seed), arm))) for depth in depths]
        network = model(depths[2], seed)
        plain, found = gradients(network, WHOLE, dice=seed), gradients(network, arm, dice=seed)
        other = gradients(network, arm, dice=seed + 1)
        operations = flops(lambda: gradients(network, arm, dice=seed))
    slope = (held[-1][1] - held[0][1]) / (depths[-1] - depths[0])
    return Outcome(
        metrics={
            "inputs_per_block": slope / (ROWS * TIME * HIDDEN * 4),
            "operations": operations,
            "differing": float(differing(found, plain)),
            "moved": differing(other, found) / sum(gradient.numel() for gradient in found),
            "kept": held[-1][1],
            "kept_exponent": exponent(held),
        },
        curves={"kept": held},
    )


class _Dropout(Around):
    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        return F.dropout(following(*inputs), DROPPED)


def model(depth: int, seed: int) -> Decoder:
    """So many blocks, each with dropout on what its channel adds."""
    network = initialise(spec(Tiny(hidden=HIDDEN, layers=depth)).build(), seed=seed)
    assert isinstance(network, Decoder)
    for site in select(network, "layers.*.channel").values():
        site.wrap("dropout", _Dropout())
    return network.train()


def tokens() -> Tensor:
    return torch.randint(0, 90, (ROWS, TIME), generator=torch.Generator().manual_seed(0))


def applied(network: Decoder, arm: str) -> Any:
    """What surrounds a run of an arm."""
    return KINDS[arm].applied(network) if arm in KINDS else nullcontext()


def gradients(network: Decoder, arm: str, *, dice: int) -> list[Tensor]:
    """Of every parameter, from one pass with the dice as given."""
    network.zero_grad()
    with torch.random.fork_rng(devices=[]), applied(network, arm):
        torch.manual_seed(dice)
        network(tokens()).square().mean().backward()
    return [
        torch.zeros_like(item) if item.grad is None else item.grad.detach().clone() for item in network.parameters()
    ]


def differing(found: list[Tensor], expected: list[Tensor]) -> int:
    """How many numbers are not the same bits."""
    return sum(int((a.view(torch.int32) != b.view(torch.int32)).sum()) for a, b in zip(found, expected, strict=True))


def kept_bytes(network: Decoder, arm: str) -> int:
    """Of the storages that a forward pass through the blocks made and that are alive after it, its answer among them."""
    gc.collect()
    with torch.random.fork_rng(devices=[]), applied(network, arm), Made() as made:
        hidden, _ = network.hidden(tokens())
    assert hidden.grad_fn is not None
    return made.alive


class Made(TorchDispatchMode):
    """Knows every storage that operations make, without keeping any alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {item.untyped_storage().data_ptr() for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)}
        answer = func(*args, **(kwargs or {}))
        for item in tree_leaves(answer):
            if isinstance(item, Tensor) and (place := item.untyped_storage().data_ptr()) not in given:
                self.made[place] = StorageWeakRef(item.untyped_storage()), item.untyped_storage().nbytes()
        return answer

    @property
    def alive(self) -> int:
        """Bytes of what still is."""
        return sum(size for storage, size in self.made.values() if not storage.expired())


def check(mutant: str | None) -> None:
    """Two blocks: the same bits as without, from less than half of the bytes."""
    with planted(mutant, BUGS):
        network = model(4, 0)
        plain = gradients(network, WHOLE, dice=5)
        for arm in KINDS:
            assert not differing(gradients(network, arm, dice=5), plain), f"{arm}: other gradients"
        assert 2 * kept_bytes(network, INPUTS) < kept_bytes(network, WHOLE), "nothing is saved"


_checkpoint = activation_checkpointing.checkpoint


def _detached(call: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    below, *rest = inputs
    return _checkpoint(call, below.detach().requires_grad_(), *rest, **options)


def _kept(call: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    return call(*inputs)


BUGS = {
    DICE: Bug(activation_checkpointing, "checkpoint", functools.partial(_checkpoint, preserve_rng_state=False)),
    NEVER: Bug(activation_checkpointing, "checkpoint", _kept),
    CUT: Bug(activation_checkpointing, "checkpoint", _detached),
}
