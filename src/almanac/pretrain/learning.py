"""The stage of a pre-training run in which the model learns: what is built, who listens, and how it is measured.

Of several processes the first watches. It measures on weights read from the checkpoint that all of them have just written,
so that whatever the mesh has cut lies whole before it; the others wait in the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from almanac.core.errors import IntegrityError
from almanac.core.spec import Spec
from almanac.data.collate import Row
from almanac.data.mixture.sampler import MixtureBatches
from almanac.data.mixture.weights import Mixture
from almanac.data.windows import WindowBatches, batch_of
from almanac.files.safetensors import open_safetensors, write_safetensors
from almanac.files.token_store import TokenStore
from almanac.nn.stack import Decoder
from almanac.pretrain.corpus import HELD_OUT
from almanac.pretrain.initial import initial
from almanac.pretrain.measure import Measurement, Watch, best, bits_per_byte, held_out
from almanac.pretrain.objectives.objective import Batches, Judged, Shown
from almanac.pretrain.product import language_model
from almanac.pretrain.settings import PretrainSettings
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.train.averaging.average import Averaging, adopt, averaged
from almanac.train.checkpoint import Checkpoints
from almanac.train.criteria.corrupted import CorruptedWindows
from almanac.train.events.event import Listener
from almanac.train.events.memory import MEMORY, MemoryLog
from almanac.train.events.progress import Progress, Reading
from almanac.train.events.standing import Standing
from almanac.train.events.tracker import MEASURED
from almanac.train.loop import Outcome, train
from almanac.train.run_folder import CHECKPOINTS
from almanac.train.training import PARAMETER
from almanac.verify.forecast import Forecaster, Memory, forecast_memory, resident_bytes
from almanac.verify.preflight import Report, preflight, preflight_batch

RUN, BEST = "run", "best.safetensors"
_STEP = "step"


@dataclass
class Learning:
    """What is trained, on what, under which objective.

    - ``learned``: the store to train on, or both stores of each source
    - ``held``: what all is measured on; ``told``: what the stage ``tokens`` found; ``work``: the folder of the run's state
    """

    spec: Spec
    tokenizer: Tokenizer
    settings: PretrainSettings
    learned: TokenStore | Mapping[str, tuple[TokenStore, TokenStore]]
    held: TokenStore
    told: Mapping[str, Any]
    work: Path
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        objective, chosen = self.settings.objective, self.settings.train
        self.network = initial(objective.trained(self.spec, self.tokenizer).build(), seed=chosen.seed)
        self.judged: Judged = objective.judged(self.tokenizer, time=self.settings.time)
        self.average = None if self.settings.average is None else Averaging(self.settings.average)
        self.watch: Watch | None = None

    @property
    def model(self) -> nn.Module:
        """The network that is kept."""
        return self.settings.objective.kept(self.network)

    def windows(self, steps: int | None = None) -> Batches:
        """The windows of the run, as they lie in the text; ``steps``: of another number."""
        settings, chosen = self.settings, self.settings.train
        count = chosen.steps if steps is None else steps
        if isinstance(self.learned, TokenStore):
            return WindowBatches(
                self.learned,
                time=settings.time,
                rows=settings.rows,
                micro_rows=settings.micro_rows,
                steps=count,
                seed=chosen.seed,
            )
        assert count is not None
        rows = (settings.rows, min(settings.rows, settings.micro_rows))
        sources = {name: store for name, (store, _) in self.learned.items()}
        return MixtureBatches(sources, self.shares, time=settings.time, rows=rows, steps=count, seed=chosen.seed)

    @property
    def shares(self) -> dict[str, float]:
        """Of several sources, how much of what is seen is of each."""
        assert not isinstance(self.learned, TokenStore)
        sizes = {name: float(store.num_tokens) for name, (store, _) in self.learned.items()}
        shares = (self.settings.mixture or Mixture()).shares(sizes)
        return {name: shares.get(name, 0.0) for name in sizes}

    def batches(self, steps: int | None = None) -> Batches | CorruptedWindows:
        """The steps of the run, or another number of them."""
        return self.settings.objective.batches(self.windows(steps), self.tokenizer, time=self.settings.time)

    def epochs(self, steps: int) -> float:
        """How often the text is seen in so many steps."""
        windows = self.windows().windows
        return steps * self.settings.rows / (windows if isinstance(windows, int) else sum(windows))

    def by_source(self, steps: int) -> dict[str, Any]:
        """Of each source its share, how often its text was seen, and the loss on what was held out of it, at the end."""
        if isinstance(self.learned, TokenStore):
            return {}
        settings, found = self.settings, {}
        judged_on = self._judged_on(self.network)
        for name, share in self.shares.items():
            store, held = self.learned[name]
            windows = max(1, (store.num_tokens - 1) // (settings.time - 1))
            loss = None
            if held.num_tokens > 1:
                loss, _ = held_out(judged_on, held, self.judged, time=settings.time, windows=settings.windows)
            found[name] = {"share": share, "epochs": steps * settings.rows * share / windows, "loss": loss}
        return found

    def checked(self) -> Report:
        """Raises PreflightError for a run that could not learn."""
        settings = self.settings
        if isinstance(self.network, Decoder):
            sizes = _sizes(self.held.num_tokens, settings.time)
            rows = [Row(tuple(self.held.read(0, size).tolist()), (True,) * size) for size in sizes]
            return preflight(self.network, rows, settings=settings.train)
        return preflight_batch(
            self.network, self._first(), settings=settings.train, criterion=settings.objective.criterion
        )

    def follow(self) -> Outcome:
        """Trains as one of several processes that does not watch."""
        return self._train([])

    def lead(self, tell: Callable[[Reading], object]) -> Outcome:
        """Trains and watches; ``tell`` is given every reading of the progress."""
        settings, mesh = self.settings, self.settings.train.mesh
        self.watch = Watch(
            self.work / MEASURED,
            self.measured,
            every=settings.evaluate_every,
            patience=settings.patience,
            give_up=self.stop.set,
            at_saves=mesh is not None,
        )
        if mesh is not None and not self.watch.path.exists():
            self.watch.take(self._measure(self.network, 0))  # while it is whole
        listeners: list[Listener] = [
            *([] if self.average is None else [self.average]),  # before it is measured
            Forecaster(self._memory()),
            Progress(tell),
            self.watch,
            Standing(),
            MemoryLog(self.work / RUN / MEMORY, resident_bytes),
            *([] if settings.tracker is None else [settings.tracker.build(self.work / RUN)]),  # reads what was measured
        ]
        return self._train(listeners)

    def settle(self) -> Measurement:
        """Gives the network the weights that are kept, and tells what was measured of them."""
        assert self.watch is not None
        if self.settings.patience is None:
            if self.average is not None and self.average.state():
                adopt(self.network, self.average.weights())
            return self.watch.found[-1]
        kept = best(self.watch.found)
        path = self.work / BEST
        step, weights = _read_best(path) if path.is_file() else (None, {})
        if step != kept.step:
            raise IntegrityError(
                f"{path} does not hold the weights of step {kept.step}, which was the best",
                remedy="Leave out patience, which keeps the last ones, or start again in another folder.",
            )
        adopt(self.network, weights)
        return kept

    def measured(self, step: int) -> Measurement:
        """What held-out text says of the weights, or of their average where one is kept."""
        if self.settings.train.mesh is not None:
            return self._measured_from_checkpoint(step)
        weights = self.average.weights() if self.average is not None and self.average.state() else {}
        with averaged(self.network, weights):
            return self._measure(self.network, step)

    def _train(self, listeners: list[Listener]) -> Outcome:
        chosen = self.settings.train
        if chosen.mesh is not None:
            chosen = chosen.with_(save_every=self.settings.evaluate_every)
        return train(
            self.network,
            self.batches(),
            settings=chosen,
            criterion=self.settings.objective.criterion,
            listeners=listeners,
            run_folder=self.work / RUN,
            stop=self.stop,
        )

    def _measured_from_checkpoint(self, step: int) -> Measurement:
        found = Checkpoints(self.work / RUN / CHECKPOINTS).load()
        assert found is not None
        network = self.settings.objective.trained(self.spec, self.tokenizer).build()
        tensors = found[0].tensors.items()
        adopt(network, {name.removeprefix(PARAMETER): item for name, item in tensors if name.startswith(PARAMETER)})
        return self._measure(network, step)

    def _measure(self, network: nn.Module, step: int) -> Measurement:
        settings, objective = self.settings, self.settings.objective
        judged_on = self._judged_on(network)
        loss, accuracy = held_out(judged_on, self.held, self.judged, time=settings.time, windows=settings.windows)
        bits = None
        if objective.covers_text:
            counts = self.told[HELD_OUT]
            bits = bits_per_byte(loss, tokens=counts["tokens"], nbytes=counts["bytes"])
        measurement = Measurement(step, loss, bits, self._sample(network, step), accuracy)
        # strictly lower: of equal losses the first is kept, as `best` has it
        if settings.patience is not None and all(loss < item.loss for item in self._found()):
            _write_best(self.work / BEST, network, step)
        return measurement

    def _judged_on(self, network: nn.Module) -> nn.Module:
        objective = self.settings.objective
        return network if self.judged.criterion == objective.criterion else objective.kept(network)

    def _sample(self, network: nn.Module, step: int) -> str:
        settings, objective = self.settings, self.settings.objective
        width = min(settings.time, self.held.num_tokens)
        shown = Shown(batch_of(self.held, [0], width), 0, step, settings.sample_tokens)
        before = network.training
        lm = language_model(objective.kept(network), self.spec, self.tokenizer)
        try:
            return objective.sample(lm if lm is not None else network, self.tokenizer, shown)
        finally:
            network.train(before)

    def _found(self) -> list[Measurement]:
        return [] if self.watch is None else self.watch.found

    def _first(self) -> Any:
        """A micro-batch of the run."""
        return next(self.batches(steps=1))[0]

    def _memory(self) -> Memory:
        settings = self.settings
        if isinstance(self.network, Decoder):
            (sample, *_) = next(self.windows(steps=1))
            return forecast_memory(self.network, sample, settings=settings.train)
        return forecast_memory(
            self.network, self._first(), settings=settings.train, criterion=settings.objective.criterion
        )


def _write_best(path: Path, network: nn.Module, step: int) -> None:
    tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
    write_safetensors(path, tensors, metadata={_STEP: str(step)}, max_shard_bytes=2**63)


def _read_best(path: Path) -> tuple[int, dict[str, Tensor]]:
    file = open_safetensors(path)
    return int(file.metadata[_STEP]), {name: file[name] for name in file}


def _sizes(tokens: int, time: int) -> list[int]:
    """Two uneven lengths that the held-out text and a window hold."""
    longest = min(tokens, time, 48)
    return [longest, max(2, longest * 2 // 3)]
