"""What every mixer of fixed memory is put through: pieces, packing, the engine, wrappers and stored weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from almanac.core.spec import Spec
from almanac.core.state import Context, Mixer
from almanac.core.technique import initialise
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head
from almanac.nn.linear import Linear
from almanac.nn.mixer_block import MixerBlock
from almanac.nn.norm import LayerNorm
from almanac.nn.stack import Decoder

HIDDEN, VOCAB = 24, 31
PIECES = ((1, 1, 5, 16), (23,), (2,) * 11 + (1,))


def built(spec: Spec, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Mixer:
    """The mixer with every parameter moved away from where it begins."""
    layer = initialise(spec.build(), seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    assert isinstance(layer, Mixer)
    return layer


def numbers(rows: int, time: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, time, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole(layer: nn.Module, x: Tensor, segments: Tensor | None = None) -> Tensor:
    """The outputs of one call without a state."""
    y, state = layer(x, Context(positions=torch.arange(x.shape[1]).expand(x.shape[:2]), segments=segments), None)
    assert state is None
    return y


def in_pieces(layer: Mixer, x: Tensor, pieces: tuple[int, ...], segments: Tensor | None = None) -> Tensor:
    """The outputs of calls that continue each other; the state never grows."""
    state, outputs, start = layer.init_state(x.shape[0], 1), [], 0
    held = state.nbytes
    for length in pieces:
        part = slice(start, start + length)
        positions = torch.arange(start, start + length).expand(x.shape[0], -1)
        own = None if segments is None else segments[:, part]
        y, state = layer(x[:, part], Context(positions=positions, segments=own), state)
        outputs.append(y)
        start += length
        assert state.lengths == [start] * x.shape[0]
        assert state.nbytes == held * x.element_size() // 4
    return torch.cat(outputs, dim=1)


def spec_of(mixer: Spec, *, channel: bool) -> Decoder.Spec:
    """Two layers of ``mixer``, with or without channels."""
    norm = LayerNorm.Spec(hidden=HIDDEN)
    block: Spec = MixerBlock.Spec(mixer_norm=norm, mixer=mixer)
    if channel:
        block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=dense(HIDDEN, 32))
    return Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=(block,) * 2,
        norm=norm,
        head=Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB)),
        context_length=128,
    )


def decoder(mixer: Spec, *, channel: bool) -> Decoder:
    """A model of `spec_of` with every parameter random."""
    spec = spec_of(mixer, channel=channel)
    assert Decoder.Spec.from_dict(spec.to_dict()) == spec
    model = initialise(spec.build(), seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    assert isinstance(model, Decoder)
    return model
