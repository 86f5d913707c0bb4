"""What the names of the command line stand for: optimizers, schedules, precisions and averages as a run wants them."""

from __future__ import annotations

from almanac.core.errors import RequestError
from almanac.files.quoting import quoted
from almanac.pretrain.objectives.denoising import Denoising
from almanac.pretrain.objectives.fill_in_the_middle import FillInTheMiddle
from almanac.pretrain.objectives.masked import Masked
from almanac.pretrain.objectives.mixture_of_denoisers import MixtureOfDenoisers
from almanac.pretrain.objectives.multi_token import MultiToken
from almanac.pretrain.objectives.next_token import NextToken
from almanac.pretrain.objectives.objective import Objective
from almanac.pretrain.objectives.prefix import Prefix
from almanac.pretrain.objectives.replaced_token import ReplacedToken
from almanac.pretrain.objectives.span_corruption import SpanCorruption
from almanac.train.activation_checkpointing import ActivationCheckpointing
from almanac.train.averaging.average import AverageRule
from almanac.train.averaging.ema import Ema
from almanac.train.averaging.lawa import Lawa
from almanac.train.optimizers.adafactor import Adafactor
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.adamw_8bit import AdamW8bit
from almanac.train.optimizers.lion import Lion
from almanac.train.optimizers.muon import Muon
from almanac.train.optimizers.optimizer import Optimizer
from almanac.train.parallel.mesh import AXES, Mesh
from almanac.train.precision import BFloat16, Float16, Full, Precision
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.cosine_restarts import CosineRestarts
from almanac.train.schedules.inverse_square_root import InverseSquareRoot
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule
from almanac.train.schedules.stable import Stable

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": AdamW(beta2=0.95, weight_decay=0.1),
    "adamw-8bit": AdamW8bit(),
    "adafactor": Adafactor(),
    "lion": Lion(),
    "muon": Muon(),
}
SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(floor=0.1),
    "restarts": CosineRestarts(),
    "linear": Linear(),
    "stable": Stable(),
    "inverse-square-root": InverseSquareRoot(),
}
PRECISIONS: dict[str, Precision] = {"float32": Full(), "bfloat16": BFloat16(), "float16": Float16()}
EMA_DECAY = 0.99  # spans a hundred steps, a tenth of a usual run


OBJECTIVES: dict[str, Objective] = {
    "next-token": NextToken(),
    "multi-token": MultiToken(),
    "fill-in-the-middle": FillInTheMiddle(),
    "prefix": Prefix(),
    "masked": Masked(),
    "whole-word": Masked(whole_words=True),
    "replaced-token": ReplacedToken(),
    "span-corruption": SpanCorruption(),
    "denoising": Denoising(),
    "mixture-of-denoisers": MixtureOfDenoisers(),
}


def objective(name: str | None) -> Objective | None:
    """The objective of that name; None for None, next tokens."""
    return None if name is None else OBJECTIVES[name]


def mesh(text: str | None) -> Mesh | None:
    """The mesh of ``data=2,shard=2``. Raises RequestError for what is none, UnsupportedError for axes that do not go."""
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in sizes or not size.isascii() or not size.isdigit():
            raise RequestError(
                f"{quoted(text)} is no mesh", remedy=f"Say it as data=2,tensor=2; the axes are {', '.join(AXES)}."
            )
        sizes[axis] = int(size)
    return Mesh().with_(**sizes)


def optimizer(name: str | None) -> Optimizer | None:
    """The optimizer of that name; None for None, the usual one."""
    return None if name is None else OPTIMIZERS[name]


def schedule(name: str | None) -> Schedule | None:
    """The schedule of that name; None for None."""
    return None if name is None else SCHEDULES[name]


def precision(name: str | None) -> Precision | None:
    """The precision of that name; None for None."""
    return None if name is None else PRECISIONS[name]


def average(name: str | None, *, every: int) -> AverageRule | None:
    """The average of that name, Lawa's of weights ``every`` so many steps; None for None."""
    rules: dict[str, AverageRule] = {"ema": Ema(decay=EMA_DECAY), "lawa": Lawa(every=every)}
    return None if name is None else rules[name]


def activations(recompute: bool) -> ActivationCheckpointing | None:
    """How activations are kept; None: all of them."""
    return ActivationCheckpointing() if recompute else None
