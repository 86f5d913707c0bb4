"""Sparse autoencoder: activations as sums of few directions from a dictionary larger than their width.

Bricken 2023 (Towards Monosemanticity), Cunningham 2023, arXiv 2309.08600: f = relu(We (x - c) + b), x' = Wd f + c, trained
on |x - x'|² + λ Σ f. The columns of Wd are kept at unit norm (else the penalty is evaded by small f and long columns), the
part of their gradient along themselves is taken out, and units that never fire are set anew towards inputs that are
reconstructed badly (Bricken 2023, appendix). Low reconstruction error does not mean that the dictionary is right: a dense
code reconstructs best.

Deviations: activations are scaled to unit mean square before training and the scale is kept with the dictionary, so that λ
means the same at every site; the learning rate falls linearly to zero over the last fifth.

Legend: n activations of width d; m features; We [m, d], Wd [d, m], c [d], b [m]; f [n, m].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError, TrainingError
from almanac.core.site import Around, Site, select
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Learning(Value):
    """How a dictionary is learned: λ, steps, activations a step, learning rate, and steps between looks at dead units."""

    sparsity: float = 0.3
    steps: int = 2000
    rows: int = 512
    rate: float = 2e-3
    revive_every: int = 400
    seed: int = 0


class SparseAutoencoder(nn.Module):
    """x [..., d] -> its reconstruction [..., d]; ``encode`` gives the features f >= 0 [..., m]."""

    scale: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int  # d
        features: int  # m

        def build(self) -> SparseAutoencoder:
            return SparseAutoencoder(self)

    def __init__(self, spec: SparseAutoencoder.Spec) -> None:
        super().__init__()
        if spec.hidden < 1 or spec.features < 1:
            raise ShapeError(
                f"A dictionary of {spec.features} directions of width {spec.hidden}", remedy="Give both from 1."
            )
        self.encoder = nn.Parameter(torch.zeros(spec.features, spec.hidden))
        self.decoder = nn.Parameter(torch.zeros(spec.hidden, spec.features))
        self.bias = nn.Parameter(torch.zeros(spec.features))
        self.centre = nn.Parameter(torch.zeros(spec.hidden))
        self.register_buffer("scale", torch.ones(()))

    def initialise(self, seed: int) -> None:
        """Random unit columns, the encoder their transpose, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            columns = torch.randn(self.decoder.shape, generator=generator)
            self.decoder.copy_(F.normalize(columns, dim=0))
            self.encoder.copy_(self.decoder.T)
            self.bias.zero_()

    def encode(self, x: Tensor) -> Tensor:
        """f [..., m] of x [..., d]. Raises ShapeError for another width."""
        if x.shape[-1] != self.centre.shape[0]:
            raise ShapeError(
                f"Activations of width {x.shape[-1]} for a dictionary of width {self.centre.shape[0]}",
                remedy="Use the autoencoder at the site whose activations it was trained on.",
            )
        return F.relu(F.linear(x / self.scale - self.centre, self.encoder, self.bias))

    def decode(self, features: Tensor) -> Tensor:
        """x' [..., d] of f [..., m]."""
        return (F.linear(features, self.decoder) + self.centre) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def objective(autoencoder: SparseAutoencoder, x: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
    """(mean over n of |x - x'|² + λ Σ f in scaled units, features [n, m])."""
    features = autoencoder.encode(x)
    error = (autoencoder.decode(features) - x) / autoencoder.scale
    return error.square().sum(dim=-1).mean() + sparsity * features.sum(dim=-1).mean(), features


@torch.no_grad()
def normalise_columns(autoencoder: SparseAutoencoder) -> None:
    """Puts every column of the decoder back to unit norm."""
    autoencoder.decoder.copy_(F.normalize(autoencoder.decoder, dim=0))


@torch.no_grad()
def project_gradient(autoencoder: SparseAutoencoder) -> None:
    """Takes out of the decoder's gradient what points along the (unit) columns themselves."""
    gradient, columns = autoencoder.decoder.grad, autoencoder.decoder
    if gradient is not None:
        gradient -= (gradient * columns).sum(dim=0) * columns


@torch.no_grad()
def revive(autoencoder: SparseAutoencoder, x: Tensor, dead: Tensor, generator: torch.Generator) -> None:
    """Points the units in bool ``dead`` [m] at inputs of x [n, d], drawn by their squared reconstruction error."""
    count = int(dead.sum())
    if not count:
        return
    error = (x - autoencoder(x)).square().sum(dim=-1) + 1e-12
    chosen = torch.multinomial(error, count, replacement=count > len(x), generator=generator)
    columns = F.normalize(x[chosen] / autoencoder.scale - autoencoder.centre, dim=-1)
    alive = autoencoder.encoder[~dead]
    length = alive.norm(dim=1).mean() if len(alive) else torch.ones(())
    autoencoder.decoder[:, dead] = columns.T
    autoencoder.encoder[dead] = 0.2 * length * columns  # weak at first: it must win its inputs, not break them
    autoencoder.bias[dead] = 0.0


def train_dictionary(
    activations: Tensor,
    features: int,
    learning: Learning | None = None,
    *,
    on_step: Callable[[int, SparseAutoencoder], None] = lambda step, autoencoder: None,
) -> SparseAutoencoder:
    """Learns ``features`` directions from float activations [n, d]; the same for equal seeds on one machine.

    Raises:
        ShapeError: not a matrix, or fewer than two activations. TrainingError: they are all alike or not finite.
    """
    learning = learning or Learning()
    if activations.dim() != 2 or len(activations) < 2:
        raise ShapeError(
            f"Activations of shape {tuple(activations.shape)}", remedy="Give a matrix [n, d], one row per token."
        )
    spread = float((activations - activations.mean(dim=0)).square().mean().sqrt())
    if not math.isfinite(spread) or spread == 0.0:
        raise TrainingError(
            "The activations do not differ or are not finite", remedy="Collect them over many different tokens."
        )
    activations = activations.detach().float()
    autoencoder = SparseAutoencoder.Spec(hidden=activations.shape[1], features=features).build()
    autoencoder.initialise(learning.seed)
    with torch.no_grad():
        autoencoder.scale.copy_(activations.square().mean().sqrt())
        autoencoder.centre.copy_(activations.mean(dim=0) / autoencoder.scale)
    _descend(autoencoder, activations, learning, on_step)
    return autoencoder.eval()


def _descend(
    autoencoder: SparseAutoencoder,
    activations: Tensor,
    learning: Learning,
    on_step: Callable[[int, SparseAutoencoder], None],
) -> None:
    generator = torch.Generator().manual_seed(learning.seed + 1)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=learning.rate, betas=(0.9, 0.999))
    fired = torch.zeros(autoencoder.bias.shape, dtype=torch.bool)
    for step in range(learning.steps):
        left = (learning.steps - step) / max(1, learning.steps // 5)
        optimizer.param_groups[0]["lr"] = learning.rate * min(1.0, left)
        rows = torch.randint(len(activations), (learning.rows,), generator=generator)
        loss, features = objective(autoencoder, activations[rows], learning.sparsity)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        project_gradient(autoencoder)
        optimizer.step()
        normalise_columns(autoencoder)
        fired |= (features.detach() > 0).any(dim=0)
        if (step + 1) % learning.revive_every == 0 and left > 1:
            revive(autoencoder, activations[rows], ~fired, generator)
            fired.zero_()
        on_step(step, autoencoder)


@torch.no_grad()
def unexplained(autoencoder: SparseAutoencoder, x: Tensor) -> float:
    """The share of the variance of x [n, d] that its reconstruction leaves: 0 perfect, 1 no better than the mean."""
    return float((x - autoencoder(x)).square().sum() / (x - x.mean(dim=0)).square().sum())


def recovery(truth: Tensor, dictionary: Tensor) -> Tensor:
    """The largest cosine of each true direction (rows of [k, d]) with any learned one (rows of [m, d]); float [k].

    Its mean is the mean max cosine similarity of Sharkey 2022.
    """
    return (F.normalize(truth, dim=-1) @ F.normalize(dictionary, dim=-1).T).amax(dim=-1)


class Reading(Around):
    """Keeps what a site puts out: a list of tensors [..., d], in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        output = following(*inputs)
        self.seen.append((output[0] if isinstance(output, tuple) else output).detach())
        return output


class Replacing(Around):
    """Puts the reconstruction in the place of what a site puts out; ``edit`` may change the features in between.

    With ``keep_error`` the reconstruction's error is added back: without an edit the model is then as before, so that an
    edit's effect is the edit's alone.
    """

    def __init__(
        self,
        autoencoder: SparseAutoencoder,
        edit: Callable[[Tensor], Tensor] | None = None,
        *,
        keep_error: bool = False,
    ) -> None:
        super().__init__()
        self.autoencoder, self.edit, self.keep_error = autoencoder, edit, keep_error

    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        output = following(*inputs)
        x = output[0] if isinstance(output, tuple) else output
        features = self.autoencoder.encode(x)
        made = self.autoencoder.decode(self.edit(features) if self.edit else features)
        if self.keep_error:
            made = made + (x - self.autoencoder.decode(features))
        return (made, *output[1:]) if isinstance(output, tuple) else made


@contextmanager
def around(model: nn.Module, pattern: str, wrapper: Around, *, name: str = "dictionary") -> Iterator[None]:
    """Has ``wrapper`` at the one site that ``pattern`` selects, for the duration.

    Raises SelectionError if nothing matches; ShapeError if more than one site does.
    """
    sites = select(model, pattern, of=Site)
    if len(sites) > 1:
        raise ShapeError(
            f"{pattern!r} selects {len(sites)} sites, a dictionary belongs to one",
            remedy=f"Choose: {next(iter(sites))}.",
        )
    site = next(iter(sites.values()))
    site.wrap(name, wrapper)
    try:
        yield
    finally:
        site.unwrap(name)


@torch.no_grad()
def activations_at(model: nn.Module, pattern: str, tokens: Tensor) -> Tensor:
    """What the site puts out for tokens int64 [b, t]: float [b·t, d]."""
    reading = Reading()
    with around(model, pattern, reading, name="reading"):
        model(tokens)
    return torch.cat([item.flatten(0, -2) for item in reading.seen])
