"""Expert parallelism: every rank keeps some experts, and sends each token's row to whoever keeps its expert.

GShard (Lepikhin 2020, arXiv 2006.16668, section 3.2): rows come sorted by expert, so those for one rank are one range; an
all-to-all brings them there, the rank's own experts speak, another brings the answers back. Which tokens find room was
decided before, row by row of the batch, so that what is dropped does not depend on the number of ranks. Only rows travel,
never empty places of a capacity.

Legend: n rows of this rank, sorted by expert; e experts; m rows that arrive; h hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around, Leaf, Site
from almanac.nn.channel.moe.grouped import groups_of, sorted_by_group
from almanac.nn.channel.moe.mixture import Mixture
from almanac.nn.stack import Decoder
from almanac.train.parallel.collectives import exchanged
from almanac.train.parallel.mesh import Ranks
from almanac.train.parallel.rules import Layout, cut_leaf

AXIS = "expert"


def spread_experts(network: Decoder, ranks: Ranks, layout: Layout) -> list[str]:
    """Keeps this rank's experts of every mixture; returns the paths of the channels that are spread.

    Raises:
        UnsupportedError: there is no mixture, its experts do not divide, or something is attached to them.
    """
    found: list[str] = []
    for path, module in list(network.named_modules()):
        if not isinstance(module, Mixture):
            continue
        experts = module.experts
        assert isinstance(experts, Site)
        for name, leaf in experts.named_modules():
            if isinstance(leaf, Leaf):
                cut_leaf(leaf, f"{path}.experts.{name}", ranks, layout, axis=AXIS)
        experts.wrap("expert", Dispatch(ranks.group(AXIS)))
        found.append(f"{path}.experts")
    if not found:
        raise UnsupportedError(
            f"{ranks.size(AXIS)} expert ranks for a network without experts", remedy="Use the data or the shard axis."
        )
    return found


class Dispatch(Around):
    """Rows [n, h] sorted by expert, ends [e] -> what their experts say, wherever these are, [n, h]."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, following: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        rows, ends = inputs
        ranks, total = dist.get_world_size(self.group), int(ends[-1])
        counts = ends.diff(prepend=ends.new_zeros(1)).view(ranks, -1)  # [ranks, own experts of each]
        theirs = torch.empty_like(counts)  # rows that each rank has for each expert of ours
        dist.all_to_all_single(theirs, counts.contiguous(), group=self.group)
        sent, received = counts.sum(1).tolist(), theirs.sum(1).tolist()
        arrived = exchanged(rows[:total], sent, received, self.group)  # [m, h], by rank, then by expert
        owners = groups_of(theirs.flatten().cumsum(0), len(arrived)) % theirs.shape[1]
        order, own_ends = sorted_by_group(owners, theirs.shape[1])
        said = following(arrived.index_select(0, order), own_ends)
        back = said.index_select(
            0, torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        )
        answers = exchanged(back, received, sent, self.group)
        return (
            answers
            if total == len(rows)
            else torch.cat([answers, answers.new_zeros(len(rows) - total, answers.shape[1])])
        )
