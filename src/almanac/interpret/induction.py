"""Induction heads: heads that, at a token, look at what followed it before, and say it again. [A][B] ... [A] -> [B].

Olsson 2022, arXiv 2209.11895, names the two properties measured here, on random tokens that repeat:

- *prefix matching*: the attention that a head pays to the tokens that followed earlier occurrences of the current one;
- *copying*: whether what the head writes raises the logits of the tokens that it looks at.

Deviation: copying is read from the weights, by the sign of the eigenvalues of the whole circuit from token to logit,
W_U W_O W_V W_E (Elhage 2021, "A Mathematical Framework for Transformer Circuits", section "Summarizing OV/QK matrices"),
instead of from sampled logits; norms on the way are taken for a scaling, as there.

Legend: b batch, n query heads, t tokens, d head_dim, h hidden, v vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from almanac.core.errors import SelectionError, UnsupportedError
from almanac.core.site import select
from almanac.core.weight import StoredWeight
from almanac.interpret.attention import attention_patterns
from almanac.nn.attention.full import Attention
from almanac.nn.head import Head
from almanac.nn.stack import Decoder


def follows_earlier(tokens: Tensor) -> Tensor:
    """bool [b, t, t]: whether key j, before query i, came right after an earlier occurrence of i's token.

    ``tokens`` int64 [b, t]. A query is never paired with itself, not even where a token stands twice in a row.
    """
    same = tokens[:, :, None] == tokens[:, None, :]  # [b, query, earlier]
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    return after.tril(diagonal=-1)


def prefix_matching(patterns: Tensor, tokens: Tensor) -> Tensor:
    """The share of attention that falls on what followed earlier occurrences, averaged over the queries that have any.

    Args:
        patterns: attention weights [b, n, t, t] of a pass over ``tokens``.
        tokens: int64 [b, t]; random ones, part of which repeat.

    Returns:
        float [n], from 0 to 1.

    Raises SelectionError if no token repeats.
    """
    wanted = follows_earlier(tokens)
    queries = wanted.any(dim=-1)  # [b, t]
    if not bool(queries.any()):
        raise SelectionError("No token of the text repeats", remedy="Give random tokens with a repeated segment.")
    paid = (patterns * wanted.unsqueeze(1)).sum(dim=-1)  # [b, n, t]
    return paid.transpose(0, 1)[:, queries].mean(dim=-1)


def prefix_matching_scores(network: Decoder, tokens: Tensor, sites: str = "**.mixer") -> dict[str, Tensor]:
    """Path of each attention layer -> the prefix-matching score of each of its heads, float [n]."""
    found = attention_patterns(network, tokens, sites)
    return {path: prefix_matching(pattern, tokens) for path, pattern in found.items()}


@torch.no_grad()
def copying_scores(network: Decoder, sites: str = "**.mixer") -> dict[str, Tensor]:
    """Path of each attention layer -> the copying score of each of its heads, float [n], from -1 to 1.

    The score is sum(λ) / sum(|λ|) over the eigenvalues λ of the head's circuit from token to logit [v, v]. Its nonzero
    eigenvalues are those of the [d, d] product in turned order, which is what is computed.

    Raises UnsupportedError for a head without a matrix of one row per token.
    """
    embed = _dense(network.embed.weight)  # [v, h]
    unembed = _dense(network.head.projection.weight) if isinstance(network.head, Head) else embed
    if unembed.shape != embed.shape:
        raise UnsupportedError("The head does not map hidden vectors to tokens", remedy="Use a decoder of tokens.")
    through = embed.T @ unembed  # [h, h]: from what a head writes, by way of the logits, to what it would read next
    scores = {}
    for path, layer in select(network, sites, of=Attention).items():
        size, group = layer.head_dim, layer.num_heads // layer.num_kv_heads
        values = layer.v.dense_weight().double().unflatten(0, (-1, size)).repeat_interleave(group, dim=0)  # [n, d, h]
        outputs = layer.o.dense_weight().double().unflatten(1, (-1, size)).transpose(0, 1)  # [n, h, d]
        found = torch.linalg.eigvals(values @ through @ outputs)  # [n, d]
        scores[path] = (found.sum(dim=-1).real / found.abs().sum(dim=-1).clamp_min(1e-30)).float()
    return scores


def _dense(weight: Tensor | StoredWeight) -> Tensor:
    return (weight.dense() if isinstance(weight, StoredWeight) else weight).double()
