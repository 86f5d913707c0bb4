"""The part of the work that is done document by document: one unit of files in, one shard of documents out.

A unit is a run of files of one source, or one large file. It is a function of its files and of the recipe's steps and of
nothing else, so any number of processes, or machines with a common disk, may share the units, and the order of the documents
stays that of the files. What is done is told by a summary beside the shard, written last; whoever is killed leaves whole
units and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection
from pathlib import Path

from almanac.core.errors import IntegrityError
from almanac.curate.recipe import Recipe
from almanac.curate.shards import Lines
from almanac.curate.sources import Source, documents, files_of
from almanac.curate.tally import Tally
from almanac.data.filters.step import Judge, Removed
from almanac.data.sources.document import Document, Fault
from almanac.files.store import Sink, canonical_json, sha256_file, write_atomic, write_json
from almanac.files.strict_json import read_json

UNIT_BYTES = 64 << 20  # of files; a larger file is a unit of its own
UNIT_FILES = 1_000


@dataclasses.dataclass(frozen=True)
class Input:
    """A file of a source: its name below it, its path, its bytes and their SHA-256."""

    name: str
    path: str
    bytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of work; ``key`` is the digest of all that its outcome depends on."""

    number: int
    source: Source
    inputs: tuple[Input, ...]
    key: str

    def paths(self, folder: Path) -> tuple[Path, Path, Path]:
        """Where its shard, its list of removed documents and its summary lie."""
        stem = f"{self.number:06}"
        return folder / f"{stem}.jsonl.gz", folder / f"{stem}.removed.jsonl.gz", folder / f"{stem}.json"


def inputs_of(source: Source) -> list[Input]:
    """The files of a source, each read once for its digest. Raises as `files_of`."""
    return [Input(name, str(path), path.stat().st_size, sha256_file(path)) for name, path in files_of(source)]


def units_of(sources: Sequence[Source], inputs: Sequence[Sequence[Input]], recipe: Recipe) -> list[Unit]:
    """The pieces of work, in the order of the sources and of the names of their files."""
    steps = plan_of(Recipe(steps=recipe.steps))
    units: list[Unit] = []
    for source, files in zip(sources, inputs, strict=True):
        waiting: list[Input] = []
        for file in [*files, None]:
            full = sum(each.bytes for each in waiting) + (file.bytes if file else 0) > UNIT_BYTES
            if waiting and (file is None or full or len(waiting) == UNIT_FILES):
                told = {**source.to_dict(), "path": "", "name": source.title}  # a folder that was moved is the same one
                names = [[each.name, each.digest] for each in waiting]
                key = hashlib.sha256(canonical_json([steps, told, names])).hexdigest()
                units.append(Unit(len(units), source, tuple(waiting), key))
                waiting = []
            if file is not None:
                waiting.append(file)
    return units


def digest_of(path: str) -> str:
    """SHA-256 of a file, or of the names and bytes of all files in a folder."""
    if not Path(path).is_dir():
        return sha256_file(path) if Path(path).exists() else ""
    found = [
        [str(each.relative_to(path)), sha256_file(each)] for each in sorted(Path(path).rglob("*")) if each.is_file()
    ]
    return hashlib.sha256(canonical_json(found)).hexdigest()


def run_units(
    units: Sequence[Unit],
    recipe: Recipe,
    folder: Path,
    *,
    workers: int,
    tell: Callable[[int], object],
    engine: str | None = None,
) -> None:
    """Runs what is not done yet, in this process or in ``workers`` others; ``tell`` is told how many are done.

    ``engine``: who runs the workers; None: processes of our own, else see `on_daft`.

    Raises what a step raises when it is prepared, and MissingExtraError for files that need a library.
    """
    waiting = [unit for unit in units if summary_of(unit, folder) is None]
    done = len(units) - len(waiting)
    tell(done)
    plan = plan_of(recipe)
    if engine is not None and waiting:
        from almanac.curate.on_daft import run_on_daft  # an engine of its own, that few need

        for _ in run_on_daft(waiting, plan, folder, workers=workers, engine=engine):
            done += 1
            tell(done)
        return
    if workers < 2 or len(waiting) < 2:
        for unit in waiting:
            run_unit(unit, plan, folder)
            done += 1
            tell(done)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(run_unit, unit, plan, folder) for unit in waiting]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                tell(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_unit(unit: Unit, plan: str, folder: Path) -> None:
    """Does one unit; ``plan`` is what `plan_of` gave, a text that can be sent anywhere."""
    judges = judges_of(plan, str(folder))
    tally = Tally()
    shard, list_of_removed, summary = unit.paths(folder)

    def write(kept_sink: Sink, removed_sink: Sink) -> None:
        kept, removed = Lines(kept_sink), Lines(removed_sink)
        for document in judged(_read(unit, tally), judges, tally, removed):
            kept.add(document.to_record())
        kept.close()
        removed.close()

    digests: list[str] = []
    gone = write_atomic(
        list_of_removed, lambda sink: digests.append(write_atomic(shard, lambda kept: write(kept, sink)))
    )
    facts = {"key": unit.key, "tally": tally.to_dict(), "digests": [digests[0], gone]}
    write_json(summary, facts)


def judged(found: Iterator[Document], judges: Mapping[str, Judge], tally: Tally, removed: Lines) -> Iterator[Document]:
    """The documents that all judges let pass, as they leave them; the others are counted and listed."""
    for document in found:
        tally.arrived(document)
        current = document
        for name, judge in judges.items():
            outcome = judge(current)
            if isinstance(outcome, Removed):
                removed.add(tally.removed(name, current, outcome))
                break
            if outcome.text != current.text:
                tally.changed(name, current, outcome)
            current = outcome
        else:
            yield current


def plan_of(recipe: Recipe) -> str:
    """The recipe as JSON, with the digests of the files that its steps learn from: another file, another plan."""
    digests = [digest_of(path) for step in recipe.steps for path in step.files()]
    return json.dumps({"recipe": recipe.to_dict(), "files": digests})


@functools.lru_cache(maxsize=1)
def judges_of(plan: str, folder: str) -> Mapping[str, Judge]:
    """The judges of a recipe by name, prepared once in every process."""
    recipe = Recipe.from_dict(json.loads(plan)["recipe"])
    return {name: step.prepare(Path(folder)) for name, step in zip(recipe.names, recipe.steps, strict=True)}


def summary_of(unit: Unit, folder: Path) -> Tally | None:
    """What a unit counted, or None if it is yet to be done."""
    shard, list_of_removed, summary = unit.paths(folder)
    if not (summary.is_file() and shard.is_file() and list_of_removed.is_file()):
        return None
    facts = read_json(summary)
    if not isinstance(facts, dict) or facts.get("key") != unit.key:
        return None
    return Tally.from_dict(facts["tally"])


def verify(unit: Unit, folder: Path) -> None:
    """Raises IntegrityError if a unit's files are not what was written."""
    shard, list_of_removed, summary = unit.paths(folder)
    facts = read_json(summary) if summary_of(unit, folder) is not None else {}
    assert isinstance(facts, dict)
    if not facts or [sha256_file(shard), sha256_file(list_of_removed)] != facts["digests"]:
        raise IntegrityError(f"{shard} has changed", remedy=f"Remove {folder.parent} and run again.")


def _read(unit: Unit, tally: Tally) -> Iterator[Document]:
    for file in unit.inputs:
        for item in documents(Path(file.path), file.name, unit.source):
            if isinstance(item, Fault):
                tally.failed(item)
            else:
                yield item


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
