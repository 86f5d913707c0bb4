"""``almanac data``: from raw files to a corpus worth training on, with a record of what was left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from almanac.cli.interrupts import resumable
from almanac.cli.mixing import Mixing, Texts
from almanac.cli.options import Json
from almanac.cli.printing import emit, line, size, table
from almanac.cli.progress import reporting
from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from almanac.curate.recipe import Recipe
    from almanac.curate.sources import Source
    from almanac.data.filters.step import Step

SHOWN = 12  # reasons on a terminal; --json has all


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Steps:
    """What is done; a recipe has all of it, and is not combined with the other options.

    Args:
        recipe: A JSON file with a recipe, as report.json shows the one that was used.
        language: An ISO 639-1 code to keep; may be given several times. By default all are kept.
        quality: Rules of these names, separated by commas: gopher, gopher-english, c4, fineweb; or none.
        policy: Personal data: keep, redact, or drop the document.
        licence: Keep only documents that declare an open licence.
        toxicity: A file of texts labelled 1 (toxic) or 0, to train a filter on.
        like: A file of good text; what is unlike it, by an n-gram model, goes.
        dedup: Copies that go, separated by commas: exact, near, substring; or none.
        decontaminate: A file of an evaluation; documents that overlap it go. May be given several times.
    """

    recipe: Path | None = None
    language: Texts = ()
    quality: str = "gopher"
    policy: Literal["keep", "redact", "drop"] = "keep"
    licence: Annotated[bool, Parameter(show_default=False)] = False
    toxicity: Path | None = None
    like: Path | None = None
    dedup: str = "exact,near"
    decontaminate: Annotated[tuple[Path, ...], Parameter(show_default=False)] = ()

    def plan(self, mixture: Mixing) -> Recipe:
        """The recipe. Raises RequestError for unknown names, or for a recipe beside other options."""
        from almanac.curate.recipe import Recipe
        from almanac.data.dedup.near import NearDuplicates
        from almanac.data.dedup.substring import RepeatedSubstrings
        from almanac.files.strict_json import read_json

        if self.recipe is not None:
            if self != Steps(recipe=self.recipe) or mixture != Mixing():
                raise RequestError("--recipe beside other options", remedy="Put them into the recipe.")
            found = read_json(self.recipe)
            if not isinstance(found, dict):
                raise RequestError(f"{self.recipe} is no recipe", remedy="Give a JSON object; report.json has one.")
            return Recipe.from_dict(found.get("recipe", found))
        copies = _named(self.dedup, ("exact", "near", "substring"), "--dedup")
        return Recipe(
            steps=self._steps(),
            exact="exact" in copies,
            near=NearDuplicates() if "near" in copies else None,
            substring=RepeatedSubstrings() if "substring" in copies else None,
            mixture=mixture.value(),
        )

    def _steps(self) -> tuple[Step, ...]:
        from almanac.curate.recipe import QUALITY
        from almanac.data.filters.decontaminate import Decontaminate
        from almanac.data.filters.language_is import LanguageIs
        from almanac.data.filters.licence import LicenceAllowed
        from almanac.data.filters.ngram_perplexity import NgramPerplexity
        from almanac.data.filters.personal_data import PersonalDataPolicy
        from almanac.data.filters.readable import Readable

        steps: list[Step] = [Readable()]
        if self.licence:
            steps.append(LicenceAllowed())
        if self.language:
            steps.append(LanguageIs(codes=self.language))
        for name in _named(self.quality, tuple(QUALITY), "--quality"):
            steps += QUALITY[name]
        if self.like is not None:
            steps.append(NgramPerplexity(reference=str(self.like)))
        if self.toxicity is not None:
            from almanac.data.filters.toxicity import Toxicity

            steps.append(Toxicity(labelled=str(self.toxicity)))
        if self.policy != "keep":
            steps.append(PersonalDataPolicy(policy=self.policy))
        if self.decontaminate:
            steps.append(Decontaminate(evaluations=tuple(map(str, self.decontaminate))))
        return tuple(steps)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Work:
    """Who does it.

    Args:
        workers: Processes that share the files.
        engine: Who runs them: daft, or ray://HOST:PORT for Daft on a cluster with a common disk; needs the extra cluster.
    """

    workers: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1
    engine: str | None = None


DEFAULT_STEPS, DEFAULT_MIXING, DEFAULT_WORK = Steps(), Mixing(), Work()


def data(
    *sources: str,
    output: Path,
    steps: Steps = DEFAULT_STEPS,
    mixing: Mixing = DEFAULT_MIXING,
    work: Work = DEFAULT_WORK,
    field: str = "text",
    json: Json = False,
) -> int:
    """Prepare a corpus: read, filter, remove copies, mix.

    Sources are files and folders: text, Markdown, HTML, PDF, DOCX, JSON lines, Parquet, WARC, WET, zip, also .gz. The output
    has the corpus in `text/`, a data card, a report, and a list of every document that was left out with the reason.
    What was stopped goes on where it was when the same command is run again.

    ```
    almanac data books/ crawl.warc.gz --output corpus --language en --quality gopher,c4 --policy redact
    almanac data web=crawl/ code=repos.jsonl.gz --output corpus --weight web=3 --weight code=1
    almanac data crawl/ --output corpus --dedup exact,near,substring --decontaminate test.jsonl
    ```

    Args:
        sources: Files and folders, each as PATH or NAME=PATH.
        output: The folder of the corpus; made if it is not there.
        field: Of records, the one that holds the text.
    """
    if not sources:
        raise RequestError("data without sources", remedy="Name files or folders.")
    from almanac.curate.run import curate

    recipe = steps.plan(mixing)
    given = [_source(item, field) for item in sources]
    with resumable(), reporting(in_json=json) as report:
        done = curate(given, output, recipe=recipe, workers=work.workers, engine=work.engine, report=report)
    if json:
        emit({"event": "done", "output": str(output), "text": str(done.text), "report": done.report})
        return 0
    _show(done.report)
    line()
    line(f"{done.text} is the corpus. What was left out and why: {output / 'data_card.md'}. Try:")
    line(f"  almanac pretrain {done.text} --output my-model")
    return 0


def _source(item: str, field: str) -> Source:
    from almanac.curate.sources import Source

    name, equals, path = item.partition("=")
    if equals and "/" not in name and not Path(item).exists():
        return Source(path=path, name=name, field=field)
    return Source(path=item, field=field)


def _named(text: str, known: tuple[str, ...], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in known:
            raise RequestError(f"{option} {name!r}", remedy=f"Choose among {', '.join(known)}, or none.")
    return names


def _show(report: Mapping[str, Any]) -> None:
    rows = [("read", "", *_sum(report["read"]))]
    found = [
        (step, reason, counts["documents"], counts["bytes"])
        for step, entry in report["steps"].items()
        for reason, counts in entry["reasons"].items()
    ]
    most = sorted(found, key=lambda row: -row[2])[:SHOWN]
    rows += [(step, reason, f"-{count:,}", size(nbytes)) for step, reason, count, nbytes in most]
    if len(found) > SHOWN:
        rest = [row for row in found if row not in most]
        rows.append(("others", "", f"-{sum(row[2] for row in rest):,}", size(sum(row[3] for row in rest))))
    rows.append(("kept", "", *_sum(report["kept"])))
    table(("step", "reason", "documents", "text"), rows)
    if report["faults"]["count"]:
        line(f"{report['faults']['count']:,} files or records could not be read.")


def _sum(counts: Mapping[str, Mapping[str, int]]) -> tuple[str, str]:
    return f"{sum(c['documents'] for c in counts.values()):,}", size(sum(c["bytes"] for c in counts.values()))
