"""The optimal brain surgeon's sweep: settle a weight's columns one after the other, let those that follow make up for it.

Hassibi 1993 (optimal brain surgeon), as made fast by Frantar 2022 (arXiv 2210.17323, sections 3.2-3.3): with H = Σ x xᵀ and
the upper Cholesky factor U of its inverse, H⁻¹ = Uᵀ U, fixing column i at q leaves the least squared output error if

    W[:, i:] -= (W[:, i] - q) / U[i, i] · U[i, i:]

for each i in turn. Updates within a block of columns are made at once, those beyond it when the block is done.

Legend: W [out, in]; H [in, in].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError

BLOCK = 128  # columns

Settle = Callable[[Tensor, int], Tensor]
"""(W as it stands [out, in], column) -> that column's final values [out]."""


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """U float32 [in, in], upper, with (H + damping · mean(diag H) · I)⁻¹ = Uᵀ U.

    Raises UnsupportedError where that matrix is singular.
    """
    hessian = gram.double().clone()
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(damping * mean if mean > 0 else 1.0)
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not int(failed):
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return factor.float()
    raise UnsupportedError(
        "The inputs of a linear map do not span its channels", remedy="Give more calibration tokens, or more damping."
    )


def sweep(weight: Tensor, factor: Tensor, settle: Settle, *, block: int = BLOCK) -> Tensor:
    """W with every column settled, from left to right."""
    work = weight.detach().float().clone()
    for start in range(0, work.shape[1], block):
        end = min(start + block, work.shape[1])
        errors = torch.empty(work.shape[0], end - start, device=work.device)
        for column in range(start, end):
            settled = settle(work, column)
            error = (work[:, column] - settled) / factor[column, column]
            work[:, column + 1 : end] -= torch.outer(error, factor[column, column + 1 : end])
            work[:, column] = settled
            errors[:, column - start] = error
        work[:, end:] -= errors @ factor[start:end, end:]
    return work
