"""What a model is and costs, from its spec alone: parameters, operations, state and memory, before a weight is there.

Every kind of layer is built once on the meta device, where tensors have shapes and no numbers, and run there: operations are
those that torch counts on the way (`FlopCounterMode`: matrix products, convolutions and attention, as this code computes
them, so a window that is masked costs what it masks; sums along a recurrence are not counted), products of experts those of
the rows that reach them. State is what the layers' states hold. Beyond `MEASURED` tokens, operations per token are affine in
the length for every layer there is here, and are taken through two lengths.

Units: an operation is one addition or product, so that a weight used once costs two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from almanac.core.spec import Spec
from almanac.core.state import Context
from almanac.nn.channel.moe.experts import Experts
from almanac.nn.embedding import Embedding
from almanac.nn.encoder import Encoder
from almanac.nn.encoder_decoder import EncoderDecoder
from almanac.nn.linear import Linear
from almanac.nn.positions.learned import LearnedPositions
from almanac.nn.shared_attention import Doubled, SharedAttentionBlock
from almanac.nn.stack import Decoder
from almanac.objectives.next_token import CHUNK_TARGETS
from almanac.train.optimizers.adamw import AdamW
from almanac.train.settings import TrainSettings
from almanac.verify.forecast import LOGITS_COPIES

MEASURED = (128, 256)  # tokens; multiples of the chunks that layers compute in
LENGTHS = (1024, 4096, 32768)
UNFIT = (RuntimeError, NotImplementedError, TypeError, IndexError)
"""What a layer raises that cannot be run without numbers, or that needs more than tokens."""


@dataclass(frozen=True)
class Parameters:
    """``active``: those that one token meets (all, but for experts it is not sent to); ``embedding``: tables of it."""

    total: int
    active: int
    embedding: int


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes to train all weights in ``dtype`` with AdamW, in micro-batches of ``tokens``; ``activations`` is an estimate."""

    weights: int
    gradients: int
    moments: int
    activations: int | None
    logits: int
    tokens: int

    @property
    def total(self) -> int | None:
        """The sum; None where activations are not known."""
        if self.activations is None:
            return None
        return self.weights + self.gradients + self.moments + self.activations + self.logits


@dataclass(frozen=True)
class Description:
    """All figures of a spec; by length where they depend on it.

    ``operations``: per token of a forward pass over so many tokens; ``state_bytes``: of a row after so many; ``recurrent``:
    whether that stays the same; ``weights_bytes``: dense, in ``dtype``; ``notes``: what could not be found out.
    """

    parameters: Parameters
    operations: dict[int, float]
    state_bytes: dict[int, int]
    recurrent: bool
    training: TrainingMemory
    weights_bytes: int
    dtype: str
    context_length: int
    notes: tuple[str, ...] = ()

    def serving_bytes(self, length: int, rows: int = 1) -> int:
        """Weights and the states of ``rows`` texts of ``length`` (one that is in ``state_bytes``)."""
        return self.weights_bytes + rows * self.state_bytes.get(length, 0)


@dataclass
class _Layer:
    """One kind of layer: how often it stands in the stack, operations by length, bytes kept for backward by length."""

    copies: int
    operations: dict[int, float] = field(default_factory=dict)
    kept_bytes: dict[int, int] = field(default_factory=dict)
    state_bytes: dict[int, int] = field(default_factory=dict)


def describe(
    spec: Spec, *, lengths: Sequence[int] = LENGTHS, dtype: torch.dtype = torch.float32, micro_tokens: int | None = None
) -> Description:
    """The figures of any spec: all of a decoder's; of other shapes parameters, operations and memory for weights."""
    with torch.device("meta"):
        model = spec.build().to(dtype)
    notes: list[str] = []
    reach = context_of(spec)
    lengths = sorted({min(length, reach) if reach else length for length in lengths})
    micro = micro_tokens or TrainSettings().micro_tokens
    idle, state, layers = _experts(model), dict[int, int](), list[_Layer]()
    if isinstance(spec, Decoder.Spec):
        layers = [
            _measured(layer, copies, spec, dtype, lengths, notes, idle)
            for layer, copies in Counter(spec.layers).items()
        ]
        state = (
            {n: sum(item.copies * item.state_bytes[n] for item in layers) for n in lengths}
            if _known(layers, lengths)
            else {}
        )
        operations = {
            n: sum(item.copies * _affine(item.operations, n) for item in layers) + _ends(spec) for n in lengths
        }
    else:
        operations = _whole(model, spec, lengths, notes)
    total = sum(parameter.numel() for parameter in model.parameters())
    unused = sum(round(numel * (1 - share)) for numel, share in idle.values())
    kept = _kept_bytes(layers, micro) if layers else None
    return Description(
        parameters=Parameters(total, total - unused, _embedding(model)),
        operations=operations,
        state_bytes=state,
        recurrent=len(state) > 0 and all(len(set(item.state_bytes.values())) == 1 for item in layers),
        training=_training(model, kept, micro),
        weights_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        context_length=reach,
        notes=tuple(dict.fromkeys(notes)),
    )


def context_of(spec: Spec) -> int:
    """The most tokens that the model was made for; 0 where the spec does not say."""
    return spec.context_length if isinstance(spec, Decoder.Spec | Encoder.Spec | EncoderDecoder.Spec) else 0


def counted(call: Callable[[], object], *modules: nn.Module) -> tuple[float, dict[str, float]]:
    """Operations of ``call``, as torch counts them and the experts' among ``modules``; rows met by each expert leaf."""
    rows: dict[str, float] = {}
    hooks = []
    for module in modules:
        for path, leaf in module.named_modules():
            if isinstance(leaf, Experts):
                hooks.append(leaf.register_forward_hook(_row_counter(rows, path)))
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    leaves = {path: leaf for module in modules for path, leaf in module.named_modules() if isinstance(leaf, Experts)}
    of_experts = sum(2.0 * count * leaves[path].shape[1:].numel() for path, count in rows.items())
    return float(counter.get_total_flops()) + of_experts, rows


def _row_counter(rows: dict[str, float], path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows[path] = rows.get(path, 0.0) + len(inputs[0])

    return count


def _measured(
    layer: Spec,
    copies: int,
    spec: Decoder.Spec,
    dtype: torch.dtype,
    lengths: Sequence[int],
    notes: list[str],
    idle: dict[str, tuple[int, float]],
) -> _Layer:
    """A kind of layer, run on the meta device; one that shares another's block as if that were its own."""
    found = _Layer(copies)
    alone = layer.alone() if isinstance(layer, SharedAttentionBlock.Spec) else layer
    inward = spec.embed_inward
    width = inward.out_features if isinstance(inward, Linear.Spec | Doubled.Spec) else spec.embed.hidden
    with torch.device("meta"):
        block = alone.build().to(dtype)

        def run(time: int, state: Any = None) -> Any:
            return block(torch.empty(1, time, width, dtype=dtype), _context(time), state)

        try:
            for time in _times(lengths):
                with torch.no_grad():
                    operations, rows = counted(lambda time=time: run(time), block)
                found.operations[time] = operations / time
            found.kept_bytes[MEASURED[-1]] = _saved_here(alone, MEASURED[-1], width, dtype)
            _note_idle(block, layer, spec, rows, MEASURED[-1], idle)
        except UNFIT as error:
            notes.append(f"operations of {layer.kind()} are those of its maps alone: it needs numbers ({error!s:.80})")
            found.operations = dict.fromkeys(MEASURED, _maps(block))
            found.kept_bytes.clear()
        try:
            found.state_bytes = _state_bytes(cast(Any, block), run, lengths)
        except UNFIT as error:
            notes.append(f"the state of {layer.kind()} needs numbers ({error!s:.80})")
    return found


def _state_bytes(block: Any, run: Callable[[int, Any], Any], lengths: Sequence[int]) -> dict[int, int]:
    """Bytes after each length, room for no more; the same for all where it does not grow."""

    def after(time: int) -> int:
        with torch.no_grad():
            return run(time, block.mixer.init_state(1, time))[1].nbytes

    first = [after(time) for time in MEASURED]
    if first[0] == first[1]:
        return dict.fromkeys(lengths, first[0])
    return {length: after(length) for length in lengths}


def _context(time: int) -> Context:
    return Context(positions=torch.arange(time).unsqueeze(0))


def _saved_here(layer: Spec, time: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that a layer keeps for backward on a processor; where that needs numbers, on the meta device.

    On the meta device attention keeps all of its scores, so that the second is more.
    """

    def run(device: str) -> int:
        with torch.device(device):
            block = layer.build().to(dtype)
            return _saved(block, lambda: block(torch.empty(1, time, width, dtype=dtype), _context(time), None))

    try:
        with FakeTensorMode():
            return run("cpu")
    except UNFIT:
        return run("meta")


def _saved(block: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that ``call`` keeps for backward, beside the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # holding the tensors keeps their storages apart

    def pack(tensor: Tensor) -> Tensor:  # detached, or the graph would hold itself through what is saved, for ever
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor.detach())
        return tensor.detach()

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sum(size for size, _ in kept.values())
    finally:
        kept.clear()


def _experts(model: nn.Module) -> dict[str, tuple[int, float]]:
    """path -> (numbers, share that a token meets) of each leaf of experts; until it is measured, the whole."""
    return {path: (leaf.shape.numel(), 1.0) for path, leaf in model.named_modules() if isinstance(leaf, Experts)}


def _note_idle(
    block: nn.Module,
    layer: Spec,
    spec: Decoder.Spec,
    rows: dict[str, float],
    time: int,
    idle: dict[str, tuple[int, float]],
) -> None:
    """Notes for every layer of this kind which share of its experts a token meets."""
    for path, count in rows.items():
        leaf = cast(Experts, block.get_submodule(path))
        for number, item in enumerate(spec.layers):
            if item == layer:
                idle[f"layers.{number}.{path}"] = (leaf.shape.numel(), count / time / leaf.shape[0])


def _times(lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths to measure at: what was asked for and is short, and the two that the rest is taken through."""
    return (*(length for length in lengths if length < MEASURED[-1] and length not in MEASURED), *MEASURED)


def _affine(measured: dict[int, float], length: int) -> float:
    """What was measured at a length, or the line through the two longest lengths."""
    if length in measured:
        return measured[length]
    (first, low), (second, high) = sorted(measured.items())[-2:]
    return low + (high - low) * (length - first) / (second - first)


def _ends(spec: Decoder.Spec) -> float:
    """Operations per token of what stands before the layers and behind them."""
    inward = [item for item in (spec.embed_inward,) if isinstance(item, Linear.Spec)]
    maps = [*inward, *(item for _, item in spec.head.walk() if isinstance(item, Linear.Spec))]
    tied = not any(item.out_features == spec.embed.vocab_size for item in maps)
    own = 2.0 * sum(item.in_features * item.out_features for item in maps)
    return own + (2.0 * spec.embed.vocab_size * spec.embed.hidden if tied else 0.0)


def _maps(block: nn.Module) -> float:
    return 2.0 * sum(leaf.shape.numel() for leaf in block.modules() if isinstance(leaf, Linear))


def _whole(model: nn.Module, spec: Spec, lengths: Sequence[int], notes: list[str]) -> dict[int, float]:
    """Operations per token of a model that is no decoder: of the text it reads, or of source and written text alike."""
    measured: dict[int, float] = {}
    sides = 2 if isinstance(spec, EncoderDecoder.Spec) else 1
    reach = context_of(spec) or MEASURED[-1]
    try:
        with torch.device("meta"), torch.no_grad():
            for time in (reach // 2, reach) if reach < MEASURED[-1] else _times(lengths):
                tokens = [torch.zeros(1, time, dtype=torch.int64)] * sides
                measured[time] = counted(lambda tokens=tokens: model(*tokens), model)[0] / (time * sides)
    except (*UNFIT, ValueError) as error:
        notes.append(f"operations are those of its maps alone: {spec.kind()} needs numbers ({error!s:.80})")
        measured = dict.fromkeys(MEASURED, _maps(model))
    return {length: _affine(measured, length) for length in lengths}


def _embedding(model: nn.Module) -> int:
    tables = [item for item in model.modules() if isinstance(item, Embedding | LearnedPositions)]
    return sum(parameter.numel() for table in tables for parameter in table.parameters())


def _known(layers: Sequence[_Layer], lengths: Sequence[int]) -> bool:
    return all(set(lengths) <= set(item.state_bytes) for item in layers)


def _kept_bytes(layers: Sequence[_Layer], micro_tokens: int) -> int | None:
    """Activations of a micro-batch of texts as long as the longer measured length."""
    if not all(item.kept_bytes for item in layers):
        return None
    return sum(round(item.copies * item.kept_bytes[MEASURED[-1]] / MEASURED[-1] * micro_tokens) for item in layers)


def _training(model: nn.Module, kept: int | None, micro_tokens: int) -> TrainingMemory:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    vocab = max((leaf.shape[0] for leaf in model.modules() if isinstance(leaf, Embedding)), default=0)
    return TrainingMemory(
        weights=weights,
        gradients=weights,
        moments=AdamW().state_bytes(dict(model.named_parameters())),
        activations=kept,
        logits=LOGITS_COPIES * 4 * min(CHUNK_TARGETS, micro_tokens) * vocab,
        tokens=micro_tokens,
    )
