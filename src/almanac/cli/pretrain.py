"""``almanac pretrain``: a model from nothing, on a folder of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from almanac.cli.interrupts import resumable
from almanac.cli.mixing import Mixing
from almanac.cli.options import Json
from almanac.cli.printing import emit, line, table
from almanac.cli.progress import reporting
from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from almanac.core.spec import Spec
    from almanac.pretrain.settings import PretrainSettings
    from almanac.tokenizers.tokenizer import Tokenizer
    from almanac.tokenizers.train.corpus import Corpus

ObjectiveName = Literal[
    "next-token", "multi-token", "fill-in-the-middle", "prefix", "masked", "whole-word", "replaced-token", "span-corruption",
    "denoising", "mixture-of-denoisers",
]  # fmt: skip
Count = Annotated[int | None, Parameter(validator=validators.Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What is trained, and how long.

    Args:
        objective: What is to be learned. Decoders learn next tokens, encoders masked or replaced ones, encoder-decoders what
            is missing.
        spec: The model: a config.json or spec as JSON, or a model whose shape is to be had; by default a small one that the
            objective is for.
        replace_malformed: Read malformed bytes as U+FFFD instead of refusing the file.
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
        patience: Measurements in a row without a lower loss, after which the run ends; the best weights are then kept.
        mesh: Processes along each axis, as data=2,tensor=2; start as many with torchrun.
        seed: Of the weights and of the order of the text.
    """

    objective: ObjectiveName | None = None
    spec: str | None = None
    replace_malformed: Annotated[bool, Parameter(negative=())] = False
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
    patience: Count = None
    mesh: str | None = None
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
            "objective": chosen.objective(self.objective), "patience": self.patience,
            "tracker": None if self.track is None else named(self.track),
        }  # fmt: skip
        training = {
            "steps": self.steps, "learning_rate": self.learning_rate, "seed": self.seed,
            "optimizer": chosen.optimizer(self.optimizer), "schedule": chosen.schedule(self.schedule),
            "precision": chosen.precision(self.precision), "activations": chosen.activations(self.recompute),
            "mesh": chosen.mesh(self.mesh),
        }  # fmt: skip
        train = usual.train.with_(**{name: value for name, value in training.items() if value is not None})
        return usual.with_(train=train, **{name: value for name, value in own.items() if value is not None})

    def shape(self) -> Spec | None:
        """The spec that is named."""
        from almanac.verify.spec_source import named

        return None if self.spec is None else named(self.spec).spec

    def corpus(self, texts: Sequence[Path], *, mixed: bool) -> Corpus | dict[str, Corpus]:
        """The texts, each a source of its own where they are ``mixed``. Raises RequestError for two of one name."""
        from almanac.tokenizers.train.corpus import Corpus

        if not mixed:
            return Corpus.of_files(texts, replace_malformed=self.replace_malformed)
        names = [text.resolve().name for text in texts]
        if len(set(names)) < len(names):
            raise RequestError(
                f"Two texts of a mixture are called {max(names, key=names.count)}", remedy="Rename one of them."
            )
        return {
            name: Corpus.of_files([text], replace_malformed=self.replace_malformed)
            for name, text in zip(names, texts, strict=True)
        }

    def words(self) -> Tokenizer | None:
        """The tokenizer that is named."""
        from almanac.tokenizers.tokenizer import Tokenizer

        return None if self.tokenizer is None else Tokenizer.from_json_file(self.tokenizer)


USUAL, UNMIXED = Pretraining(), Mixing()


def pretrain(
    *texts: Path, output: Path, pretraining: Pretraining = USUAL, mixing: Mixing = UNMIXED, json: Json = False
) -> int:
    """Train a model from nothing on a folder of text.

    Exact copies are left out, a part of the text is held out, a tokenizer is trained, and the model learns the rest, measured
    on what was held out as it goes. A run that was stopped goes on where it was, bit for bit, when the same command is run
    again.

    ```
    almanac pretrain books/ --output my-model
    almanac pretrain books/ --output my-model --steps 5000 --vocab-size 8000
    almanac pretrain books/ --output my-model --minutes 60 --optimizer muon --average ema
    almanac pretrain books/ --output my-mamba --spec mamba.json --tokenizer my-tokenizer
    almanac pretrain books/ --output my-encoder --objective masked
    almanac pretrain books/ code/ --output my-model --weight books=3 --weight code=1
    torchrun --nproc-per-node 2 -m almanac pretrain books/ --output my-model --mesh data=2
    ```

    Args:
        texts: Files and folders of text (.txt, .md, .jsonl, also .gz); where they are mixed, sources by their names.
        output: The folder of the run; made if it is not there.
    """
    if not texts:
        raise RequestError("pretrain without text", remedy="Name files or folders of text.")
    from almanac.files.strict_json import read_json
    from almanac.pretrain.report import figures
    from almanac.pretrain.run import pretrain as trained

    mixture = mixing.value()
    is_first = pretraining.mesh is None or os.environ.get("RANK", "0") == "0"
    with resumable(), reporting(in_json=json) if is_first else nullcontext(lambda event: None) as report:
        trained(
            pretraining.corpus(texts, mixed=mixture is not None),
            output,
            spec=pretraining.shape(),
            tokenizer=pretraining.words(),
            settings=pretraining.settings().with_(mixture=mixture),
            report=report,
        )
    if not is_first:
        return 0
    facts = read_json(output / "pretraining.json")
    assert isinstance(facts, dict)
    shown = figures(facts)
    if json:
        emit({"event": "done", "output": str(output), "figures": dict(shown), "measured": facts["train"]["measured"]})
        return 0
    table(("figure", "value"), shown)
    line()
    line(f"{output / 'model'} is ready. What it is: {output / 'card.md'}; with curves: {output / 'report.html'}. Try:")
    for command in _next_steps(facts["spec"]["kind"], output / "model"):
        line(f"  {command}")
    return 0


def _next_steps(kind: str, model: Path) -> list[str]:
    """What can be done with a model of that kind."""
    if kind == "nn.task_model.TaskModel":
        return [f'python -c \'import almanac; print(almanac.load_encoder("{model}").embed(["..."]))\'']
    if kind == "nn.encoder_decoder.EncoderDecoder":
        return [f'almanac generate {model} "..."']
    return [f'almanac generate {model} "..."', f"almanac export {model} model.gguf --format gguf"]
