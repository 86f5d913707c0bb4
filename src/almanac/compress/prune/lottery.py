"""Lottery tickets: a trained network's largest weights, sent back to where they started, train alone nearly as well.

Frankle 2018, arXiv 1803.03635, "strategy 2", iterative magnitude pruning with resetting:

    θ_0 random, m = 1.  Repeat: θ := m ⊙ θ_0, train to θ_T, remove from m the p of what it has left with the least |θ_T|.

The ticket is (m, θ_0): neither m with other weights nor θ_0 under another mask of the same size trains as well. We prune
each weight by its own share or all of them together (the paper's way for deep networks, and our default); biases, norms
and embeddings are left alone. What training is, the caller says.

Legend: θ parameters by name; m masks bool by name, True where a weight is kept; p the share removed per round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from almanac.core.errors import SelectionError, ShapeError, UnsupportedError
from almanac.core.weight import StoredWeight
from almanac.nn.linear_maps import linear_maps

Tensors = Mapping[str, Tensor]
Masks = dict[str, Tensor]
Train = Callable[[nn.Module], None]
"""Trains the network in place, from the weights that it finds there."""


def find_ticket(network: nn.Module, train: Train, *, rounds: int, share: float, targets: str = "**") -> Masks:
    """Prunes ``share`` of the selected linear maps' remaining weights after each of ``rounds`` trainings.

    Returns the masks; the network is left as the ticket: its first weights, those outside the masks zero. Train it
    within :func:`held`.

    Raises:
        SelectionError: ``targets`` selects no linear map. UnsupportedError: a selected weight is quantized, or ``share``
            is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UnsupportedError(f"A share of {share:g} to prune", remedy="Give a number between 0 and 1, such as 0.2.")
    weights = prunable(network, targets)
    start = snapshot(network)
    masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for _ in range(rounds):
        with held(network, masks):
            train(network)
        masks = prune(weights, masks, share=share)
        rewind(network, start, masks)
    return masks


def prunable(network: nn.Module, targets: str = "**") -> dict[str, nn.Parameter]:
    """The weights of the selected linear maps, by parameter name. Raises SelectionError and UnsupportedError."""
    found: dict[str, nn.Parameter] = {}
    for path, site in linear_maps(network, targets).items():
        if isinstance(site.weight, StoredWeight):
            raise UnsupportedError(
                f"{path} is quantized and cannot be pruned", remedy="Prune first and quantize what is left."
            )
        found[f"{path}.weight"] = site.weight
    return found


def prune(weights: Tensors, masks: Tensors, *, share: float, together: bool = True) -> Masks:
    """Masks that keep all but ``share`` (rounded to whole weights) of what ``masks`` kept: the smallest magnitudes go.

    ``together`` ranks all weights in one list; otherwise each tensor loses its own share. What was pruned stays pruned.
    """
    if not together:
        return {name: prune({name: weights[name]}, {name: masks[name]}, share=share)[name] for name in masks}
    size = torch.cat([weights[name].detach().abs().flatten() for name in masks])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    size = torch.where(kept, size, torch.inf)
    gone = size.argsort(stable=True)[: round(share * int(kept.sum()))]
    kept[gone] = False
    parts = kept.split([mask.numel() for mask in masks.values()])
    return {name: part.view_as(mask).clone() for (name, mask), part in zip(masks.items(), parts, strict=True)}


def shuffled(masks: Tensors, *, seed: int) -> Masks:
    """Masks that keep as many weights of every tensor, elsewhere: the control that asks whether the places matter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


def sparsity(masks: Tensors) -> float:
    """The share of the masked tensors' weights that is pruned."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


@torch.no_grad()
def rewind(network: nn.Module, start: Tensors, masks: Tensors) -> None:
    """Sets every parameter to what it was in ``start``, and those outside the masks to zero."""
    for name, parameter in network.named_parameters():
        parameter.copy_(start[name])
    apply(network, masks)


@torch.no_grad()
def apply(network: nn.Module, masks: Tensors) -> None:
    """Sets the weights outside the masks to zero. Raises SelectionError and ShapeError where a mask does not fit."""
    parameters = dict(network.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise SelectionError(f"There is no parameter {name!r} to mask", remedy="Use the network the masks are of.")
        if parameters[name].shape != mask.shape:
            raise ShapeError(
                f"A mask of shape {tuple(mask.shape)} for {name} of shape {tuple(parameters[name].shape)}",
                remedy="Use the network the masks are of.",
            )
        parameters[name].mul_(mask)  # not filled: a weight that is not finite shall stay seen


@contextmanager
def held(network: nn.Module, masks: Tensors) -> Iterator[None]:
    """Within the block pruned weights are zero and stay so, whatever an optimizer remembers or decays.

    Their gradients are zero, so that neither the clipped norm nor a new momentum knows of them; and after every step of
    any optimizer they are set to zero again, for an old momentum would let them regrow.
    """
    apply(network, masks)
    parameters = dict(network.named_parameters())
    hooks = [parameters[name].register_hook(_masked_by(mask)) for name, mask in masks.items()]

    def after_step(optimizer: Optimizer, positional: object, named: object) -> None:
        apply(network, masks)

    hooks.append(register_optimizer_step_post_hook(after_step))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _masked_by(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * mask
