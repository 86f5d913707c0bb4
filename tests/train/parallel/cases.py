"""What a rank does in the tests of this folder; every case also runs in one process, where ``mesh`` is None."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toys
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.core.batch import Tokens
from almanac.core.errors import TrainingError, UnsupportedError
from almanac.core.state import Context
from almanac.nn.attention.full import attention
from almanac.nn.block import Block
from almanac.nn.channel.dense import dense
from almanac.nn.channel.moe.mixture import gated_experts
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head, TiedHead
from almanac.nn.linear import Linear
from almanac.nn.norm import RMSNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.stack import Decoder
from almanac.train.checkpoint import Checkpoints
from almanac.train.criterion import NextToken
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.parallel import fsdp
from almanac.train.parallel.mesh import Mesh
from almanac.train.parallel.together import Together
from almanac.train.settings import TrainSettings
from almanac.train.step import step
from almanac.train.training import Training

HIDDEN, EXPERTS, VOCAB = 32, 4, 100


class Steps:
    """A fixed sequence of steps: micro-batches of random rows, some packed, some with targets missing."""

    def __init__(
        self, steps: int, *, rows: int = 4, time: int = 13, micro_batches: int = 2, packed: bool = False
    ) -> None:
        self.sizes, self.steps, self.position, self.packed = (rows, time, micro_batches), steps, 0, packed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> list[Tokens]:
        if self.position >= self.steps:
            raise StopIteration
        self.position += 1
        rows, time, count = self.sizes
        return [self._batch(self.position * 100 + index, rows, time) for index in range(count)]

    def _batch(self, seed: int, rows: int, time: int) -> Tokens:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, toys.VOCAB, (rows, time), generator=generator)
        mask = torch.rand(rows, time, generator=generator) < 0.7
        mask[:, 0] = False
        positions = torch.arange(time).repeat(rows, 1)
        segments = torch.zeros(rows, time, dtype=torch.int64)
        if self.packed:
            segments[:, 5:] = 1
            positions[:, 5:] -= 5
            mask[:, 5] = False
        return Tokens(tokens, mask, positions, segments)

    def state(self) -> dict[str, int]:
        return {"position": self.position, "epoch": 0}

    def load(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def digest(self) -> str:
        return f"steps {self.steps} {self.sizes}"


def llama() -> Decoder:
    """Two blocks, grouped heads, a head of its own, biases on what is cut by rows."""
    return _decoder(None)


def mixture() -> Decoder:
    """Experts that run out of room."""
    channel = gated_experts(HIDDEN, 24, num_experts=EXPERTS, num_chosen=2)
    return _decoder(channel.with_(router=channel.router.with_(capacity=0.7)))


def _decoder(channel: Any, *, blocks: int = 2, head: Any = None) -> Decoder:
    norm = RMSNorm.Spec(hidden=HIDDEN)
    mixer = attention(HIDDEN, num_heads=4, num_kv_heads=2, bias=True, position=Rope.Spec(rotary_dim=8, theta=100.0))
    mixer = mixer.with_(q_norm=RMSNorm.Spec(hidden=8), k_norm=RMSNorm.Spec(hidden=8))
    block = Block.Spec(mixer_norm=norm, mixer=mixer, channel_norm=norm, channel=channel or dense(HIDDEN, 48))
    spec = Decoder.Spec(
        embed=Embedding.Spec(vocab_size=VOCAB, hidden=HIDDEN),
        layers=(block,) * blocks,
        norm=norm,
        head=head or Head.Spec(projection=Linear.Spec(in_features=HIDDEN, out_features=VOCAB, axes=("vocab", "embed"))),
        context_length=64,
    )
    return toys.model_of(spec)


def tied() -> Decoder:
    """A head that has no table of its own."""
    return _decoder(None, head=TiedHead.Spec())


def adapted() -> Decoder:
    """LoRA over int8 codes."""
    network = toys.toy("llama", Int8())
    Lora(rank=4).attach(network)
    return network


def network_of(name: str) -> Decoder:
    """By the name of a function here, or of a toy."""
    own = {"llama": llama, "mixture": mixture, "adapted": adapted, "tied": tied}
    return own[name]() if name in own else toys.toy(name)


def trained(
    network: str,
    mesh: dict[str, Any] | None = None,
    *,
    steps: int = 20,
    batches: dict[str, Any] | None = None,
    folder: str | None = None,
    stop_after: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Losses, gradient norms and final weights of a run; ``stop_after`` 0 takes no step but loads what is there.

    ``batches``: how the `Steps` differ from usual ones.
    """
    model, losses, norms = network_of(network), list[float](), list[float]()
    stop = threading.Event()
    if stop_after == 0:
        stop.set()

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            assert event.loss is not None and event.gradient_norm is not None
            losses.append(event.loss)
            norms.append(event.gradient_norm)
            if event.step == stop_after:
                stop.set()

    chosen = TrainSettings(
        learning_rate=3e-3, steps=steps, save_every=5, mesh=Mesh(**mesh) if mesh is not None else None, **settings
    )
    train(
        model,
        Steps(steps, **(batches or {})),
        settings=chosen,
        listeners=[listen],
        run_folder=folder,
        stop=stop,
    )
    return {"losses": losses, "norms": norms, "weights": summary(model), "digest": digest(model)}


def summary(model: Decoder) -> dict[str, list[float]]:
    """A few numbers of every weight, and its norm."""
    return {name: _few(parameter) for name, parameter in model.named_parameters()}


def _few(parameter: Tensor) -> list[float]:
    numbers = parameter.detach().double().flatten()
    return [float(numbers.norm()), *numbers[:: max(1, len(numbers) // 5)].tolist()]


def digest(model: Decoder) -> str:
    """Of every bit of the weights."""
    hashed = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        hashed.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def local_bytes(network: str, mesh: dict[str, Any]) -> dict[str, int]:
    """Bytes of weights, gradients and moments that lie on this rank after a step, and those of the whole weights."""
    model = network_of(network)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    together = Together(Mesh(**mesh))
    settings = TrainSettings(learning_rate=1e-3, steps=1)
    with together.placed(model):
        training = Training.begin(model, Steps(1), settings=settings, parallel=together)
        step(training, NextToken(), threading.Event())
        kept = sum(fsdp.local(parameter).nbytes for parameter in model.parameters())
        storages = {
            fsdp.local(p).untyped_storage().data_ptr(): fsdp.local(p).untyped_storage() for p in model.parameters()
        }
        held = sum(storage.nbytes() for storage in storages.values())
        moments = [value for state in training.optimizer.state.values() for value in state.values() if value.dim()]
        codes = sum(fsdp.local(p).nbytes for p in model.parameters() if not p.is_floating_point())
    return {"whole": whole, "weights": kept, "held": held, "moments": sum(map(_nbytes, moments)), "codes": codes}


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes


def tensor_sums(blocks: int) -> list[int]:
    """All-reduces of a forward and a backward pass through ``blocks`` blocks under tensor parallelism."""
    from torch.distributed.tensor.debug import CommDebugMode  # takes as long to import as all the rest

    model = _decoder(None, blocks=blocks)
    together, found = Together(Mesh(tensor=dist.get_world_size())), []
    with together.placed(model):
        x = torch.randn(2, 5, HIDDEN, requires_grad=True)
        context = Context(torch.arange(5).repeat(2, 1))
        for part in ("forward", "backward"):
            with CommDebugMode() as counted:
                if part == "forward":
                    y = x * 1.0
                    for layer in model.layers:
                        y, _ = layer(y, context)
                else:
                    y.sum().backward()
            found.append(counted.get_total_counts())
    return found


def refused(network: str, mesh: dict[str, Any], **settings: Any) -> str:
    """Why a run does not start."""
    try:
        trained(network, mesh, steps=1, **settings)
    except (UnsupportedError, TrainingError) as error:
        return str(error)
    return "not refused"


def started_apart() -> str:
    """What ranks say that were given different weights."""
    model = llama()
    with torch.no_grad():
        model.norm.weight += dist.get_rank()
    try:
        train(model, Steps(1), settings=TrainSettings(steps=1, mesh=Mesh(data=dist.get_world_size())))
    except TrainingError as error:
        return str(error)
    return "not refused"


def most_held(schedule: str, micro_batches: int) -> int:
    """Micro-batches whose activations this stage kept at once."""
    model, together = llama(), Together(Mesh(pipeline=dist.get_world_size(), schedule=schedule))
    with together.placed(model):
        batches = Steps(1, micro_batches=micro_batches)
        training = Training.begin(model, batches, settings=TrainSettings(steps=1), parallel=together)
        step(training, NextToken(), threading.Event())
        assert together.stage is not None
        return together.stage.most_held


def dice(mesh: dict[str, Any]) -> int:
    """The seed of this rank."""
    return Together(Mesh(**mesh)).seed(1)


def saved_again(folder: str, mesh: dict[str, Any]) -> None:
    """Loads the newest checkpoint of a run and saves it beside, as this mesh cuts it."""
    model, together = llama(), Together(Mesh(**mesh))
    with together.placed(model):
        settings = TrainSettings(learning_rate=3e-3, steps=25, save_every=5)
        training = Training.begin(model, Steps(25), settings=settings, parallel=together)
        found = Checkpoints(Path(folder) / "checkpoints", together.writers()).load()
        assert found is not None
        training.restore(found[0])
        Checkpoints(Path(folder) / "again", together.writers()).save(training.capture())
