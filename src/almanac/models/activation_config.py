"""Activations in the hub's configurations, both ways."""

from __future__ import annotations

from almanac.core.errors import UnsupportedError
from almanac.files.quoting import quoted
from almanac.models.family import Fields
from almanac.nn.activation import Activation, Gelu, GeluTanh, Mish, QuickGelu, Relu, ReluSquared, Silu, Tanh

ACTIVATIONS: dict[str, Activation] = {
    "silu": Silu(), "swish": Silu(), "gelu": Gelu(), "gelu_python": Gelu(), "gelu_new": GeluTanh(),
    "gelu_pytorch_tanh": GeluTanh(), "gelu_fast": GeluTanh(), "gelu_accurate": GeluTanh(), "gelu_python_tanh": GeluTanh(),
    "quick_gelu": QuickGelu(), "relu": Relu(), "relu2": ReluSquared(), "mish": Mish(), "tanh": Tanh(),
}  # fmt: skip


def read_activation(fields: Fields, name: str = "hidden_act", default: str = "gelu") -> Activation:
    """The activation called in field ``name``. Raises UnsupportedError for one that is not known."""
    word = fields.text(name, default)
    if word not in ACTIVATIONS:
        raise UnsupportedError(
            f"{fields.origin}: activation {quoted(word)}", remedy=f"Known are {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[word]


def activation_name(activation: Activation) -> str | None:
    """The hub's word for an activation, or None."""
    return {item: name for name, item in reversed(ACTIVATIONS.items())}.get(activation)
