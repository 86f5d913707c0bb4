"""Leaks: whether a token can change what was said before it, or what is said in another text of the same row.

A model that sees the future learns nothing and its loss looks splendid. Each direction is asked twice: by gradient, which
finds whatever flows however little, and by perturbation, which also finds what passes through decisions (routers, spikes,
capacities) that have no gradient. Asked are a row of one text, a row of several packed texts with padding at its end, and
rows beside each other. The places that are probed lie around multiples of 16 and 64, where chunked forms have their seams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.core.technique import initialise
from almanac.nn.stack import Decoder
from almanac.verify.preflight import Finding

LENGTH = 81  # past a seam of 64 and one of 16
PLACES = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 79, 80)
CUTS = (5, 16, 17, 40, 66, 76)  # where packed texts begin; from the last on the row is padding
PADDING = -1
TOLERANCE = {torch.float64: 1e-9}
"""Largest change of an output, or gradient, as a share of the largest there is; rounding of a Fourier transform is 1e-13."""
LOW_PRECISION_TOLERANCE = 1e-4
MOST_BYTES = 4_000_000_000  # of the model that is built to be tested
VOCAB = 64
STIR = 0.05


@dataclass(frozen=True)
class Leak:
    """One way that should not be open: ``source`` reaches ``reader`` (places in the row) with a share of ``size``."""

    way: str  # "gradient" or "perturbation"
    case: str  # "future", "packed", "padding" or "rows"
    source: int
    reader: int
    size: float

    def __str__(self) -> str:
        told = {
            "future": f"token {self.source} reaches the output at {self.reader}, before it",
            "packed": f"token {self.source} reaches the output at {self.reader}, in another packed text",
            "padding": f"padding at {self.source} reaches the output at {self.reader}",
            "rows": f"another row of the batch reaches the output at {self.reader}",
        }[self.case]
        return f"{told} (by {self.way}, {self.size:.1e} of the largest)"


def leaks_of(model: nn.Module, *, length: int = LENGTH, seed: int = 0) -> tuple[Leak, ...]:
    """The leaks of a decoder as it is, adapters and stored weights included; it is left as it was.

    ``model`` offers ``embed``, ``vocab_size`` and ``context_length`` and is called with tokens and a `Context`.
    """
    network = cast(Any, model)
    length = min(length, network.context_length)
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, network.vocab_size, (1, length), generator=generator)
    found: list[Leak] = []
    with _still(model):
        for case, context in (("future", plain(length)), ("packed", packed(length))):
            allowed = may_see(context)
            found += by_gradient(network, row, context, allowed, case)
            found += by_perturbation(network, row, context, allowed, case)
    return tuple(found)


def leaks_of_spec(spec: Spec, *, seed: int = 0) -> tuple[Leak, ...]:
    """The leaks of any model of a decoder's spec: every kind of layer once, small vocabulary, random weights in float64.

    Raises UnsupportedError for a spec that is none of a decoder, or whose layers do not fit into memory.
    """
    if not isinstance(spec, Decoder.Spec):
        raise UnsupportedError(
            f"{spec.kind()} is no decoder: it may see both ways", remedy="Test the decoder's spec alone."
        )
    small = with_each_layer_once(spec)
    with torch.device("meta"):
        nbytes = sum(item.numel() * 8 for item in small.build().parameters())
    if nbytes > MOST_BYTES:
        raise UnsupportedError(
            f"One layer of each kind takes {nbytes / 1e9:.1f} GB in float64",
            remedy="Test a spec of the same kinds of layers and smaller widths.",
        )
    model = initialise(small.build(), seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():  # what begins at zero would hide what comes behind it
            parameter += STIR * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return leaks_of(model, seed=seed)


def sees_no_future(model: nn.Module) -> Finding:
    """`leaks_of` as a finding for `preflight`."""
    found = leaks_of(model)
    if not found:
        return Finding("leaks", True, "no token reaches an output before it or in another text")
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return Finding("leaks", False, f"{found[0]}{more}; the network cannot be trained as it is")


def with_each_layer_once(spec: Decoder.Spec) -> Decoder.Spec:
    """The spec with each kind of layer once, in order, and few tokens in the vocabulary."""
    size = min(VOCAB, spec.embed.vocab_size)
    small = spec.with_(layers=tuple(dict.fromkeys(spec.layers))).replace("embed", vocab_size=size)
    heads = {path for path, _ in small.walk()} & {"head.projection"}
    for path in heads:
        small = small.replace(path, out_features=size)
    return small


def plain(length: int) -> Context:
    """One text."""
    return Context(positions=torch.arange(length).unsqueeze(0))


def packed(length: int) -> Context:
    """Several texts in a row and padding behind them; positions begin anew with each."""
    starts = [0, *(cut for cut in CUTS if cut < length)]
    ends = [*starts[1:], length]
    positions = torch.cat([torch.arange(end - start) for start, end in zip(starts, ends, strict=True)])
    segments = torch.cat(
        [torch.full((end - start,), number) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]
    )
    if len(starts) > 1:
        segments = segments.masked_fill(segments == len(starts) - 1, PADDING)
    return Context(positions=positions.unsqueeze(0), segments=segments.unsqueeze(0))


def may_see(context: Context) -> Tensor:
    """bool [t readers, t sources]: the past and oneself, of the same text."""
    places = torch.arange(context.positions.shape[1])
    allowed = places[:, None] >= places
    if context.segments is not None:
        allowed = allowed & (context.segments[0][:, None] == context.segments[0])
    return allowed


def by_gradient(network: Any, row: Tensor, context: Context, allowed: Tensor, case: str) -> Iterator[Leak]:
    """Leaks that the outputs' gradients with respect to the embedded tokens show."""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = network.embed.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(row, context)[0]
    finally:
        hook.remove()
    weights = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(1)).to(logits)
    readers = [place - 1 for place in (*PLACES, logits.shape[0]) if place <= logits.shape[0]]
    for reader in sorted(set(readers)):
        (gradient,) = torch.autograd.grad(logits[reader] @ weights, embedded[0], retain_graph=True)
        sizes = gradient[0].abs().amax(-1)
        yield from _worst("gradient", case, context, reader, sizes / sizes.max(), allowed[reader], sizes.dtype)


def by_perturbation(network: Any, row: Tensor, context: Context, allowed: Tensor, case: str) -> Iterator[Leak]:
    """Leaks that other tokens in some places show: row 0 stays, each other row has one token changed."""
    length = row.shape[1]
    places = [place for place in (0, *PLACES) if place < length]
    rows = row.repeat(1 + len(places), 1)
    for number, place in enumerate(places, 1):
        rows[number, place] = (rows[number, place] + 1 + place) % network.vocab_size
    many = Context(
        positions=context.positions.expand(len(rows), -1),
        segments=None if context.segments is None else context.segments.expand(len(rows), -1),
    )
    with torch.no_grad():
        outputs, alone = network(rows, many), network(row, context)[0]
    largest = alone.abs().max()
    for number, place in enumerate(places, 1):
        sizes = (outputs[number] - outputs[0]).abs().amax(-1) / largest
        for reader in range(length):
            if not allowed[reader, place] and float(sizes[reader]) > _tolerance(sizes.dtype):
                yield _leak("perturbation", case, context, place, reader, float(sizes[reader]))
                break
    beside = (outputs[0] - alone).abs().amax(-1) / largest
    if float(beside.max()) > _tolerance(beside.dtype):
        yield Leak("perturbation", "rows", -1, int(beside.argmax()), float(beside.max()))


def _worst(
    way: str, case: str, context: Context, reader: int, sizes: Tensor, allowed: Tensor, dtype: torch.dtype
) -> Iterator[Leak]:
    """The strongest way into ``reader`` that should be closed, if there is one."""
    forbidden = sizes.masked_fill(allowed, 0)
    source = int(forbidden.argmax())
    size = float(forbidden[source])
    if size > _tolerance(dtype) or math.isnan(size):
        yield _leak(way, case, context, source, reader, size)


def _leak(way: str, case: str, context: Context, source: int, reader: int, size: float) -> Leak:
    if context.segments is not None:
        own = context.segments[0]
        if int(own[source]) == PADDING != int(own[reader]):
            case = "padding"
        elif own[source] == own[reader]:
            case = "future"
    return Leak(way, case, source, reader, size)


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; mode, dice and gradients are as before afterwards."""
    before = model.training
    with torch.random.fork_rng(devices=[]):
        model.eval()
        try:
            yield
        finally:
            model.train(before)


def told(leaks: Sequence[Leak], most: int = 3) -> str:
    """A sentence for each of the first few leaks."""
    lines = [str(leak) for leak in leaks[:most]]
    return "; ".join([*lines, *([f"{len(leaks) - most} more"] if len(leaks) > most else [])])
