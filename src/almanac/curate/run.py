"""``curate``: from raw files to a corpus in shards, with a record of what was left out and why.

    output/
      text/                  the corpus: <source>-00000.jsonl.gz and on; what `almanac pretrain` is given
      removed.jsonl.gz       every document that was left out: id, step, reason
      report.json            counts and examples by step and reason
      data_card.md           the same for people
      manifest.json          digests of inputs, outputs and recipe; written last

Stages: units (document by document, `units`), then what compares documents (`compare`), then the output. Each is keyed
by what it depends on, so a run that was killed goes on where it was, and ends in the same bytes. Memory does not grow
with the corpus, beyond some ten bytes a document; disk needs about twice the text, and sixteen bytes for each of its bytes
where repeated substrings are looked for.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from almanac.core.errors import PreflightError, RequestError
from almanac.curate.card import card
from almanac.curate.compare import EXACT, MIXTURE, NEAR, SUBSTRING, Comparison
from almanac.curate.on_daft import require_engine
from almanac.curate.recipe import Recipe
from almanac.curate.shards import Lines, records
from almanac.curate.sources import Source
from almanac.curate.tally import Tally
from almanac.curate.units import Input, Unit, inputs_of, run_units, summary_of, units_of, verify
from almanac.data.filters.step import Removed
from almanac.data.sources.document import Document
from almanac.files.stages import Report, StageReport, Stages, Summary
from almanac.files.staging import move_into_place, staging
from almanac.files.store import Lock, Sink, remove_partials, sha256_file, sync_folder, write_atomic, write_json
from almanac.files.strict_json import read_json

WORK, TEXT, REMOVED, REPORT, CARD, MANIFEST = (
    ".curate", "text", "removed.jsonl.gz", "report.json", "data_card.md", "manifest.json",
)  # fmt: skip
VERSION = 1
SHARD_BYTES = 256 << 20  # of JSON lines, before they are packed
FREE = 2  # bytes of disk for each byte of input


@dataclasses.dataclass(frozen=True)
class Curated:
    """A corpus that was made: its ``folder``, where its text lies, and the report."""

    folder: Path
    report: dict[str, Any]

    @property
    def text(self) -> Path:
        """The folder of the shards."""
        return self.folder / TEXT


def curate(
    sources: Sequence[Source | str | Path],
    output: str | Path,
    *,
    recipe: Recipe | None = None,
    workers: int = 1,
    engine: str | None = None,
    report: Report = lambda event: None,
) -> Curated:
    """Prepares a corpus; the same call goes on with one that was interrupted, and does nothing where it is done.

    Args:
        sources: files and folders, or `Source` values with their settings.
        output: a folder for the corpus.
        recipe: what is done; by default Gopher's rules, exact and near copies.
        workers: processes that share the files; a script that asks for several needs ``if __name__ == "__main__":``.
        engine: who runs the workers: None for processes of our own, ``daft`` for Daft on this machine, ``ray://host:10001``
            for Daft on a cluster whose machines all see the folders.
        report: told how far each stage is.

    Raises:
        NotFoundError: a source or a file of the recipe does not exist.
        RequestError: two sources of one name, a folder that holds something else or lies within a source.
        PreflightError: nothing is left, or the disk is too small. LockedError: another process is at work there.
        MissingExtraError: a file needs a library that is not installed.
    """
    if engine is not None:
        require_engine(engine)
    given = [source if isinstance(source, Source) else Source(path=str(source)) for source in sources]
    names = [source.title for source in given]
    if not given or len(set(names)) < len(names):
        raise RequestError(f"Sources {', '.join(names) or 'none'}", remedy="Give one at least, each with its own name.")
    target = Path(output)
    if target.exists() and not (target.is_dir() and _is_ours(target)):
        raise RequestError(f"{target} holds something else", remedy="Name a new folder.")
    for source in given:
        if target.resolve().is_relative_to(Path(source.path).resolve()):
            raise RequestError(f"{target} lies within its source {source.path}", remedy="Name a folder outside of it.")
    inputs = [inputs_of(source) for source in given]
    work = target / WORK
    work.mkdir(parents=True, exist_ok=True)
    with Lock(work):
        done = _Curation(given, inputs, target, recipe or Recipe(), report).go(max(1, workers), engine)
    shutil.rmtree(work, ignore_errors=True)
    return done


def _is_ours(folder: Path) -> bool:
    return (folder / WORK).is_dir() or (folder / MANIFEST).is_file() or not any(folder.iterdir())


class _Curation:
    """One run, with what its stages share."""

    def __init__(
        self, sources: list[Source], inputs: list[list[Input]], output: Path, recipe: Recipe, report: Report
    ) -> None:
        self.sources, self.inputs, self.output, self.recipe = sources, inputs, output, recipe
        self.work = output / WORK
        self.report = report

    def go(self, workers: int, engine: str | None) -> Curated:
        units = units_of(self.sources, self.inputs, self.recipe)
        identity = {
            "version": VERSION, "units": [unit.key for unit in units], "recipe": self.recipe.to_dict(),
        }  # fmt: skip
        finished = self._finished(identity)
        if finished is not None:
            return finished
        self._require_disk()
        stages = Stages(self.work, self.report)
        folder = self.work / "units"
        folder.mkdir(exist_ok=True)
        remove_partials(folder)

        def read(progress: StageReport) -> Summary:
            run_units(
                units,
                self.recipe,
                folder,
                workers=workers,
                engine=engine,
                tell=lambda done: progress.tell(done, len(units), "parts"),
            )
            return {}

        stages.run("read and filter", identity, read)
        tally = Tally()
        for unit in units:
            verify(unit, folder)
            found = summary_of(unit, folder)
            assert found is not None
            tally.add(found)
        count = _left(tally)
        if not count:
            raise PreflightError(_nothing_left(tally), remedy="See what the sources hold, or choose other steps.")
        comparison = Comparison([unit.paths(folder)[0] for unit in units], self.work, self.recipe, count)
        mixture = self._compare(stages, comparison)
        written = stages.run("write", {}, lambda progress: self._write(comparison, units, tally, mixture))
        return self._conclude(identity, mixture, written)

    def _compare(self, stages: Stages, comparison: Comparison) -> dict[str, Any]:
        stages.run("exact copies", {}, lambda progress: comparison.exact())
        if self.recipe.near is not None:
            signed = stages.run("near copies: signatures", {}, lambda progress: comparison.near_signatures())
            stages.run("near copies", {}, lambda progress: comparison.near_copies(signed["documents"]))
        if self.recipe.substring is not None:
            stages.run(SUBSTRING, {}, lambda progress: comparison.substrings())
        return stages.run(MIXTURE, {}, lambda progress: comparison.mixture())

    def _write(
        self, comparison: Comparison, units: Sequence[Unit], tally: Tally, mixture: dict[str, Any]
    ) -> dict[str, Any]:
        digests: dict[str, str] = {}
        with staging(self.work / TEXT) as scratch:

            def write(sink: Sink) -> None:
                removed = Lines(sink)
                for unit in units:
                    for line in records(unit.paths(self.work / "units")[1]):
                        removed.add(line)
                kept = _settled(comparison, mixture["rates"], tally, removed)
                digests.update(_write_shards(scratch, kept))
                removed.close()

            digests[REMOVED] = write_atomic(self.work / REMOVED, write)
            if not tally.kept:
                raise PreflightError(_nothing_left(tally), remedy="Choose other steps, or give more text.")
            sync_folder(scratch)
            move_into_place(scratch, self.work / TEXT)
        return {"digests": digests, "tally": tally.to_dict()}

    def _conclude(self, identity: dict[str, Any], mixture: dict[str, Any], written: dict[str, Any]) -> Curated:
        """Puts what was written in its place; the manifest last."""
        tally = written["tally"]
        order = [*self.recipe.names, EXACT, NEAR, SUBSTRING, MIXTURE]
        steps = {name: _by_name(tally["steps"][name]) for name in order if name in tally["steps"]}
        facts = {
            "version": VERSION, "read": tally["read"], "kept": tally["kept"], "steps": steps,
            "faults": {"count": tally["num_faults"], "first": tally["faults"]},
            "mixture": {"shares": mixture["shares"], "part_kept": mixture["rates"]}, "recipe": self.recipe.to_dict(),
        }  # fmt: skip
        (self.output / MANIFEST).unlink(missing_ok=True)
        if (self.work / TEXT).is_dir():  # else a run that was killed below had moved it
            shutil.rmtree(self.output / TEXT, ignore_errors=True)
            (self.work / TEXT).rename(self.output / TEXT)
        if (self.work / REMOVED).is_file():
            (self.work / REMOVED).replace(self.output / REMOVED)
        digests = dict(written["digests"])
        digests[REPORT] = write_json(self.output / REPORT, facts)
        digests[CARD] = write_atomic(self.output / CARD, card(facts, self.sources).encode("utf-8"))
        inputs = [
            {"source": source.title, "name": file.name, "bytes": file.bytes, "sha256": file.digest}
            for source, files in zip(self.sources, self.inputs, strict=True)
            for file in files
        ]
        manifest = {"version": VERSION, "identity": identity, "inputs": inputs, "files": digests}
        for name, digest in digests.items():
            if sha256_file(self.output / name) != digest:
                raise PreflightError(f"{self.output / name} has changed", remedy=f"Remove {self.work}; run again.")
        write_json(self.output / MANIFEST, manifest)
        return Curated(self.output, facts)

    def _finished(self, identity: dict[str, Any]) -> Curated | None:
        """What stands here already, if it is whole and of the same inputs and recipe."""
        path = self.output / MANIFEST
        manifest = read_json(path) if path.is_file() else None
        if not isinstance(manifest, dict) or manifest.get("identity") != identity:
            return None
        files = manifest["files"]
        assert isinstance(files, dict)
        whole = all((self.output / n).is_file() and sha256_file(self.output / n) == d for n, d in files.items())
        facts = read_json(self.output / REPORT) if whole else None
        return Curated(self.output, facts) if isinstance(facts, dict) else None

    def _require_disk(self) -> None:
        needed = FREE * sum(file.bytes for files in self.inputs for file in files)
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise PreflightError(
                f"The work takes about {needed:,} bytes of disk, and {free:,} are free at {self.output}",
                remedy="Free some, or name a folder on another disk.",
            )


def _by_name(step: dict[str, Any]) -> dict[str, Any]:
    """With its reasons in one order, whether they come from memory or from a file."""
    return {**step, "reasons": dict(sorted(step["reasons"].items()))}


def _settled(comparison: Comparison, rates: dict[str, float], tally: Tally, removed: Lines) -> Iterator[Document]:
    """The documents of the corpus in order; what becomes of the others is counted and listed."""
    for before, outcome, stage in comparison.decided(rates):
        if isinstance(outcome, Removed):
            removed.add(tally.removed(stage, before, outcome))
            continue
        if outcome.text != before.text:
            tally.changed(SUBSTRING, before, outcome)
        tally.stayed(outcome)
        yield outcome


def _write_shards(folder: Path, kept: Iterator[Document]) -> dict[str, str]:
    """Writes the corpus, source by source; returns the digest of each file."""
    digests: dict[str, str] = {}
    waiting = _Waiting(kept)
    number, before = 0, None
    while waiting.document is not None:
        source = waiting.document.source
        number = number + 1 if source == before else 0
        name = f"{source}-{number:05}.jsonl.gz"
        digests[f"{TEXT}/{name}"] = write_atomic(folder / name, waiting.write_shard)
        before = source
    return digests


class _Waiting:
    """Documents in order, of which the next is known."""

    def __init__(self, documents: Iterator[Document]) -> None:
        self._documents = documents
        self.document = next(documents, None)

    def write_shard(self, sink: Sink) -> None:
        """Writes what comes of one source, as much as a shard takes."""
        assert self.document is not None
        lines, source = Lines(sink), self.document.source
        while self.document is not None and self.document.source == source and lines.bytes < SHARD_BYTES:
            lines.add(self.document.to_record())
            self.document = next(self._documents, None)
        lines.close()


def _left(tally: Tally) -> int:
    read = sum(counts["documents"] for counts in tally.read.values())
    return read - sum(r["documents"] for step in tally.steps.values() for r in step["reasons"].values())


def _nothing_left(tally: Tally) -> str:
    read = sum(counts["documents"] for counts in tally.read.values())
    reasons = [(r["documents"], name) for step in tally.steps.values() for name, r in step["reasons"].items()]
    told = [f"{count:,} {name}" for count, name in sorted(reasons, reverse=True)[:3]]
    told += [f"{tally.num_faults:,} could not be read, such as {': '.join(tally.faults[0])}"] if tally.faults else []
    return f"Of {read:,} documents none is left ({'; '.join(told) or 'the sources hold no text'})"
