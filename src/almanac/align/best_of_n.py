"""Best of n: answer n times, keep the answer that a reward likes best. No training, and yet a policy of its own.

Stiennon 2020, arXiv 2009.01325, section 4.3. How far that policy is from the model is known without a model: if no two
answers have the same reward, KL(best of n ‖ model) = log n - (n - 1) / n, and it is less where answers tie (Beirami 2024,
arXiv 2401.01879: a bound in general). Nakano 2021, arXiv 2112.09332, and Gao 2022, arXiv 2210.10760, measure by it how
hard a reward was optimised; a proxy optimised too hard loses what it stood for.

Legend: p(x) probability of an answer, r(x) its reward, F the distribution function of rewards under p.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.generate.sampling import Sampling, sampling
from almanac.language_model.model import DEFAULT_MAX_TOKENS, LanguageModel

Reward = Callable[[str], float]
"""From an answer's text to how good it is."""


@dataclass(frozen=True)
class Best:
    """The chosen answer, its reward, and all n answers with theirs, in the order they were drawn."""

    text: str
    reward: float
    drawn: tuple[tuple[str, float], ...]


def best_of_n(
    lm: LanguageModel,
    tokens: str | list[int],
    *,
    reward: Reward,
    n: int,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    options: Sampling | None = None,
) -> Best:
    """Draws ``n`` answers, decoded together, and keeps the best; the first drawn of equally good ones.

    Args:
        tokens: a prompt, as text or as ids (such as ``lm.chat_tokens`` gives).
        options: how to sample, by default at temperature 1; its seed gives every answer a seed of its own.

    Raises:
        RequestError: n below 1, greedy options (all answers would be one), a reward that is not a finite number, or what
            the engine refuses.
    """
    options = options or sampling(temperature=1.0)
    if n < 1:
        raise RequestError(f"n is {n}", remedy="Draw at least one answer.")
    if options.greedy and n > 1:
        raise RequestError("Greedy answers are all the same", remedy="Sample at a temperature above 0.")
    prompt = lm.tokenizer.encode(tokens, allow_special=False) if isinstance(tokens, str) else tokens
    engine = lm.engine()
    handles = [
        engine.submit(lm.request(prompt, max_tokens=max_tokens, sampling=options.with_(seed=seed)))
        for seed in seeds_of(options.seed, n)
    ]
    texts = ["".join(event.text for event in handle) for handle in handles]
    drawn = tuple((text, _finite(reward(text))) for text in texts)
    text, value = max(drawn, key=lambda item: item[1])
    return Best(text, value, drawn)


def kl_bound(n: int) -> float:
    """The most that best of ``n`` can be from the model, in nats; exact if no two answers have the same reward."""
    return math.log(n) - (n - 1) / n


def best_of_n_law(p: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The law of the best of ``n`` draws, float64 [answers]: p(x) · (F(r)ⁿ - F(r-)ⁿ) / P(reward = r) at r = r(x).

    Args:
        p: probabilities of all answers, float [answers], which sum to one; rewards: float [answers].

    Raises ShapeError if the two do not fit.
    """
    if p.shape != rewards.shape or p.dim() != 1:
        raise ShapeError(
            f"Probabilities of shape {tuple(p.shape)}, rewards of shape {tuple(rewards.shape)}",
            remedy="Give one of each per answer.",
        )
    _, level = rewards.unique(sorted=True, return_inverse=True)
    p = p.double()
    mass = p.new_zeros(int(level.max()) + 1).index_add(0, level, p)  # of each reward, lowest first
    upto = mass.cumsum(0).clamp(max=1.0)
    before = torch.cat([upto.new_zeros(1), upto[:-1]])
    gained = upto**n - before**n
    return torch.where(mass[level] > 0, p * gained[level] / mass[level], 0.0)


def seeds_of(seed: int, n: int) -> list[int]:
    """A seed for each of ``n`` answers; other seeds give others, so that no two calls share a draw by chance."""
    return [int.from_bytes(hashlib.sha256(f"{seed}/{at}".encode()).digest()[:7], "big") for at in range(n)]


def _finite(reward: float) -> float:
    if not math.isfinite(reward):
        raise RequestError(f"A reward of {reward}", remedy="Give every answer a finite number.")
    return float(reward)
