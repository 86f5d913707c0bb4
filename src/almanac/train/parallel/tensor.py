"""Tensor parallelism: the first maps of a sublayer are cut by columns, its last by rows (Shoeybi 2019, arXiv 1909.08053).

    attention: q, k, v keep some heads each, o sums what the heads of all ranks say
    channel:   gate, up keep some inner features each, down sums what all of these say

So a block sums twice forward (after o, after down) and twice backward (before q, k, v; before gate, up), whatever its width.
The table of embeddings and the head keep a range of the vocabulary each: a rank gives zero for ids of other ranges and
the ranks' rows are summed; logits are gathered, so that every objective works on them. (Deviation: Megatron computes the
loss from cut logits, which spares [n, vocab] on each rank; here a chunk of `objectives.next_token` bounds that.)

What acts within a head, such as a norm of queries, stays whole, and its gradient is summed over the ranks.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around, Leaf, Site
from almanac.nn.attention.full import Attention
from almanac.nn.channel.dense import Dense
from almanac.nn.channel.gated import Gated
from almanac.nn.channel.moe.experts import DenseExperts, GatedExperts
from almanac.nn.head import Head, TiedHead
from almanac.nn.norm import RMSNorm, UnitNorm
from almanac.nn.stack import Decoder
from almanac.train.parallel.collectives import Merge, Spread, gathered, spread
from almanac.train.parallel.mesh import Ranks
from almanac.train.parallel.rules import RULES, Layout, cut_leaf

AXIS = "tensor"


def cut_tensors(network: Decoder, ranks: Ranks, layout: Layout) -> None:
    """Cuts every sublayer of ``network``, and what knows the vocabulary where its size allows.

    Raises:
        UnsupportedError: a sublayer whose parts do not work apart, or sizes that do not divide.
    """
    group = ranks.group(AXIS)
    for path, module in list(network.named_modules()):
        if isinstance(module, Attention):
            _require_apart(module, path)
            _cut_sublayer(module, path, (["q", "k", "v"], "o"), ranks, layout)
        elif isinstance(module, Gated | GatedExperts):
            _cut_sublayer(module, path, (["gate", "up"], "down"), ranks, layout)
        elif isinstance(module, Dense | DenseExperts):
            _cut_sublayer(module, path, (["up"], "down"), ranks, layout)
    _require_all_cut(network, layout)
    if network.vocab_size % ranks.size(AXIS) == 0:
        _cut_vocabulary(network, ranks, layout, group)


class RangeOfVocabulary(Around):
    """Looks up ids of this rank's range, zero for all others, and sums over the ranks."""

    def __init__(self, start: int, size: int) -> None:
        super().__init__()
        self.start, self.size = start, size

    def forward(self, following: Any, *inputs: Any) -> Tensor:
        (ids,) = inputs
        local = ids - self.start
        mine = (local >= 0) & (local < self.size)
        return following(local.clamp(0, self.size - 1)) * mine.unsqueeze(-1)


class WholeLogits(Around):
    """Logits of this rank's range -> of the whole vocabulary."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, following: Any, *inputs: Any) -> Tensor:
        x, embed = inputs
        return gathered(following(spread(x, self.group), embed), self.group)


def _cut_sublayer(site: Site, path: str, maps: tuple[list[str], str], ranks: Ranks, layout: Layout) -> None:
    columns, row = maps
    for name in (*columns, row):
        leaf = site.get_submodule(name)
        assert isinstance(leaf, Leaf)
        cut_leaf(leaf, f"{path}.{name}", ranks, layout, axis=AXIS)
        if name == row:
            leaf.wrap("tensor", Merge(ranks.group(AXIS)))
    if site.chain:
        raise UnsupportedError(
            f"{path} has a technique attached, which would see a part of what it acts on",
            remedy="Fold it first, or use the shard axis.",
        )
    site.wrap("tensor", Spread(ranks.group(AXIS)))
    for name, _ in site.named_parameters():
        if AXIS not in layout.cuts[f"{path}.{name}"].along:
            layout.also(f"{path}.{name}", AXIS)


def _require_apart(attention: Attention, path: str) -> None:
    """Raises UnsupportedError where a head needs to know of the others."""
    norms = [norm for norm in (attention.q_norm, attention.k_norm, attention.turned_norm) if norm is not None]
    reason = None
    if any(attention.norms_whole) or not all(isinstance(norm, RMSNorm | UnitNorm) for norm in norms):
        reason = "its norms span all heads, or give each its own gains"
    elif attention.score_bias is not None or attention.sinks is not None:
        reason = "its heads are told apart by a bias or a sink of their own"
    if reason is not None:
        raise UnsupportedError(f"{path} cannot be cut by heads: {reason}", remedy="Use the shard axis instead.")


def _require_all_cut(network: Decoder, layout: Layout) -> None:
    """Raises UnsupportedError for a weight with an axis to cut, in a layer that this does not know how to cut."""
    for path, leaf in network.layers.named_modules(prefix="layers"):
        if isinstance(leaf, Leaf) and AXIS in {RULES.get(axis) for axis in leaf.axes}:
            held = [f"{path}.{name}" for name, _ in leaf.named_parameters()]
            if any(AXIS not in layout.cuts[name].along for name in held):
                raise UnsupportedError(
                    f"{path} belongs to a layer that is not made of maps to be cut by columns and then by rows",
                    remedy="Use the shard axis, which cuts any weight.",
                )


def _cut_vocabulary(network: Decoder, ranks: Ranks, layout: Layout, group: dist.ProcessGroup) -> None:
    head = network.head
    if _head_chain(head) or network.embed.chain:
        return  # whole on every rank, which is right and merely larger
    if isinstance(head, Head) and RULES.get(head.projection.axes[0]) == AXIS:
        cut_leaf(head.projection, "head.projection", ranks, layout, axis=AXIS)
    elif not isinstance(head, TiedHead) or head.inward is not None:
        return
    head.wrap("tensor", WholeLogits(group))
    cut_leaf(network.embed, "embed", ranks, layout, axis=AXIS)
    size = network.vocab_size // ranks.size(AXIS)
    network.embed.wrap("vocabulary", RangeOfVocabulary(ranks.index(AXIS) * size, size))
    network.embed.wrap("tensor", Merge(group))


def _head_chain(head: nn.Module) -> tuple[Around, ...]:
    """What is attached to a head or to its map."""
    chain = head.chain if isinstance(head, Site) else ()
    return (*chain, *head.projection.chain) if isinstance(head, Head) else chain
