"""``almanac build DOCS``: a folder of documents becomes an assistant that its owner keeps.

Stages: read, index, examples, before, adapt, compress, after, card. Each is keyed by its inputs and settings, so a build
that was stopped goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from almanac.adapt.lora import Lora
from almanac.align.supervised import Example, finetune
from almanac.assistant import card, measure
from almanac.assistant.ask import INDEX, MODEL, SETTINGS, Assistant
from almanac.assistant.prompt import messages
from almanac.assistant.settings import BuildSettings
from almanac.assistant.stages import Report, StageEvent, StageReport, Stages, Summary
from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import NotFoundError, UnsupportedError
from almanac.data.grounded import GroundedExample, make_grounded, split_by_document
from almanac.files.store import Lock, write_json
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.lexical import LexicalIndex
from almanac.retrieve.read.folder import ReadResult, read_folder
from almanac.train.events.progress import Progress, Reading
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

    Writes ``model/`` (with its certificate), ``index/``, ``settings.json``, ``evaluations.json``, ``provenance.json`` and
    ``card.md``. Figures are measured on documents that were set aside before anything else was made from them.

    Raises:
        NotFoundError: no documents, or too few to train and to measure on.
        LockedError: another build writes there. UnsupportedError: unknown compression.
        PreflightError: the run could not have learned.
    """
    chosen = settings or BuildSettings()
    if chosen.compression not in COMPRESSIONS:
        raise UnsupportedError(f"Compression {chosen.compression!r}", remedy=f"Choose from {', '.join(COMPRESSIONS)}.")
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

    def run(self) -> Path:
        settings, started = self.settings, time.time()
        read = read_folder(self.docs)
        digests = {document.path: document.digest for document in read.documents}
        self.stages.run("read", {"documents": digests}, lambda tell: _told(read))
        chunking = {"model": settings.model, "chunk": settings.chunk_tokens, "overlap": settings.overlap_tokens}
        indexed = self.stages.run("index", chunking, lambda tell: self._index(read, tell))
        train, held_out = self._examples()
        making = {
            "held_out": settings.held_out, "per_passage": settings.per_passage, "shown": settings.shown,
            "unanswerable": settings.unanswerable, "seed": settings.seed, "questions": settings.questions,
        }  # fmt: skip
        made = self.stages.run("examples", making, lambda tell: {"train": len(train), "held_out": len(held_out)})
        answering = {"answer_tokens": settings.answer_tokens}
        before = self.stages.run("before", answering, lambda tell: self._measure(self.model(), held_out, tell))
        training = {"rank": settings.rank, "rate": settings.learning_rate, "steps": settings.steps,
                    "tokens": [settings.step_tokens, settings.micro_tokens]}  # fmt: skip
        adapted = self.stages.run("adapt", training, lambda tell: self._adapt(train, tell))
        how = {"compression": settings.compression}
        compressed = self.stages.run("compress", how, lambda tell: self._compress(tell))
        after = self.stages.run("after", {}, lambda tell: self._measure(load(self.output / MODEL), held_out, tell))
        write_json(self.output / SETTINGS, settings.to_dict())
        evaluations = {"before": before, "after": after}
        write_json(self.output / "evaluations.json", evaluations)
        provenance = {
            "documents": digests, "skipped": read.skipped, "settings": settings.to_dict(), "index": indexed,
            "examples": made, "adapt": adapted, "compress": compressed, "stage_seconds": self.stages.seconds,
        }  # fmt: skip
        write_json(self.output / "provenance.json", _plain(provenance))
        card.write(self.output / "card.md", _plain(provenance), evaluations)
        self.report(StageEvent("card", 1, 1, str(self.output), time.time() - started))
        return self.output

    def model(self) -> LanguageModel:
        """The base model, loaded once."""
        if self._lm is None:
            told = StageReport("model", self.report)
            self._lm = load(self.settings.model, report=lambda line: told.tell(0, 1, line))
        return self._lm

    def _index(self, read: ReadResult, tell: StageReport) -> Summary:
        count = self._counter()
        chunks = []
        for done, document in enumerate(read.documents, start=1):
            chunks += chunk_document(
                document,
                count_tokens=count,
                max_tokens=self.settings.chunk_tokens,
                overlap_tokens=self.settings.overlap_tokens,
            )
            tell.tell(done, len(read.documents), document.path)
        if len(chunks) < MIN_PASSAGES:
            raise NotFoundError(
                f"The documents hold only {len(chunks)} passages",
                remedy=f"Add documents; {MIN_PASSAGES} are the least.",
            )
        LexicalIndex.build(chunks).save(self.output / INDEX)
        return {"passages": len(chunks), "documents": len(read.documents), "skipped": len(read.skipped)}

    def _counter(self) -> Callable[[str], int]:
        tokenizer = self.model().tokenizer
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False, allow_special=False))

    def _examples(self) -> tuple[list[GroundedExample], list[GroundedExample]]:
        """Training and held-out examples, from documents that were separated first."""
        settings = self.settings
        chunks = LexicalIndex.load(self.output / INDEX).chunks
        passages = [chunk.as_passage() for chunk in chunks]
        made: list[list[GroundedExample]] = []
        for seed, part in enumerate(split_by_document(passages, held_out=settings.held_out, seed=settings.seed)):
            known = {passage.id for passage in part}
            near = LexicalIndex.build([chunk for chunk in chunks if chunk.id in known])  # of this side alone
            made.append(
                list(
                    make_grounded(
                        part,
                        seed=settings.seed + seed,
                        per_passage=settings.per_passage,
                        unanswerable=settings.unanswerable,
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

    def _measure(self, lm: LanguageModel, examples: list[GroundedExample], tell: StageReport) -> Summary:
        assistant = Assistant(lm, LexicalIndex.load(self.output / INDEX), self.settings)
        figures = measure.measure_reading(assistant, examples, lambda done, total: tell.tell(done, total, "questions"))
        return figures | {"retrieval": measure.measure_retrieval(assistant, examples)}

    def _adapt(self, examples: list[GroundedExample], tell: StageReport) -> Summary:
        settings, lm = self.settings, self.model()
        told = Progress(lambda reading: _tell_training(tell, reading))
        dialogues: list[Example] = [
            [*messages(example.question, example.passages), {"role": "assistant", "content": example.answer}]
            for example in examples
        ]
        trained = finetune(
            lm,
            dialogues,
            plan=(Lora(rank=settings.rank, seed=settings.seed),),
            settings=TrainSettings(
                learning_rate=settings.learning_rate,
                steps=settings.steps,
                step_tokens=settings.step_tokens,
                micro_tokens=settings.micro_tokens,
                seed=settings.seed,
            ),
            on_event=told,
            run_folder=self._run_folder(),
        )
        trained.save(self.output / WORK / "adapted")
        return {"examples": len(examples), "steps": settings.steps, "parameters": trained.num_parameters}

    def _run_folder(self) -> Path:
        """The training run of this stage's key: continued if it is there; runs on other data or settings are removed."""
        work = self.output / WORK
        mine = work / f"run-{self.stages.key[:16]}"
        for other in work.glob("run-*"):
            if other != mine:
                shutil.rmtree(other)
        return mine

    def _compress(self, tell: StageReport) -> Summary:
        lm = load(self.output / WORK / "adapted")
        if self.settings.compression == "int8":
            tell.tell(0, 3, "folding the adapter")
            lm.fold()
            tell.tell(1, 3, "int8")
            lm.quantize(Int8())
        tell.tell(2, 3, "saving and verifying")
        lm.save(self.output / MODEL)
        self._lm = None
        return {"bytes": lm.nbytes, "parity": lm.provenance.get("parity", [])}


def _told(read: ReadResult) -> Summary:
    return {"documents": len(read.documents), "skipped": [list(item) for item in read.skipped]}


def _tell_training(tell: StageReport, reading: Reading) -> None:
    tell.tell(reading.step, reading.steps, str(reading))


def _thinned(examples: list[GroundedExample], count: int) -> list[GroundedExample]:
    """At most ``count`` examples, spread evenly over the list, so that every document has its share."""
    if len(examples) <= count:
        return examples
    return [examples[index * len(examples) // count] for index in range(count)]


def _plain(value: Any) -> Any:
    """Tuples and dataclasses as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
