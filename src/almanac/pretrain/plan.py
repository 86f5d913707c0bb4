"""The compute-optimal planner: for this budget that size, so many tokens, this loss, this energy.

Every shape of the ladder is weighed: within C = 6 N D it gets the tokens that the budget leaves it, the law says what comes
of it, and the least loss wins (Hoffmann 2022, arXiv 2203.15556, section 3, over shapes that exist instead of real numbers).
Where the corpus is smaller than that, its repetitions are worth what Muennighoff 2023, arXiv 2305.16264, found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from almanac.core.errors import RequestError, UnsupportedError
from almanac.evaluate.scaling import REFIT, Law
from almanac.evaluate.scaling_kaplan import KaplanLaw
from almanac.evaluate.scaling_law import FLOPS_PER_PARAMETER_TOKEN, Fitted, Forecast, ScalingLaw
from almanac.evaluate.scaling_repeated import MUENNIGHOFF, RepeatedLaw
from almanac.pretrain.plan_machine import Machine
from almanac.pretrain.plan_shape import Shape, ladder

FAR = 10.0  # times the range of the runs, from which on a forecast is a bet
MANY_EPOCHS = 4.0  # repetitions that cost next to nothing (Muennighoff 2023, abstract)


@dataclass(frozen=True)
class Plan:
    """What to train and what to expect of it.

    - ``forecast``: nats a token; without an interval (low and high are the loss) where the law came without its runs
    - ``epochs``: how often the corpus is read; None where its size was not given
    - ``seconds``, ``watt_hours``: None where no machine was given
    """

    shape: Shape
    tokens: int
    flops: float
    forecast: Forecast
    epochs: float | None
    seconds: float | None
    watt_hours: float | None
    notes: tuple[str, ...]

    def euros(self, price: float) -> float | None:
        """The energy's price at ``price`` euros a kWh."""
        return None if self.watt_hours is None else self.watt_hours / 1000 * price

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "hidden": self.shape.hidden, "layers": self.shape.layers, "heads": self.shape.heads,
            "intermediate": self.shape.intermediate, "vocab_size": self.shape.vocab_size, "tied": self.shape.tied,
            "parameters": self.shape.parameters, "non_embedding": self.shape.non_embedding, "tokens": self.tokens,
            "flops": self.flops, "epochs": self.epochs, "seconds": self.seconds, "watt_hours": self.watt_hours,
            "notes": list(self.notes), **self.forecast.to_dict(),
        }  # fmt: skip


def plan(
    flops: float | None = None,
    *,
    seconds: float | None = None,
    machine: Machine | None = None,
    law: ScalingLaw | Fitted = REFIT,
    vocab_size: int = 32_000,
    corpus_tokens: float | None = None,
) -> Plan:
    """The shape and the tokens of least expected loss for a budget.

    Args:
        flops: operations of the whole run, as 6 N D counts them; or:
        seconds: of ``machine``, which trains some shapes faster than others.
        machine: what it is to run on; with ``flops`` for time and energy alone.
        law: a law, or one with its runs, which gives an interval; by default the refit of Chinchilla's points.
        vocab_size: of the tokenizer.
        corpus_tokens: different tokens there are; None: as many as wanted.

    Raises:
        RequestError: no budget or two, one that is not positive or does not pay for a token, or a corpus of none.
        UnsupportedError: a corpus size with a law that cannot tell repetition.
    """
    budget = _budget(flops, seconds, machine)
    if corpus_tokens is not None and not corpus_tokens > 0:
        raise RequestError(f"A corpus of {corpus_tokens:g} tokens", remedy="Give a positive number.")
    bare = law.law if isinstance(law, Fitted) else law
    told = bare if corpus_tokens is None else repeating(bare)
    counts = _counted(bare)
    best: tuple[float, Shape, float] | None = None
    for shape in ladder(vocab_size):
        tokens = budget(shape) / (FLOPS_PER_PARAMETER_TOKEN * shape.parameters)
        if tokens < 1:
            break
        loss = told.loss(counts(shape), tokens, corpus_tokens)
        if best is None or loss < best[0]:
            best = (loss, shape, tokens)
    if best is None:
        raise RequestError(
            "The budget does not pay for one token", remedy="Give a larger one, or a smaller vocabulary."
        )
    loss, shape, tokens = best
    took = None if machine is None else budget(shape) / machine.flops_per_second(shape.parameters)
    return Plan(
        shape=shape,
        tokens=round(tokens),
        flops=budget(shape),
        forecast=_forecast(law, told, loss, counts(shape), tokens, corpus_tokens),
        epochs=None if corpus_tokens is None else tokens / corpus_tokens,
        seconds=took,
        watt_hours=None if machine is None or took is None else machine.watt_hours(took),
        notes=tuple(_notes(law, shape, counts(shape), tokens, corpus_tokens)),
    )


def _budget(flops: float | None, seconds: float | None, machine: Machine | None) -> Callable[[Shape], float]:
    """Operations that a shape gets."""
    given = [item for item in (flops, seconds) if item is not None]
    if len(given) != 1 or not given[0] > 0 or (seconds is not None and machine is None):
        raise RequestError(
            f"A budget of {flops} FLOPs and {seconds} seconds",
            remedy="Give one of them, positive; seconds of a machine.",
        )
    if seconds is None or machine is None:
        return lambda shape: given[0]
    return lambda shape: given[0] * machine.flops_per_second(shape.parameters)


def repeating(law: ScalingLaw) -> ScalingLaw:
    """The law with Muennighoff's worth of repeated data. Raises UnsupportedError for a form that has no place for it."""
    if isinstance(law, RepeatedLaw):
        return law
    if isinstance(law, Law):
        return MUENNIGHOFF.with_(base=law)
    raise UnsupportedError(
        f"{law.kind()} cannot tell what repeated data are worth",
        remedy="Fit Chinchilla's form, or leave the size of the corpus out.",
    )


def _counted(law: ScalingLaw) -> Callable[[Shape], float]:
    """Which parameters the law's N counts: Kaplan's has no embeddings."""
    if isinstance(law, KaplanLaw):
        return lambda shape: float(shape.non_embedding)
    return lambda shape: float(shape.parameters)


def _forecast(
    law: ScalingLaw | Fitted, told: ScalingLaw, loss: float, size: float, tokens: float, unique: float | None
) -> Forecast:
    """With the interval of the law's runs, where there are any, moved to what repetition leaves of the data."""
    if not isinstance(law, Fitted):
        return Forecast(loss, loss, loss)
    if isinstance(law.law, RepeatedLaw):
        return law.forecast(size, tokens, unique)
    if isinstance(told, RepeatedLaw) and unique is not None:
        fresh = min(unique, tokens)
        size, tokens = told.effective_parameters(size, fresh), told.effective_tokens(tokens, fresh)
    return law.forecast(size, tokens)


def _notes(law: ScalingLaw | Fitted, shape: Shape, size: float, tokens: float, unique: float | None) -> list[str]:
    notes = []
    if unique is not None and tokens / unique > MANY_EPOCHS:
        notes.append(
            f"the corpus is read {tokens / unique:.0f} times: beyond about 4 times text is worth ever less; more text would "
            "serve better than more training"
        )
    if isinstance(law, Fitted):
        for name, value in (("parameters", size), ("tokens", tokens)):
            low, high = law.spans()[name]
            if not low / FAR <= value <= high * FAR:
                notes.append(f"{value:.3g} {name} lie far outside the runs of the law ({low:.3g} to {high:.3g})")
    elif size < 4e7:
        notes.append("the law was fitted to models of 44 million parameters and more, other data and another tokenizer")
    if shape.vocab_size * shape.hidden > shape.parameters / 2:
        notes.append(
            "more than half of the parameters are embeddings: a smaller vocabulary would leave more to the layers"
        )
    return notes
