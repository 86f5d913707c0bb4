"""``almanac pretrain``: a model from nothing, on a folder of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from almanac.cli.interrupts import resumable
from almanac.cli.options import Json
from almanac.cli.printing import emit, line, table
from almanac.cli.progress import reporting
from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from almanac.nn.stack import Decoder
    from almanac.pretrain.settings import PretrainSettings
    from almanac.tokenizers.tokenizer import Tokenizer

Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What is trained, and how long.

    Args:
        spec: The model: a config.json or spec as JSON, or a model whose shape is to be had; by default a small Llama.
        tokenizer: A folder with a tokenizer.json; by default byte-level BPE is trained on the text.
        vocab_size: Tokens of the tokenizer that is trained.
        steps: Training steps.
        time: Tokens of a window of text.
        learning_rate: At its peak.
        held_out: Share of the text that is measured on and never trained on.
        minutes: How long training should take; the number of steps is then chosen by timing a few.
        optimizer: What turns gradients into steps.
        schedule: How the learning rate falls after its rise.
        precision: The numbers that products are computed in; weights are float32 either way.
        average: An average of the weights along the run, which is what is measured and saved: ema or lawa.
        recompute: Blocks compute again in backward instead of keeping what they computed: less memory, a third more time.
        track: A viewer that is told of the run too, without a network; needs the extra track.
        seed: Of the weights and of the order of the text.
    """

    spec: str | None = None
    tokenizer: Path | None = None
    vocab_size: Count = None
    steps: Count = None
    time: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None
    learning_rate: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None
    held_out: Annotated[float | None, Parameter(validator=validators.Number(gt=0, lt=1))] = None
    minutes: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None
    optimizer: Literal["adamw", "adamw-8bit", "adafactor", "lion", "muon"] | None = None
    schedule: Literal["cosine", "restarts", "linear", "stable", "inverse-square-root"] | None = None
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    average: Literal["ema", "lawa"] | None = None
    recompute: Annotated[bool, Parameter(negative=())] = False
    track: Literal["tensorboard", "trackio", "wandb"] | None = None
    seed: int = 0

    def settings(self) -> PretrainSettings:
        """As a run wants them."""
        from almanac.pretrain import chosen
        from almanac.pretrain.settings import PretrainSettings
        from almanac.train.events.tracker import named

        usual = PretrainSettings()
        if self.minutes is not None and self.steps is not None:
            raise RequestError("Both --minutes and --steps", remedy="Give one: minutes choose the steps.")
        own = {
            "vocab_size": self.vocab_size, "time": self.time, "held_out": self.held_out, "minutes": self.minutes,
            "average": chosen.average(self.average, every=max(1, (self.steps or usual.train.steps or 1) // 50)),
            "tracker": None if self.track is None else named(self.track),
        }  # fmt: skip
        training = {
            "steps": self.steps, "learning_rate": self.learning_rate, "seed": self.seed,
            "optimizer": chosen.optimizer(self.optimizer), "schedule": chosen.schedule(self.schedule),
            "precision": chosen.precision(self.precision), "activations": chosen.activations(self.recompute),
        }  # fmt: skip
        train = usual.train.with_(**{name: value for name, value in training.items() if value is not None})
        return usual.with_(train=train, **{name: value for name, value in own.items() if value is not None})

    def shape(self) -> Decoder.Spec | None:
        """The spec that is named. Raises RequestError for one that is no decoder."""
        from almanac.nn.stack import Decoder
        from almanac.verify.spec_source import named

        if self.spec is None:
            return None
        found = named(self.spec).spec
        if not isinstance(found, Decoder.Spec):
            raise RequestError(f"{self.spec} is no decoder", remedy="Only decoders are pre-trained yet.")
        return found

    def words(self) -> Tokenizer | None:
        """The tokenizer that is named."""
        from almanac.tokenizers.tokenizer import Tokenizer

        return None if self.tokenizer is None else Tokenizer.from_json_file(self.tokenizer)


USUAL = Pretraining()


def pretrain(*texts: Path, output: Path, pretraining: Pretraining = USUAL, json: Json = False) -> int:
    """Train a model from nothing on a folder of text.

    Exact copies are left out, a part of the text is held out, a tokenizer is trained, and the model learns the rest, measured
    on what was held out as it goes. A run that was stopped goes on where it was, bit for bit, when the same command is run
    again.

    ```
    almanac pretrain books/ --output my-model
    almanac pretrain books/ --output my-model --steps 5000 --vocab-size 8000
    almanac pretrain books/ --output my-model --minutes 60 --optimizer muon --average ema
    almanac pretrain books/ --output my-mamba --spec mamba.json --tokenizer my-tokenizer
    ```

    Args:
        texts: Files and folders of text (.txt, .md, .jsonl, also .gz).
        output: The folder of the run; made if it is not there.
    """
    if not texts:
        raise RequestError("pretrain without text", remedy="Name files or folders of text.")
    from almanac.files.strict_json import read_json
    from almanac.pretrain.report import figures
    from almanac.pretrain.run import pretrain as trained

    with resumable(), reporting(in_json=json) as report:
        trained(
            texts,
            output,
            spec=pretraining.shape(),
            tokenizer=pretraining.words(),
            settings=pretraining.settings(),
            report=report,
        )
    facts = read_json(output / "pretraining.json")
    assert isinstance(facts, dict)
    shown = figures(facts)
    if json:
        emit({"event": "done", "output": str(output), "figures": dict(shown), "measured": facts["train"]["measured"]})
        return 0
    table(("figure", "value"), shown)
    line()
    line(f"{output / 'model'} is ready. What it is: {output / 'card.md'}; with curves: {output / 'report.html'}. Try:")
    line(f'  almanac generate {output / "model"} "..."')
    line(f"  almanac export {output / 'model'} model.gguf --format gguf")
    return 0
