"""``almanac build DOCS``: a folder of documents becomes an assistant that its owner keeps.

Stages: read, index, examples, before, starter, adapt, compress, after, card. Each is keyed by its inputs and settings, so
a build that was stopped goes on where it was; the index and the training run go on within their stage.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from almanac.adapt.lora import Lora
from almanac.align.supervised import Example, finetune
from almanac.assistant import card, measure, report, starter
from almanac.assistant.ask import CONFIDENCE, INDEX, MODEL, SETTINGS, Assistant, read_confidence
from almanac.assistant.confidence import Confidence
from almanac.assistant.indexing import Indexing
from almanac.assistant.prompt import messages
from almanac.assistant.settings import BuildSettings
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import NotFoundError, UnsupportedError
from almanac.core.technique import Technique
from almanac.data.grounded import GroundedExample, make_grounded, split_by_document
from almanac.files.stages import Report, StageEvent, StageReport, Stages, Summary
from almanac.files.store import Lock, write_json
from almanac.files.strict_json import read_json
from almanac.language_model.encoder import TextEncoder, load_encoder
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.clean import Policy
from almanac.retrieve.index.store import DocumentIndex
from almanac.retrieve.lexical import LexicalIndex
from almanac.train.events.event import Event, Forecasted
from almanac.train.events.progress import Progress
from almanac.train.settings import TrainSettings

WORK = ".build"
MIN_PASSAGES = 8
COMPRESSIONS = ("int8", "keep")


def build(
    docs: str | Path,
    output: str | Path,
    *,
    settings: BuildSettings | None = None,
    report: Report = lambda event: None,
) -> Path:
    """Builds an assistant folder from a folder of documents; returns it.

    Writes ``model/`` (with its certificate), ``index/``, ``settings.json``, ``evaluations.json``, ``provenance.json``,
    ``card.md`` and ``report.html``. Figures are measured on documents that were set aside before anything else was made
    from them.

    Raises:
        NotFoundError: no documents, or too few to train and to measure on.
        LockedError: another build writes there. UnsupportedError: unknown compression or policy.
        PreflightError: the run could not have learned.
    """
    chosen = settings or BuildSettings()
    if chosen.compression not in COMPRESSIONS:
        raise UnsupportedError(f"Compression {chosen.compression!r}", remedy=f"Choose from {', '.join(COMPRESSIONS)}.")
    Policy(pii=chosen.policy)  # refuses an unknown policy before anything is done
    target = Path(output)
    (target / WORK).mkdir(parents=True, exist_ok=True)
    with Lock(target / WORK):
        return _Build(Path(docs), target, chosen, report).run()


class _Build:
    """One build, with what its stages share."""

    def __init__(self, docs: Path, output: Path, settings: BuildSettings, report: Report) -> None:
        self.docs, self.output, self.settings, self.report = docs, output, settings, report
        self.stages = Stages(output / WORK, report)
        self._lm: LanguageModel | None = None
        self._started = False  # whether the model in hand carries the starter
        self._encoder: TextEncoder | None = None
        self._indexed: DocumentIndex | None = None

    def run(self) -> Path:
        settings, started = self.settings, time.time()
        indexing = Indexing(self.docs, self.output, settings, self._told("read"))
        read = self.stages.run("read", indexing.key(), lambda tell: indexing.read(tell))
        chunking = {"encoder": settings.encoder, "chunk": settings.chunk_tokens, "overlap": settings.overlap_tokens}
        indexed = self.stages.run("index", chunking, self._index(indexing))
        train, held_out = self._examples()
        making = {
            "held_out": settings.held_out, "per_passage": settings.per_passage, "shown": settings.shown,
            "unanswerable": [settings.declining, settings.unanswerable], "seed": settings.seed,
            "questions": settings.questions,
            "index": {entry.path: entry.digest for entry in self._open_index().documents},
        }  # fmt: skip
        made = self.stages.run("examples", making, lambda tell: {"train": len(train), "held_out": len(held_out)})
        answering = {"model": settings.model, "answer_tokens": settings.answer_tokens}
        before = self.stages.run(
            "before", answering, lambda tell: self._measure(self._base(), held_out, tell, extractive=False)
        )
        begun = self.stages.run("starter", {"on": settings.starter}, lambda tell: self._measure_starter(held_out, tell))
        training = {"rank": settings.rank, "rate": settings.learning_rate, "steps": settings.steps,
                    "tokens": [settings.step_tokens, settings.micro_tokens]}  # fmt: skip
        adapted = self.stages.run("adapt", training, lambda tell: self._adapt(train, tell))
        how = {"compression": settings.compression, "gguf": settings.gguf}
        compressed = self.stages.run("compress", how, lambda tell: self._compress(tell))
        after = self.stages.run("after", {}, lambda tell: self._measure_after(held_out, tell))
        write_json(self.output / SETTINGS, settings.to_dict())
        evaluations = {"before": before, "starter": begun or None, "after": after}
        write_json(self.output / "evaluations.json", evaluations)
        provenance = {
            "documents": read["documents"], "skipped": read["skipped"], "notes": read["notes"],
            "cleaning": read["cleaning"], "settings": settings.to_dict(), "index": indexed, "examples": made,
            "adapt": adapted, "compress": compressed, "stage_seconds": self.stages.seconds,
        }  # fmt: skip
        write_json(self.output / "provenance.json", provenance)
        card.write(self.output / "card.md", provenance, evaluations)
        report.write(self.output / "report.html", self.output.resolve().name, provenance, evaluations)
        self.report(StageEvent("card", 1, 1, str(self.output), time.time() - started))
        return self.output

    def _told(self, stage: str) -> StageReport:
        return StageReport(stage, self.report)

    def _base(self) -> LanguageModel:
        """The base model as it came, loaded once."""
        if self._lm is None or self._started:
            told = self._told("model")
            self._lm, self._started = load(self.settings.model, report=lambda line: told.tell(0, 1, line)), False
        return self._lm

    def _with_starter(self) -> tuple[LanguageModel, starter.Starter | None]:
        """The model that training begins with, and the starter on it, if there is one."""
        lm = self._base() if not self._started else self._lm
        assert lm is not None
        found = starter.find(lm) if self.settings.starter else None
        if found is not None and not self._started:
            found.attach(lm)
            self._started = True
        return lm, found

    def _open_encoder(self) -> TextEncoder | None:
        if self._encoder is None and self.settings.encoder:
            told = self._told("encoder")
            self._encoder = load_encoder(self.settings.encoder, report=lambda line: told.tell(0, 1, line))
        return self._encoder

    def _open_index(self) -> DocumentIndex:
        if self._indexed is None:
            self._indexed = DocumentIndex.open(self.output / INDEX, embedder=self._open_encoder())
        return self._indexed

    def _index(self, indexing: Indexing) -> Any:
        """The index stage. Its work needs the tokenizer of the model that will read the passages."""

        def work(tell: StageReport) -> Summary:
            summary = indexing.index(self._base().tokenizer, self._open_encoder(), tell)
            if summary["passages"] < MIN_PASSAGES:
                raise NotFoundError(
                    f"The documents hold only {summary['passages']} passages",
                    remedy=f"Add documents; {MIN_PASSAGES} are the least.",
                )
            return summary

        return work

    def _examples(self) -> tuple[list[GroundedExample], list[GroundedExample]]:
        """Training and held-out examples, from documents that were separated first."""
        settings = self.settings
        chunks = self._open_index().chunks
        passages = [chunk.as_passage() for chunk in chunks]
        made: list[list[GroundedExample]] = []
        shares = (settings.declining, settings.unanswerable)
        for seed, part in enumerate(split_by_document(passages, held_out=settings.held_out, seed=settings.seed)):
            known = {passage.id for passage in part}
            near = LexicalIndex.build([chunk for chunk in chunks if chunk.id in known])  # of this side alone
            made.append(
                list(
                    make_grounded(
                        part,
                        seed=settings.seed + seed,
                        per_passage=settings.per_passage,
                        unanswerable=shares[seed],
                        shown=settings.shown,
                        distractors=lambda question, count, near=near: [
                            hit.chunk.as_passage() for hit in near.search(question, count)
                        ],
                    )
                )
            )
        if not made[0] or not made[1]:
            raise NotFoundError(
                "The documents give no questions to train or to measure on",
                remedy="Add documents with headings and whole sentences.",
            )
        return made[0], _thinned(made[1], settings.questions)

    def _measure(
        self,
        lm: LanguageModel,
        examples: list[GroundedExample],
        tell: StageReport,
        confidence: Confidence | None = None,
        extractive: bool = True,
    ) -> Summary:
        assistant = Assistant(
            lm, self._open_index(), self.settings, self._open_encoder(), confidence, self.output, extractive
        )
        figures = measure.measure_reading(assistant, examples, lambda done, total: tell.tell(done, total, "questions"))
        return figures | {"retrieval": measure.measure_retrieval(assistant, examples)}

    def _measure_starter(self, examples: list[GroundedExample], tell: StageReport) -> Summary:
        lm, found = self._with_starter()
        return self._measure(lm, examples, tell, found.confidence) if found is not None else {}

    def _measure_after(self, examples: list[GroundedExample], tell: StageReport) -> Summary:
        return self._measure(load(self.output / MODEL), examples, tell, read_confidence(self.output))

    def _adapt(self, examples: list[GroundedExample], tell: StageReport) -> Summary:
        settings = self.settings
        lm, found = self._with_starter()
        dialogues: list[Example] = [
            [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]
            for example in examples
        ]
        plan: tuple[Technique, ...] = () if found else (Lora(rank=settings.rank, seed=settings.seed),)
        folder = self._run_folder()
        trained = finetune(
            lm,
            dialogues,
            plan=plan,
            settings=TrainSettings(
                learning_rate=settings.learning_rate,
                steps=settings.steps,
                step_tokens=settings.step_tokens,
                micro_tokens=settings.micro_tokens,
                seed=settings.seed,
            ),
            on_event=_Telling(tell, settings.steps),
            run_folder=folder,
        )
        trained.save(self.output / WORK / "adapted")
        (self.output / CONFIDENCE).unlink(missing_ok=True)  # of an earlier build with other settings
        if found is not None and found.confidence is not None:
            write_json(self.output / CONFIDENCE, found.confidence.to_dict())
        run = read_json(folder / "run.json")
        assert isinstance(run, dict)
        return {
            "examples": len(examples), "steps": settings.steps, "parameters": trained.num_parameters,
            "starter": found.manifest["name"] if found else None, "forecast": run.get("forecast"),
            "measured": run.get("measured"), "preflight": run.get("preflight"),
            "losses": _losses(folder / "metrics.jsonl"),
        }  # fmt: skip

    def _run_folder(self) -> Path:
        """The training run of this stage's key: continued if it is there; runs on other data or settings are removed."""
        work = self.output / WORK
        mine = work / f"run-{self.stages.key[:16]}"
        for other in work.glob("run-*"):
            if other != mine:
                shutil.rmtree(other)
        return mine

    def _compress(self, tell: StageReport) -> Summary:
        self._lm = None
        lm = load(self.output / WORK / "adapted")
        if self.settings.compression == "int8":
            tell.tell(0, 3, "folding the adapter")
            lm.fold()
            tell.tell(1, 3, "int8")
            lm.quantize(Int8())
        tell.tell(2, 3, "saving and verifying")
        lm.save(self.output / MODEL)
        summary: Summary = {"bytes": lm.nbytes, "parity": lm.provenance.get("parity", []), "gguf": None}
        if self.settings.gguf:
            path = lm.export(
                self.output / f"model-{self.settings.gguf}.gguf", format="gguf", quantization=self.settings.gguf
            )
            summary["gguf"] = path.name
        return summary


class _Telling:
    """Tells a build how far training is, and what it will need as soon as that is known."""

    def __init__(self, tell: StageReport, steps: int) -> None:
        self.tell, self.steps = tell, steps
        self.progress = Progress(lambda reading: tell.tell(reading.step, reading.steps, f"{reading}{self.forecast}"))
        self.forecast = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Forecasted):
            minutes, seconds = divmod(round(event.seconds), 60)
            needs = f"{minutes}:{seconds:02d}, {event.peak_bytes / 1e9:.1f} GB, {event.watt_hours:.2f} Wh"
            self.forecast = f" (forecast of the run: {needs})"
        self.progress(event)


def _thinned(examples: list[GroundedExample], count: int) -> list[GroundedExample]:
    """At most ``count`` examples, spread evenly over the list, so that every document has its share."""
    if len(examples) <= count:
        return examples
    return [examples[index * len(examples) // count] for index in range(count)]


def _losses(path: Path) -> list[list[float]]:
    """(step, loss) pairs of a run, as its log has them."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [[row["step"], row["loss"]] for row in rows if row.get("loss") is not None and "step" in row]
