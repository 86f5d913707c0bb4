"""``pretrain``: from text to tokens to a trained model, in stages that a killed run does not repeat.

Stages: survey, tokenizer, tokens, timing, train, report. Each is keyed by its inputs and settings; training goes on within
its stage, bit for bit. What is held out is split off before the tokenizer's corpus is cut into tokens, and copies of a
document are never on both sides.

With a mesh many processes run this together: the first prepares the text while the others wait, all of them train, and the
first writes the model and the report.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from almanac.core.errors import RequestError, TrainingError
from almanac.core.spec import Spec
from almanac.files.stages import Report, StageReport, Stages, Summary
from almanac.files.store import Lock, write_json
from almanac.files.token_store import open_token_store
from almanac.language_model.encoder import TextEncoder
from almanac.language_model.model import LanguageModel
from almanac.pretrain import product
from almanac.pretrain import report as pages
from almanac.pretrain.corpus import HELD_OUT, Sources, Survey, encode, source_stores, stores, survey
from almanac.pretrain.learning import RUN, Learning
from almanac.pretrain.measure import known_share, words_of
from almanac.pretrain.objectives.next_token import NextToken
from almanac.pretrain.settings import PretrainSettings
from almanac.pretrain.timing import TRIED, steps_within
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.corpus import Corpus
from almanac.tokenizers.train.run import train as train_tokenizer
from almanac.train.loop import Outcome
from almanac.train.run_folder import read_run

WORK, TOKENIZER, TOKENS, MODEL = ".pretrain", "tokenizer", "tokens", "model"
MOST_WORDS = 1 << 20  # different words of the corpus that are remembered, to tell which of a sample's are among them


def pretrain(
    texts: Sequence[str | Path] | Corpus | Sources,
    output: str | Path,
    *,
    spec: Spec | None = None,
    tokenizer: Tokenizer | None = None,
    settings: PretrainSettings | None = None,
    report: Report = lambda event: None,
    stop: threading.Event | None = None,
) -> LanguageModel | TextEncoder:
    """Trains a model from nothing and returns it; of an encoder what makes its vectors.

    Writes below ``output``: ``tokenizer/``, ``model/`` (with its certificate), ``report.html``, ``card.md`` and
    ``pretraining.json``. The same call on it goes on with a run that was interrupted.

    Args:
        texts: files and folders of text (.txt, .md, .jsonl, also .gz), or a corpus; or several corpora by name, of which
            the settings' mixture says how much is seen.
        spec: the model; its vocabulary must be the tokenizer's. By default a small one that the objective is for.
        tokenizer: by default byte-level BPE trained on the text, with the control tokens of the objective.
        report: told how far each stage is.
        stop: set it to have the run save and stop; it is set, too, when the run's own patience is at its end.

    Raises:
        PreflightError: no text or too little, or a run that could not learn.
        RequestError: a spec of another vocabulary or a shorter context than the windows, or none of the objective's.
        TrainingError: it was stopped, or the folder holds another run.
        LockedError: another process is at work there. FileFormatError: a file is not text.
    """
    settings = settings or PretrainSettings()
    spec = None if spec is None else settings.objective.shaped(spec)
    target, mesh = Path(output), settings.train.mesh
    _require_together(settings)
    if mesh is not None:
        from almanac.train.parallel.mesh import join  # torch.distributed is needed by it alone

        if join(mesh) > 0:
            return _Pretraining(target, settings, report).follow(spec, stop)
    corpus = texts if isinstance(texts, Corpus | Mapping) else Corpus.of_files(texts)
    (target / WORK).mkdir(parents=True, exist_ok=True)
    with Lock(target / WORK):
        return _Pretraining(target, settings, report).go(corpus, spec, tokenizer, stop)


class _Pretraining:
    """One run, with what its stages share."""

    def __init__(self, output: Path, settings: PretrainSettings, report: Report) -> None:
        self.output, self.settings = output, settings
        self.work = output / WORK
        self.report = report

    def go(
        self, corpus: Corpus | Sources, spec: Spec | None, given: Tokenizer | None, stop: threading.Event | None
    ) -> LanguageModel | TextEncoder:
        """The whole, or of many processes the first one's part."""
        self.corpus = corpus if isinstance(corpus, Corpus) else Corpus.joined(corpus.values())
        self.stages = Stages(self.work, self.report)
        found = survey(corpus)  # each time: a corpus that has changed must be noticed
        chosen = self.settings.to_dict()
        identity = {
            "corpus": found.digest, "vocab_size": self.settings.vocab_size, "given": given and given.digest(),
            "controls": self.settings.objective.controls.texts(),
        }  # fmt: skip
        told = self.stages.run("tokenizer", identity, lambda progress: self._tokenizer(given))
        tokenizer = Tokenizer.from_json_file(self.output / TOKENIZER)
        spec = self._spec(spec, tokenizer)
        tokens = self.stages.run(
            "tokens",
            {"held_out": self.settings.held_out},
            lambda progress: self._tokens(corpus, found, tokenizer, progress),
        )
        settings = {"settings": chosen, "spec": spec.to_dict()}
        if self.settings.minutes is not None:
            timed = self.stages.run(
                "timing", settings, lambda progress: self._timing(self._learning(spec, tokenizer, tokens, None))
            )
            self.settings = self.settings.with_(train=self.settings.train.with_(steps=timed["steps"]))
        self._meet({"trains": not self.stages.knows("train", settings), "tokens": tokens})
        learned = self.stages.run(
            "train", settings, lambda progress: self._train(self._learning(spec, tokenizer, tokens, stop), progress)
        )
        facts = {"tokenizer": told, "tokens": tokens, "train": learned, **settings}
        self.stages.run("report", {}, lambda progress: self._report(facts))
        self._meet({})
        return product.read(self.output / MODEL, spec)

    def follow(self, spec: Spec | None, stop: threading.Event | None) -> LanguageModel | TextEncoder:
        """The part of a process that is not the first."""
        told = self._meet(None)
        tokenizer = Tokenizer.from_json_file(self.output / TOKENIZER)
        spec = self._spec(spec, tokenizer)
        if told["trains"]:
            learning = self._learning(spec, tokenizer, told["tokens"], stop)
            outcome = learning.follow()
            if not self._meet(None)["finished"]:
                raise self._stopped(outcome)
        self._meet(None)
        return product.read(self.output / MODEL, spec)

    def _meet(self, told: dict[str, Any] | None) -> Any:
        """What the first process tells, on all of them, when all have come here."""
        if self.settings.train.mesh is None:
            return told
        from almanac.train.parallel.collectives import all_json

        return all_json(told)[0]

    def _spec(self, given: Spec | None, tokenizer: Tokenizer) -> Spec:
        objective, time = self.settings.objective, self.settings.time
        spec = objective.spec(tokenizer, time=time) if given is None else given
        objective.require(spec, tokenizer, time=time)
        return spec

    def _tokenizer(self, given: Tokenizer | None) -> Summary:
        if given is not None:
            given.save(self.output / TOKENIZER)
            return {"vocab_size": given.vocab_size, "digest": given.digest(), "trained": False}
        kind = ByteBpe(vocab_size=self.settings.vocab_size)
        trained = train_tokenizer(self.corpus, kind, controls=self.settings.objective.controls)
        (self.output / TOKENIZER).mkdir(exist_ok=True)
        trained.save(self.output / TOKENIZER)
        return trained.to_dict() | {"trained": True}

    def _tokens(self, corpus: Corpus | Sources, found: Survey, tokenizer: Tokenizer, progress: StageReport) -> Summary:
        def tell(store: str, done: int, total: int) -> None:
            progress.tell(done, total, f"{store} text")

        return encode(corpus, found, tokenizer, self.work / TOKENS, held_out=self.settings.held_out, tell=tell)

    def _learning(self, spec: Spec, tokenizer: Tokenizer, tokens: Summary, stop: threading.Event | None) -> Learning:
        folder, held = self.work / TOKENS, open_token_store(self.work / TOKENS / HELD_OUT)
        names = [source["name"] for source in tokens.get("sources", ())]
        learned = source_stores(folder, names) if names else stores(folder)[0]
        return Learning(
            spec,
            tokenizer,
            self.settings,
            learned,
            held,
            tokens,
            self.work,
            threading.Event() if stop is None else stop,
        )

    def _timing(self, learning: Learning) -> Summary:
        """How many steps there is time for; in the ledger, so that a resumed run has as many."""
        assert self.settings.minutes is not None
        steps, seconds = steps_within(
            learning.network,
            learning.batches(steps=TRIED),
            settings=self.settings.train,
            criterion=self.settings.objective.criterion,
            minutes=self.settings.minutes,
        )
        return {"steps": steps, "seconds_of_a_step": seconds}

    def _train(self, learning: Learning, progress: StageReport) -> Summary:
        settings = self.settings
        checked = learning.checked()
        outcome = learning.lead(lambda reading: progress.tell(reading.step, reading.steps, str(reading)))
        assert learning.watch is not None
        finished = outcome.finished or learning.watch.exhausted
        self._meet({"finished": finished})
        if not finished:
            raise self._stopped(outcome)
        kept, model = learning.settle(), learning.model
        facts = {"settings": settings.to_dict(), "tokens": dict(learning.told), "steps": outcome.step}
        product.save(model, learning.spec, learning.tokenizer, self.output / MODEL, facts)
        found = [asdict(item) for item in learning.watch.found]
        if settings.objective.covers_text:
            vocabulary = self._vocabulary()
            found = [item | {"known_words": known_share(item["sample"], vocabulary)} for item in found]
        ran = read_run(self.work / RUN)
        return {
            "steps": outcome.step, "planned": outcome.steps, "kept": kept.step, "skipped": outcome.skipped,
            "parameters": _count(model), "measured": found, "forecast": ran.get("forecast"),
            "resources": ran.get("measured"), "preflight": checked.to_dict(),
            "epochs": learning.epochs(outcome.step), "sources": learning.by_source(outcome.step),
        }  # fmt: skip

    def _stopped(self, outcome: Outcome) -> TrainingError:
        return TrainingError(
            f"The run was stopped after step {outcome.step} of {outcome.steps}; its state is in {self.work / RUN}",
            remedy="Run the same command again: it goes on from there.",
        )

    def _vocabulary(self) -> set[str]:
        found: set[str] = set()
        for piece in self.corpus.texts():
            found.update(words_of(piece))
            if len(found) > MOST_WORDS:
                break
        return found

    def _report(self, facts: dict[str, Any]) -> Summary:
        facts = facts | {"stage_seconds": self.stages.seconds}
        write_json(self.output / product.PRETRAINING, facts)
        pages.write(self.output, facts)
        return {}


def _require_together(settings: PretrainSettings) -> None:
    """Raises RequestError for what many processes cannot do."""
    if settings.train.mesh is None:
        return
    refused = {
        "minutes, since one process cannot time the others": settings.minutes is not None,
        f"the objective {type(settings.objective).__name__}": settings.objective != NextToken(),
        "a tracker that reads a run folder of one process": settings.tracker is not None,
    }
    for what, found in refused.items():
        if found:
            raise RequestError(f"A mesh does not go with {what}", remedy="Leave it out, or the mesh.")


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
