"""Toy models: one tiny spec per family that exists (`models.tiny`), and one made from ``nn`` directly.

A new family file is therefore tested unlisted.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.site import Leaf
from almanac.core.spec import Normal, Spec
from almanac.core.technique import Plan, Technique, initialise
from almanac.models.family import Family, families
from almanac.models.tiny import TINY, anatomy, tiny_spec
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.norm import LayerNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, CONTEXT, WINDOW = 97, 64, 3, 4, 2, 64, 7
STD = 0.1  # of weights: logits differ by much more than rounding, which wider weights would amplify

CONFIG = TINY


@cache
def family_specs() -> dict[str, Decoder.Spec]:
    """A toy spec by ``model_type``."""
    return {family.model_type: toy_of(family) for family in families()}


def toy_of(family: Family, **changes: Any) -> Decoder.Spec:
    """The toy spec of one family, with some configuration fields changed."""
    return tiny_spec(family, **changes)


@cache
def specs() -> dict[str, Decoder.Spec]:
    """Every toy: those of the families, and ``plain``, which no family can express."""
    return {**family_specs(), "plain": plain()}


@cache
def varied() -> dict[str, Decoder.Spec]:
    """Toys that together hold every kind of module there is, few of them: for tests too long for all."""
    left = {name: anatomy(spec) for name, spec in specs().items()}
    seen, chosen = anatomy(specs()["llama"]) | anatomy(specs()["plain"]), ["llama", "plain"]
    while best := max(((len(kinds - seen), name) for name, kinds in left.items()), default=None):
        if not best[0]:
            break
        chosen.append(best[1])
        seen |= left.pop(best[1])
    return {name: specs()[name] for name in sorted(chosen)}


def plain() -> Decoder.Spec:
    """Dense channels, LayerNorm, partly rotary heads, biases everywhere and a head of its own."""
    norm = LayerNorm.Spec(hidden=HIDDEN)
    block = Block.Spec(
        mixer_norm=norm,
        mixer=attention(HIDDEN, num_heads=HEADS, bias=True, position=Rope.Spec(rotary_dim=8, theta=100.0)),
        channel_norm=norm,
        channel=dense(HIDDEN, 96),
    )
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB, bias=True)),
        context_length=CONTEXT,
    )


def with_std(spec: Decoder.Spec, std: float = STD) -> Decoder.Spec:
    """The spec with every Gaussian initialiser widened."""
    paths = [path for path, item in spec.walk() if _is_gaussian(item)]
    return spec.replace("{" + ",".join(paths) + "}", initialiser=Normal(std=std))


def model_of(spec: Decoder.Spec, *, seed: int = 0) -> Decoder:
    """A model of ``spec`` in evaluation mode whose every parameter, norms and biases included, is random."""
    model = initialise(with_std(spec).build(), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    assert isinstance(model, Decoder)
    return model


def toy(name: str, *techniques: Technique, seed: int = 0) -> Decoder:
    """The toy called ``name`` after ``techniques``, whose own parameters are random too (none is at its start)."""
    model = model_of(specs()[name], seed=seed)
    for index, technique in enumerate(techniques):
        before = {id(parameter) for parameter in model.parameters()}
        _, model = Plan(techniques=(technique,)).replay(specs()[name], model)
        stir((item for item in model.parameters() if id(item) not in before), seed=seed + index + 2)
    return model


def stir(parameters: Any, *, seed: int = 0) -> None:
    """Moves floating parameters away from where they started, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.is_floating_point():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def tokens(rows: int, time: int, *, seed: int = 0) -> Tensor:
    """Random ids int64 [rows, time]."""
    return torch.randint(0, VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name, as a checkpoint would hold them."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


def leaves(model: nn.Module) -> dict[str, Leaf]:
    """The leaves of a model by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Leaf)}


def greedy(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """``count`` greedy tokens by recomputing everything for each: the slow reference."""
    row = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def _is_gaussian(spec: Spec) -> bool:
    fields = {field.name for field in dataclasses.fields(spec)}
    return "initialiser" in fields and isinstance(vars(spec)["initialiser"], Normal)
