"""``pretrain``: from text to tokens to a trained model, in stages that a killed run does not repeat.

Stages: survey, tokenizer, tokens, train, model, report. Each is keyed by its inputs and settings; training goes on within
its stage, bit for bit. What is held out is split off before the tokenizer's corpus is cut into tokens, and copies of a
document are never on both sides.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from almanac.core.errors import RequestError, TrainingError
from almanac.core.technique import initialise
from almanac.data.collate import Row
from almanac.data.windows import WindowBatches, batch_of
from almanac.files.stages import Report, StageReport, Stages, Summary
from almanac.files.store import Lock, write_json
from almanac.files.token_store import TokenStore
from almanac.generate.sampling import sampling
from almanac.language_model.load import load
from almanac.language_model.model import LanguageModel
from almanac.models.family import Fields, family_for
from almanac.models.hub_folder import family_of
from almanac.nn.stack import Decoder
from almanac.pretrain import report as pages
from almanac.pretrain.corpus import HELD_OUT, Survey, encode, stores, survey
from almanac.pretrain.measure import Measurement, Watch, bits_per_byte, held_out_loss, known_share, words_of
from almanac.pretrain.settings import PretrainSettings
from almanac.pretrain.timing import steps_within
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.corpus import Corpus
from almanac.tokenizers.train.run import train as train_tokenizer
from almanac.train.averaging.average import Averaging, adopt, averaged
from almanac.train.events.event import Listener
from almanac.train.events.memory import MEMORY, MemoryLog
from almanac.train.events.progress import Progress
from almanac.train.events.standing import Standing
from almanac.train.events.tracker import MEASURED
from almanac.train.loop import train
from almanac.train.run_folder import read_run
from almanac.verify.forecast import Forecaster, forecast_memory, resident_bytes
from almanac.verify.preflight import preflight

WORK, TOKENIZER, TOKENS, RUN, MODEL = ".pretrain", "tokenizer", "tokens", "run", "model"
SAMPLED = 0.8  # temperature of the samples
MOST_WORDS = 1 << 20  # different words of the corpus that are remembered, to tell which of a sample's are among them


def default_spec(vocab_size: int, *, time: int) -> Decoder.Spec:
    """A small Llama (1.8 million parameters beside its vocabulary) that can be saved for transformers and llama.cpp."""
    config = {
        "vocab_size": vocab_size, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": time, "tie_word_embeddings": True,
        "rope_theta": 10_000.0,
    }  # fmt: skip
    spec = family_for("llama").read(Fields(config))
    assert isinstance(spec, Decoder.Spec)
    return spec


def pretrain(
    texts: Sequence[str | Path] | Corpus,
    output: str | Path,
    *,
    spec: Decoder.Spec | None = None,
    tokenizer: Tokenizer | None = None,
    settings: PretrainSettings | None = None,
    report: Report = lambda event: None,
    stop: threading.Event | None = None,
) -> LanguageModel:
    """Trains a model from nothing and returns it.

    Writes below ``output``: ``tokenizer/``, ``model/`` (with its certificate), ``report.html``, ``card.md`` and
    ``pretraining.json``. The same call on it goes on with a run that was interrupted.

    Args:
        texts: files and folders of text (.txt, .md, .jsonl, also .gz), or a corpus.
        spec: the model; its vocabulary must be the tokenizer's. By default a small Llama.
        tokenizer: by default byte-level BPE trained on the text.
        report: told how far each stage is.
        stop: set it to have the run save and stop.

    Raises:
        PreflightError: no text or too little, or a run that could not learn.
        RequestError: a spec of another vocabulary or a shorter context than the windows.
        TrainingError: it was stopped, or the folder holds another run.
        LockedError: another process is at work there. FileFormatError: a file is not text.
    """
    corpus = texts if isinstance(texts, Corpus) else Corpus.of_files(texts)
    target = Path(output)
    (target / WORK).mkdir(parents=True, exist_ok=True)
    with Lock(target / WORK):
        run = _Pretraining(corpus, target, settings or PretrainSettings(), report)
        return run.go(spec, tokenizer, stop)


class _Pretraining:
    """One run, with what its stages share."""

    def __init__(self, corpus: Corpus, output: Path, settings: PretrainSettings, report: Report) -> None:
        self.corpus, self.output, self.settings = corpus, output, settings
        self.work = output / WORK
        self.stages = Stages(self.work, report)

    def go(self, spec: Decoder.Spec | None, given: Tokenizer | None, stop: threading.Event | None) -> LanguageModel:
        found = survey(self.corpus)  # each time: a corpus that has changed must be noticed
        chosen = self.settings.to_dict()
        identity = {"corpus": found.digest, "vocab_size": self.settings.vocab_size, "given": given and given.digest()}
        told = self.stages.run("tokenizer", identity, lambda progress: self._tokenizer(given))
        tokenizer = Tokenizer.from_json_file(self.output / TOKENIZER)
        spec = spec or default_spec(tokenizer.vocab_size, time=self.settings.time)
        self._require_fit(spec, tokenizer)
        tokens = self.stages.run(
            "tokens", {"held_out": self.settings.held_out}, lambda progress: self._tokens(found, tokenizer, progress)
        )
        settings = {"settings": chosen, "spec": spec.to_dict()}
        if self.settings.minutes is not None:
            timed = self.stages.run("timing", settings, lambda progress: self._timing(spec))
            self.settings = self.settings.with_(train=self.settings.train.with_(steps=timed["steps"]))
        learned = self.stages.run(
            "train", settings, lambda progress: self._train(spec, tokenizer, tokens, progress, stop)
        )
        facts = {"tokenizer": told, "tokens": tokens, "train": learned, **settings}
        self.stages.run("report", {}, lambda progress: self._report(facts))
        return load(self.output / MODEL)

    def _require_fit(self, spec: Decoder.Spec, tokenizer: Tokenizer) -> None:
        if spec.embed.vocab_size < tokenizer.vocab_size or spec.context_length < self.settings.time:
            raise RequestError(
                f"A model of {spec.embed.vocab_size} tokens and a context of {spec.context_length} for a tokenizer of "
                f"{tokenizer.vocab_size} and windows of {self.settings.time}",
                remedy="Give a spec whose vocabulary and context are at least as large, or shorter windows.",
            )

    def _tokenizer(self, given: Tokenizer | None) -> Summary:
        if given is not None:
            given.save(self.output / TOKENIZER)
            return {"vocab_size": given.vocab_size, "digest": given.digest(), "trained": False}
        trained = train_tokenizer(self.corpus, ByteBpe(vocab_size=self.settings.vocab_size))
        (self.output / TOKENIZER).mkdir(exist_ok=True)
        trained.save(self.output / TOKENIZER)
        return trained.to_dict() | {"trained": True}

    def _tokens(self, found: Survey, tokenizer: Tokenizer, progress: StageReport) -> Summary:
        def tell(store: str, done: int, total: int) -> None:
            progress.tell(done, total, f"{store} text")

        return encode(self.corpus, found, tokenizer, self.work / TOKENS, held_out=self.settings.held_out, tell=tell)

    def _timing(self, spec: Decoder.Spec) -> Summary:
        """How many steps there is time for; in the ledger, so that a resumed run has as many."""
        assert self.settings.minutes is not None
        network = initialise(spec.build(), seed=self.settings.train.seed)
        batches = self._batches(stores(self.work / TOKENS)[0])
        steps, seconds = steps_within(network, batches, settings=self.settings.train, minutes=self.settings.minutes)
        return {"steps": steps, "seconds_of_a_step": seconds}

    def _batches(self, learned: TokenStore) -> WindowBatches:
        settings, chosen = self.settings, self.settings.train
        return WindowBatches(
            learned,
            time=settings.time,
            rows=settings.rows,
            micro_rows=settings.micro_rows,
            steps=chosen.steps,
            seed=chosen.seed,
        )

    def _train(
        self,
        spec: Decoder.Spec,
        tokenizer: Tokenizer,
        tokens: Summary,
        progress: StageReport,
        stop: threading.Event | None,
    ) -> Summary:
        settings, chosen = self.settings, self.settings.train
        learned, held = stores(self.work / TOKENS)
        network = initialise(spec.build(), seed=chosen.seed)
        assert isinstance(network, Decoder)
        family = family_of(spec, None)
        lm = LanguageModel(network, spec, tokenizer, family=family[0].model_type if family else None)
        batches, average = self._batches(learned), None if settings.average is None else Averaging(settings.average)
        rows = [
            Row(tuple(held.read(0, size).tolist()), (True,) * size) for size in _sizes(held.num_tokens, settings.time)
        ]
        checked = preflight(network, rows, settings=chosen)
        sample = batch_of(learned, [0] * settings.micro_rows, settings.time)
        memory = forecast_memory(network, sample, settings=chosen)
        watch = Watch(
            self.work / MEASURED,
            lambda step: self._measured(lm, held, tokens, step, average),
            every=settings.evaluate_every,
        )
        listeners: list[Listener] = [
            *([] if average is None else [average]),  # before it is measured
            Forecaster(memory),
            Progress(lambda reading: progress.tell(reading.step, reading.steps, str(reading))),
            watch,
            Standing(),
            MemoryLog(self.work / RUN / MEMORY, resident_bytes),
            *(
                [] if settings.tracker is None else [settings.tracker.build(self.work / RUN)]
            ),  # it reads what was measured
        ]
        outcome = train(network, batches, settings=chosen, listeners=listeners, run_folder=self.work / RUN, stop=stop)
        if not outcome.finished:
            raise TrainingError(
                f"The run was stopped after step {outcome.step} of {outcome.steps}; its state is in {self.work / RUN}",
                remedy="Run the same command again: it goes on from there.",
            )
        if average is not None and average.state():
            adopt(network, average.weights())
        lm.record("pretrain", {"settings": settings.to_dict(), "tokens": tokens, "steps": outcome.steps})
        lm.save(self.output / MODEL)
        vocabulary = self._vocabulary()
        known = [known_share(item.sample, vocabulary) for item in watch.found]
        ran = read_run(self.work / RUN)
        return {
            "steps": outcome.steps, "skipped": outcome.skipped, "parameters": _count(network),
            "measured": [asdict(item) | {"known_words": share} for item, share in zip(watch.found, known, strict=True)],
            "forecast": ran.get("forecast"), "resources": ran.get("measured"), "preflight": checked.to_dict(),
            "epochs": outcome.steps * settings.rows / batches.windows,
        }  # fmt: skip

    def _measured(
        self, lm: LanguageModel, held: Any, tokens: Summary, step: int, average: Averaging | None
    ) -> Measurement:
        weights = average.weights() if average is not None and average.state() else {}
        with averaged(lm.network, weights):
            return self._measure(lm, held, tokens, step)

    def _measure(self, lm: LanguageModel, held: Any, tokens: Summary, step: int) -> Measurement:
        settings = self.settings
        loss = held_out_loss(lm.network, held, time=settings.time, windows=settings.windows)
        bits = bits_per_byte(loss, tokens=tokens[HELD_OUT]["tokens"], nbytes=tokens[HELD_OUT]["bytes"])
        before = lm.network.training
        begin = [lm.tokenizer.special.bos] if lm.tokenizer.special.bos is not None else held.read(0, 1).tolist()
        most = min(settings.sample_tokens, lm.network.context_length - len(begin))
        text = lm.generate(begin, max_tokens=most, sampling=sampling(temperature=SAMPLED, seed=step))
        lm.network.train(before)
        return Measurement(step, loss, bits, text)

    def _vocabulary(self) -> set[str]:
        found: set[str] = set()
        for piece in self.corpus.texts():
            found.update(words_of(piece))
            if len(found) > MOST_WORDS:
                break
        return found

    def _report(self, facts: dict[str, Any]) -> Summary:
        facts = facts | {"stage_seconds": self.stages.seconds}
        write_json(self.output / "pretraining.json", facts)
        pages.write(self.output, facts)
        return {}


def _sizes(tokens: int, time: int) -> list[int]:
    """Two uneven lengths that the held-out text and a window hold."""
    longest = min(tokens, time, 48)
    return [longest, max(2, longest * 2 // 3)]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
