"""External memory: a table of slots that every token writes to and reads from, all by differentiable addresses.

Graves 2014, "Neural Turing Machines", arXiv 1410.5401, sections 3.1, 3.2 and equation 5: a key is compared with every slot
by cosine, sharpened, and gives weights over the slots; a write erases and adds by these weights, a read is their mean.

    w = softmax(β cos(k, M_{t-1} + A)),   M_t = M_{t-1} (1 - g w eᵀ) + g w aᵀ,   r = softmax(β' cos(k', M_t + A)) M_t

Deviations: the table begins at zero, so slots are told apart by learned addresses A that are added for the comparison (and
take the place of addressing by shifts); keys and values are read off the token alone, without a controller, for a stack of
such layers has its state in the tables. What one token writes the next must be able to read, so there is no parallel form.

Legend: b batch, t time, h hidden, n read heads, s slots, w width of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.scan import starts
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState


class ExternalMemory(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is its table [s, w]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        read: Linear.Spec  # h -> n (w + 1): a key and its sharpness for each head
        write: Linear.Spec  # h -> 3 w + 2: key, what to erase, what to add, sharpness, gate
        out: Linear.Spec  # n w -> h
        addresses: Learned.Spec  # [s, w]
        num_heads: int

        def __post_init__(self) -> None:
            if len(self.addresses.size) != 2 or min(*self.addresses.size, self.num_heads) < 1:
                raise ShapeError(
                    f"A memory of shape {self.addresses.size} with {self.num_heads} read heads",
                    remedy="Give it [slots, width] and one head at least.",
                )
            width = self.addresses.size[1]
            require(self.read.out_features, self.num_heads * (width + 1), "read")
            require(self.write.out_features, 3 * width + 2, "write")
            require(self.out.in_features, self.num_heads * width, "out")
            require(self.out.out_features, self.read.in_features, "out")

        def build(self) -> ExternalMemory:
            return ExternalMemory(self)

    def __init__(self, spec: ExternalMemory.Spec) -> None:
        super().__init__()
        self.read, self.write, self.out = spec.read.build(), spec.write.build(), spec.out.build()
        self.addresses = spec.addresses.build()
        self.num_heads, (self.slots, self.width) = spec.num_heads, spec.addresses.size

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.slots, self.width))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        table, addresses = given.parts[0].to(x.device, wide(x).dtype), wide(self.addresses())
        key, erase, add, beta, gate = wide(self.write(x)).split([self.width] * 3 + [1, 1], dim=-1)
        writes = key, erase.sigmoid(), add, sharpness(beta), gate.sigmoid()
        asked, asked_beta = wide(self.read(x)).unflatten(-1, (self.num_heads, -1)).split([self.width, 1], dim=-1)
        asked_beta, begins = sharpness(asked_beta), starts(context.segments)
        outputs: list[Tensor] = []
        for time in range(x.shape[1]):
            if begins is not None:
                table = table.masked_fill(begins[:, time, None, None], 0.0)
            table = written(table, addresses, *(part[:, time] for part in writes))
            weights = attention(asked[:, time], asked_beta[:, time], table + addresses)  # [b, n, s]
            outputs.append((weights @ table).flatten(1))
        y = self.out(torch.stack(outputs, dim=1).to(x.dtype))
        return y, given.after((table,), x.shape[1]) if state is not None else None


def written(
    table: Tensor, addresses: Tensor, key: Tensor, erase: Tensor, add: Tensor, beta: Tensor, gate: Tensor
) -> Tensor:
    """The table [b, s, w] after one write; addresses [s, w]; key, erase, add [b, w]; beta, gate [b, 1]."""
    weights = gate.unsqueeze(1) * attention(key.unsqueeze(1), beta.unsqueeze(1), table + addresses)  # [b, 1, s]
    share = weights.transpose(1, 2)  # [b, s, 1]
    return table * (1 - share * erase.unsqueeze(1)) + share * add.unsqueeze(1)


def attention(keys: Tensor, beta: Tensor, slots: Tensor) -> Tensor:
    """softmax(β cos(k, slot)) over the slots: keys [b, n, w], beta [b, n, 1], slots [b, s, w] -> [b, n, s]."""
    likeness = F.normalize(keys, dim=-1) @ F.normalize(slots, dim=-1).transpose(1, 2)
    return (beta * likeness).softmax(-1)


def sharpness(raw: Tensor) -> Tensor:
    """β >= 1, so that an untrained layer already prefers the likeliest slot a little."""
    return 1 + F.softplus(raw)


def external_memory(
    hidden: int, *, slots: int = 32, width: int | None = None, num_heads: int = 1
) -> ExternalMemory.Spec:
    """The spec of a layer; slots are as wide as the stack unless said."""
    width = width or hidden

    def inward(features: int) -> Linear.Spec:
        return Linear.Spec(in_features=hidden, out_features=features, bias=True, axes=("state", "embed"))

    return ExternalMemory.Spec(
        read=inward(num_heads * (width + 1)),
        write=inward(3 * width + 2),
        out=Linear.Spec(in_features=num_heads * width, out_features=hidden, axes=("embed", "state")),
        addresses=Learned.Spec(size=(slots, width), axes=("state", "none")),
        num_heads=num_heads,
    )
