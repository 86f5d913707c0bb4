"""``sweep``: a scaling law from small models of one's own, tried on a run that it had not seen.

A grid of sizes and amounts of data is trained one run after another in one folder, with one tokenizer and one held-out text.
The law is fitted to all runs but the one that takes most; what it expects of that one is on the disk before it begins; then
it is run, and the page says whether it landed. Killed and started again, the sweep goes on where it was.

What is held out is never trained on, each schedule is as long as its run, and each point is a run, so that the bootstrap
draws runs (Hoffmann 2022, arXiv 2203.15556, section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from almanac.core.errors import TrainingError
from almanac.evaluate.scaling import REFIT
from almanac.evaluate.scaling_kaplan import KAPLAN
from almanac.evaluate.scaling_law import Fitted, Points, ScalingLaw, fitted
from almanac.files.stages import Report, StageReport, Stages
from almanac.files.store import Lock, write_json
from almanac.files.strict_json import read_json
from almanac.pretrain import sweep_report
from almanac.pretrain.corpus import encode, stores, survey
from almanac.pretrain.plan_machine import probe
from almanac.pretrain.plan_shape import shape_of
from almanac.pretrain.sweep_run import run_job
from almanac.pretrain.sweep_settings import Job, SweepSettings, jobs
from almanac.tokenizers.tokenizer import Tokenizer
from almanac.tokenizers.train.byte_bpe import ByteBpe
from almanac.tokenizers.train.corpus import Corpus
from almanac.tokenizers.train.run import train as train_tokenizer

WORK, TOKENS, RUNS, FORECAST, LAW, FACTS = ".sweep", "tokens", "runs", "forecast.json", "law.json", "scaling.json"
IDENTITY = "settings.json"
FORMS: dict[str, tuple[ScalingLaw, str]] = {"chinchilla": (REFIT, "parameters"), "kaplan": (KAPLAN, "non_embedding")}
"""Form -> (a law of it, which size its N counts). The first is what the sweep is judged by."""
MAIN = "chinchilla"
MIDDLE_WIDTH = 48  # of the model that tells what minutes are worth; about the middle of a small sweep


def sweep(
    texts: Sequence[str | Path] | Corpus,
    output: str | Path,
    *,
    settings: SweepSettings | None = None,
    tokenizer: Tokenizer | None = None,
    report: Report = lambda event: None,
    stop: threading.Event | None = None,
) -> Fitted:
    """Trains the grid and returns the law of all its runs.

    Writes below ``output``: ``tokenizer/``, ``runs/``, ``forecast.json`` (before the largest run begins), ``law.json`` (which
    `plan` takes), ``scaling.json`` and ``report.html``. The same call goes on with a sweep that was interrupted.

    Args:
        texts: files and folders of text, or a corpus.
        settings: the grid, or a budget that spans one.
        tokenizer: by default byte-level BPE trained on the text.
        report: told how far each stage is. stop: set it to have the run save and stop.

    Raises:
        PreflightError: no text, too little of it for the longest run, or runs of a few steps.
        RequestError: no grid and no budget, or too small a grid.
        TrainingError: it was stopped, or the folder holds another sweep. LockedError: another process is at work there.
    """
    corpus = texts if isinstance(texts, Corpus) else Corpus.of_files(texts)
    target = Path(output)
    (target / WORK).mkdir(parents=True, exist_ok=True)
    with Lock(target / WORK):
        return _Sweep(corpus, target, settings or SweepSettings(minutes=10.0), report).go(tokenizer, stop)


class _Sweep:
    """One sweep, with what its stages share."""

    def __init__(self, corpus: Corpus, output: Path, settings: SweepSettings, report: Report) -> None:
        self.corpus, self.output, self.settings = corpus, output, settings
        self.stages = Stages(output / WORK, report)

    def go(self, given: Tokenizer | None, stop: threading.Event | None) -> Fitted:
        settings, found = self.settings, survey(self.corpus)
        identity = {"corpus": found.digest, "settings": settings.to_dict(), "tokenizer": given and given.digest()}
        self._require_same(identity)
        self.stages.run("tokenizer", {}, lambda progress: self._tokenizer(given))
        tokenizer = Tokenizer.from_json_file(self.output / "tokenizer")

        def tokens(progress: StageReport) -> dict[str, Any]:
            def tell(store: str, done: int, total: int) -> None:
                progress.tell(done, total, f"{store} text")

            return encode(
                self.corpus, found, tokenizer, self.output / WORK / TOKENS, held_out=settings.held_out, tell=tell
            )

        told = self.stages.run("tokens", {"held_out": settings.held_out}, tokens)
        grid = self.stages.run("grid", {}, lambda progress: self._grid(tokenizer.vocab_size, told))
        *others, largest = [Job(shape_of(*job["shape"]), job["steps"], job["tokens"]) for job in grid["jobs"]]
        results = [self._run(job, stop) for job in others]
        forecast = self.stages.run(
            "forecast", {"runs": len(results)}, lambda progress: self._forecast(results, largest)
        )
        came = self._run(largest, stop)
        results.append(came)
        self.stages.run("law", {}, lambda progress: self._law(results))
        law = read_law(self.output)
        facts = {
            "settings": settings.to_dict(), "corpus": told, "runs": results, "forecast": forecast,
            "verdict": verdict(forecast, came["loss"]), "law": {"intervals": law.intervals(), **law.law.to_dict()},
            "seconds": sum(result["seconds"] for result in results),
        }  # fmt: skip
        self.stages.run("report", {}, lambda progress: self._report(facts, law))
        return law

    def _require_same(self, identity: dict[str, Any]) -> None:
        path = self.output / WORK / IDENTITY
        if path.is_file() and read_json(path) != identity:
            raise TrainingError(
                f"{self.output} holds another sweep: its text, tokenizer or settings differ",
                remedy="Give the settings and the text that it was started with, or another folder.",
            )
        write_json(path, identity)

    def _tokenizer(self, given: Tokenizer | None) -> dict[str, Any]:
        chosen = given or train_tokenizer(self.corpus, ByteBpe(vocab_size=self.settings.vocab_size)).tokenizer
        (self.output / "tokenizer").mkdir(exist_ok=True)
        chosen.save(self.output / "tokenizer")
        return {"vocab_size": chosen.vocab_size, "digest": chosen.digest()}

    def _grid(self, vocab_size: int, told: dict[str, Any]) -> dict[str, Any]:
        settings, machine = self.settings, None
        if settings.minutes is not None:
            machine = probe(vocab_size, window=settings.time, settings=settings.train)
            middle = shape_of(MIDDLE_WIDTH, vocab_size).parameters
            settings = settings.with_(flops=settings.minutes * 60 * machine.flops_per_second(middle))
        found = jobs(settings, vocab_size=vocab_size, unique=told["training"]["tokens"])
        return {
            "jobs": [{"shape": [j.shape.hidden, vocab_size], "steps": j.steps, "tokens": j.tokens} for j in found],
            "flops": sum(job.flops for job in found), "machine": None if machine is None else vars(machine),
        }  # fmt: skip

    def _run(self, job: Job, stop: threading.Event | None) -> dict[str, Any]:
        if stop is not None and stop.is_set():
            raise TrainingError(
                f"The sweep was stopped before {job.name}", remedy="Run the same command again: it goes on from there."
            )

        def work(progress: StageReport) -> dict[str, Any]:
            return run_job(
                job,
                self.settings,
                stores(self.output / WORK / TOKENS),
                self.output / RUNS / job.name,
                tell=lambda reading: progress.tell(reading.step, reading.steps, str(reading)),
                stop=stop,
            )

        return self.stages.run(job.name, {"steps": job.steps, "tokens": job.tokens}, work)

    def _forecast(self, results: Sequence[dict[str, Any]], largest: Job) -> dict[str, Any]:
        sizes = {"parameters": largest.shape.parameters, "non_embedding": largest.shape.non_embedding}
        told: dict[str, Any] = {"run": largest.name, "tokens": largest.tokens, **sizes, "forms": {}}
        for name, (form, size) in FORMS.items():
            law = fitted(form, points_of(results, size=size))
            expected = law.forecast(sizes[size], largest.tokens)
            told["forms"][name] = {
                **expected.to_dict(), "law": law.law.to_dict(), "intervals": law.intervals(),
                "worst_residual": float(np.abs(law.residuals()).max()),
            }  # fmt: skip
        write_json(self.output / FORECAST, told)
        return told

    def _law(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        form, size = FORMS[MAIN]
        law = fitted(form, points_of(results, size=size))
        write_json(self.output / LAW, law.to_dict())
        return law.law.to_dict()

    def _report(self, facts: dict[str, Any], law: Fitted) -> dict[str, Any]:
        write_json(self.output / FACTS, facts)
        sweep_report.write(self.output, facts, law)
        return {}


def points_of(results: Sequence[dict[str, Any]], *, size: str = "parameters") -> Points:
    """The results of runs as points of a law."""
    return Points.of(*([float(result[name]) for result in results] for name in (size, "tokens", "loss")))


def verdict(forecast: dict[str, Any], found: float) -> dict[str, Any]:
    """Whether the run that was held back came to what was said of it: per form inside or not, and off by how much."""
    forms = forecast["forms"]
    told = {
        name: {"inside": form["low"] <= found <= form["high"], "off": found / form["loss"] - 1}
        for name, form in forms.items()
    }
    return {"found": found, "landed": told[MAIN]["inside"], "forms": told}


def read_law(path: str | Path) -> Fitted:
    """The law of a ``law.json``, or of the folder of a sweep. Raises NotFoundError, FileFormatError."""
    place = Path(path)
    data: Any = read_json(place / LAW if place.is_dir() else place)
    return Fitted.from_dict(data)
