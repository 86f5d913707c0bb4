"""Latest weight averaging: the uniform average of the last few checkpoints, moving along with the run.

LAWA (Kaddour 2022, arXiv 2209.14981): of the weights at the ends of the last k intervals. Unlike an average over
all the run it forgets; unlike an exponential one it forgets at once. It costs k copies of the weights in memory
and in every checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.train.averaging.average import AverageRule, State, Weights, mean_of

KEPT = "kept/"


@dataclass(frozen=True, kw_only=True)
class Lawa(AverageRule):
    """``last`` checkpoints, one every ``every`` steps."""

    last: int = 6
    every: int = 100

    def __post_init__(self) -> None:
        if self.last < 1 or self.every < 1:
            raise UnsupportedError(
                f"An average of {self.last} checkpoints, every {self.every} steps", remedy="Give 1 or more of both."
            )

    def take(self, state: State, weights: Weights, progress: tuple[int, int]) -> None:
        step, _ = progress
        if step % self.every:
            return
        slot = step // self.every % self.last  # over the oldest
        state.update({f"{KEPT}{slot}/{name}": weight.float().clone() for name, weight in weights.items()})

    def mean(self, state: State) -> dict[str, Tensor]:
        copies: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            slot, _, name = key.removeprefix(KEPT).partition("/")
            copies.setdefault(slot, {})[name] = tensor
        return mean_of([copies[slot] for slot in sorted(copies)]) if copies else {}
