"""Skip-gram with negative sampling: the vector of a word tells the words around it from words drawn at random.

Mikolov et al. 2013, "Distributed representations of words and phrases and their compositionality" (arXiv 1310.4546),
equation 4. For a word w and a word c seen near it, with k words n_i drawn from the noise distribution,

    loss = -log sigma(u_c . v_w) - sum_i log sigma(-u_{n_i} . v_w)          mean over the pairs

v are the vectors that are kept, u those of words as context. Its gradient needs no autograd, and a batch touches few rows
of two large tables, so the closed form is given beside the loss:

    d loss / d u = (sigma(u . v) - label) v,      d loss / d v = sum over c and n_i of (sigma(u . v) - label) u

Legend: n pairs, k noise words for each, h width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError


class Gradients(NamedTuple):
    """The loss, and its gradient by each argument of `skip_gram`, in their shapes."""

    loss: Tensor  # []
    words: Tensor  # [n, h]
    contexts: Tensor  # [n, h]
    noise: Tensor  # [n, k, h]


def skip_gram(words: Tensor, contexts: Tensor, noise: Tensor) -> Tensor:
    """The loss, a scalar; differentiable.

    Args:
        words: v, [n, h].
        contexts: u of the words seen nearby, [n, h].
        noise: u of the words drawn at random, [n, k, h].

    Raises:
        ShapeError: the shapes do not fit, or there is no pair.
    """
    near, far = _scores(words, contexts, noise)
    return -(F.logsigmoid(near) + F.logsigmoid(-far).sum(1)).mean()


def skip_gram_gradients(words: Tensor, contexts: Tensor, noise: Tensor) -> Gradients:
    """The loss and its gradients in closed form. Arguments and errors as `skip_gram`."""
    near, far = _scores(words, contexts, noise)
    pairs = len(words)
    by_near = (torch.sigmoid(near) - 1) / pairs  # [n]
    by_far = torch.sigmoid(far) / pairs  # [n, k]
    return Gradients(
        loss=-(F.logsigmoid(near) + F.logsigmoid(-far).sum(1)).mean(),
        words=by_near[:, None] * contexts + torch.einsum("nk,nkh->nh", by_far, noise),
        contexts=by_near[:, None] * words,
        noise=by_far[:, :, None] * words[:, None, :],
    )


def _scores(words: Tensor, contexts: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """u . v for the words nearby [n] and for the noise [n, k]."""
    fits = words.ndim == 2 and words.shape == contexts.shape and noise.ndim == 3
    if not fits or noise.shape[::2] != words.shape or not len(words):
        raise ShapeError(
            f"Words {tuple(words.shape)}, contexts {tuple(contexts.shape)} and noise {tuple(noise.shape)}",
            remedy="Give [n, h], [n, h] and [n, k, h] with at least one pair.",
        )
    return (words * contexts).sum(1), torch.einsum("nh,nkh->nk", words, noise)
