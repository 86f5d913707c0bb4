"""What families with experts share: how their configurations say which layers have them, and how their files name them.

Files of the hub hold a tensor for every expert and map; newer code keeps one for all experts, gate and up together. Both are
read, the first is written.
"""

from __future__ import annotations

from collections.abc import Callable

from almanac.core.spec import Spec
from almanac.models.activation_config import activation_name
from almanac.models.family import MAX_LAYERS, Config, Fields, Key
from almanac.models.llama import write_decoder
from almanac.models.rope_config import write_rope
from almanac.models.tensor_layout import Concat, Stack
from almanac.nn.activation import Activation
from almanac.nn.attention.full import Attention
from almanac.nn.block import Block
from almanac.nn.channel.gated import Gated, gated
from almanac.nn.channel.moe.experts import GatedExperts
from almanac.nn.channel.moe.mixture import Mixture
from almanac.nn.stack import Decoder

MLP = "model.layers.{i}.mlp"
MAPS = ("gate_proj", "up_proj", "down_proj")


def with_experts(spec: Decoder.Spec, channel: Spec, sparse: Callable[[int], bool] = lambda layer: True) -> Decoder.Spec:
    """The decoder with ``channel`` in the place of its own in the layers that are ``sparse``."""
    layers: list[Spec] = []
    for number, block in enumerate(spec.layers):
        assert isinstance(block, Block.Spec)
        layers.append(block.with_(channel=channel) if sparse(number) else block)
    return spec.with_(layers=tuple(layers))


def channel_activation(spec: Decoder.Spec) -> Activation:
    """The activation that all channels of a Llama-shaped decoder were read with."""
    block = spec.layers[0]
    assert isinstance(block, Block.Spec)
    assert isinstance(block.channel, Gated.Spec)
    return block.channel.activation


def experts_of(fields: Fields, default: int) -> int:
    """How many experts; configurations use either of two names."""
    return fields.integer("num_local_experts", fields.any("num_experts") or fields.any("n_routed_experts") or default)


def training_only(fields: Fields) -> None:
    """Marks as read what says how a model is trained and changes nothing that it computes."""
    fields.pass_over("router_aux_loss_coef", "output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size")


def qwen_sparse(fields: Fields) -> Callable[[int], bool]:
    """Qwen's rule: every ``decoder_sparse_step``-th layer, but for those listed."""
    step, listed = fields.integer("decoder_sparse_step", 1), fields.places("mlp_only_layers", MAX_LAYERS)
    return lambda layer: layer not in listed and (layer + 1) % step == 0


def mixture_of(spec: Decoder.Spec) -> Mixture.Spec | None:
    """The channel that all sparse layers share, of gated experts; None if there is none, or several."""
    found = [layer.channel for layer in spec.layers if isinstance(layer, Block.Spec)]
    mixtures = [channel for channel in found if isinstance(channel, Mixture.Spec)]
    if not mixtures or any(item != mixtures[0] for item in mixtures):
        return None
    return mixtures[0]


def written_experts(
    spec: Decoder.Spec, default: int
) -> tuple[Config, Mixture.Spec, list[Attention.Spec], list[int]] | None:
    """The fields of the Llama it would be with dense channels, its experts, mixers, and the numbers of its dense layers.

    ``default``: the ``intermediate_size`` where no layer is dense. None for a decoder without experts or
    positions, or of another shape.
    """
    mixture = mixture_of(spec)
    if mixture is None or not isinstance(mixture.experts, GatedExperts.Spec):
        return None
    name = activation_name(mixture.experts.activation)
    if name is None:
        return None
    dense = [
        number
        for number, layer in enumerate(spec.layers)
        if isinstance(layer, Block.Spec) and isinstance(layer.channel, Gated.Spec)
    ]
    if len(dense) == len(spec.layers):
        return None
    channel: Spec = gated(spec.embed.hidden, default, activation=mixture.experts.activation)
    if dense:
        first = spec.layers[dense[0]]
        assert isinstance(first, Block.Spec)
        channel = first.channel
    if (shared := write_decoder(with_experts(spec, channel))) is None:
        return None
    config, mixers = shared
    config.pop("mlp_bias")
    if (position := mixers[0].position) is None:
        return None
    config["rope_parameters"] = write_rope(position, mixers[0].head_dim)
    return config, mixture, mixers, dense


def expert_keys(num_experts: int, *, channel: str = MLP, maps: tuple[str, str, str] = MAPS) -> tuple[Key, ...]:
    """The rows of gate, up and down for ``num_experts`` experts; ``channel`` and ``maps`` are the hub's names."""
    ours = tuple(f"layers.{{i}}.channel.experts.{part}" for part in ("gate", "up", "down"))
    rows = [
        Key(name, tuple(f"{channel}.experts.{expert}.{theirs}" for expert in range(num_experts)), layout=Stack())
        for name, theirs in zip(ours, maps, strict=True)
    ]
    fused = Key(ours[:2], f"{MLP}.experts.gate_up_proj", layout=Concat(dim=1), bare=True)
    return (*rows, fused, Key(ours[2], f"{MLP}.experts.down_proj", bare=True))


def shared_keys(name: str) -> tuple[Key, ...]:
    """The rows of the channel that all tokens go through."""
    parts = zip(("gate", "up", "down"), MAPS, strict=True)
    return tuple(Key(f"layers.{{i}}.channel.shared.{ours}", f"{MLP}.{name}.{theirs}") for ours, theirs in parts)


def count_of(spec: Decoder.Spec) -> int:
    """How many experts the sparse layers have; 0 without any."""
    mixture = mixture_of(spec)
    return mixture.router.num_experts if mixture is not None else 0
