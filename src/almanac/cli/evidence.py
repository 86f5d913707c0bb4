"""``almanac evidence``: the experiments that back the techniques, run here and now; they can fail."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note
from almanac.cli.printing import table as print_table
from almanac.core.errors import AlmanacError, NotFoundError, RequestError

if TYPE_CHECKING:
    from almanac.evidence.results import Result

STALE_PAGES = "the pages are not what the stored results say; `make docs` draws them anew"
Flag = Annotated[bool, Parameter(show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shown:
    """What else can be asked than the run of one experiment.

    Args:
        listed: Show the names of the experiments, a line each.
        everything: Run all experiments, one after the other; what the same code has run before is not run again.
        null: Judge every stored result with its method replaced by the baseline; exit code 1 if one passes.
        check: Tell whether the pages under docs are what the stored results say; exit code 1 if not.
    """

    listed: Annotated[bool, Parameter(name="--list", show_default=False)] = False
    everything: Annotated[bool, Parameter(name="--all", show_default=False)] = False
    null: Flag = False
    check: Flag = False

    @property
    def count(self) -> int:
        """How many of them are asked."""
        return sum((self.listed, self.everything, self.null, self.check))


def evidence(
    name: str | None = None,
    /,
    *,
    profile: Literal["quick", "full", "gpu"] = "quick",
    development: Flag = False,
    rotation: int = 0,
    shown: Shown = Shown(),
    json: Json = False,
) -> int:
    """Run the experiment that backs a technique, or show what was found.

    Reproduces at laptop scale the effect that a technique's paper claims, beside a baseline, against lines that were drawn
    before, on seeds that nobody chose, and with bugs planted that must be noticed. Without a name: the table of every
    experiment with its stored verdict. Where docs/evidence is below the current folder, a full run is stored there and the
    pages are drawn. Exit code 0 if it was reproduced, 1 if not.

    ```
    almanac evidence
    almanac evidence generate.cached_decoding --profile full
    almanac evidence --all --profile quick
    almanac evidence --null
    ```

    Args:
        name: The technique's catalog name.
        profile: `quick` shows the direction in minutes; only `full` and `gpu` earn a verdict.
        development: Use the seeds for tuning, 0, 1, ...; nothing is stored.
        rotation: Other verdict seeds of the same card.
    """
    if shown.count + (name is not None) > 1:
        raise RequestError("More than one thing is asked", remedy="Give a name, --all, --list, --null or --check.")
    if shown.listed:
        return _list(json)
    if shown.null:
        return _null(json)
    if shown.check:
        return _check(json)
    if shown.everything:
        return _run_all(json, profile=profile, development=development, rotation=rotation)
    if name is None:
        return _table(json)
    return _run(name, json, profile=profile, development=development, rotation=rotation)


def _list(json: bool) -> int:
    from almanac.evidence.experiment import names

    if json:
        emit({"experiments": names()})
    else:
        line("\n".join(names()))
    return 0


def _table(json: bool) -> int:
    from almanac.evidence.experiment import digest_of
    from almanac.evidence.pages import rows
    from almanac.evidence.results import FOLDER, stored

    header = ("experiment", "tier", "verdict", "primary effect", "must be", "mutants killed", "CPU min", "date")
    results = stored(FOLDER)
    found = rows(results)
    stale = [name for name, items in results.items() if items[0].code != digest_of(name)]
    if json:
        emit({"experiments": [dict(zip(header, row, strict=True)) for row in found], "code_changed_since": stale})
        return 0
    print_table(header, found)
    if stale:
        note(f"code changed since the run: {', '.join(stale)}")
    return 0


def _null(json: bool) -> int:
    from almanac.evidence.claim import Verdict
    from almanac.evidence.experiment import card_of
    from almanac.evidence.results import FOLDER, stored

    found = {name: str(items[0].null(card_of(name)).verdict) for name, items in stored(FOLDER).items()}
    passed = [name for name, verdict in found.items() if verdict == Verdict.REPRODUCED]
    if json:
        emit({"null": found, "passed": passed})
    else:
        print_table(("experiment with nothing in it", "verdict"), found.items())
        line(f"{len(passed)} of {len(found)} passed; none may")
    return 1 if passed else 0


def _check(json: bool) -> int:
    from almanac.evidence import pages

    current = pages.render(check=True)
    if json:
        emit({"current": current})
    else:
        line("the pages are current" if current else STALE_PAGES)
    return 0 if current else 1


def _run(name: str, json: bool, *, profile: str, development: bool, rotation: int) -> int:
    from almanac.evidence import pages, runner
    from almanac.evidence.claim import Verdict
    from almanac.evidence.experiment import experiment, names
    from almanac.evidence.results import FOLDER

    try:
        experiment(name)
    except NotFoundError as error:
        close = get_close_matches(name, names(), n=1)
        remedy = f"Did you mean {close[0]}?" if close else "`almanac evidence --list` shows those there are."
        raise NotFoundError(f"No experiment is called {name!r}", remedy=remedy) from error

    def tell(what: str, done: int, total: int) -> None:
        note(f"{what}: {done} of {total}")

    result = runner.run(name, profile=profile, development=development, rotation=rotation, tell=tell)
    if FOLDER.is_dir() and profile != "quick" and not development:
        pages.render()
    if json:
        emit(_summary(result))
    else:
        _print(result)
    return 0 if result.verdict == Verdict.REPRODUCED else 1


def _run_all(json: bool, *, profile: str, development: bool, rotation: int) -> int:
    from almanac.evidence.experiment import names

    codes = [_attempt(name, json, profile=profile, development=development, rotation=rotation) for name in names()]
    return max(codes, default=0)


def _attempt(name: str, json: bool, *, profile: str, development: bool, rotation: int) -> int:
    """One of many: what cannot be run here (data or an extra is missing) is said, and the rest goes on."""
    try:
        return _run(name, json, profile=profile, development=development, rotation=rotation)
    except AlmanacError as error:
        if json:
            emit({"name": name, "error": str(error)})
        else:
            line(f"{name}: could not be run. {error}")
        return 1


def _summary(result: Result) -> dict[str, Any]:
    from almanac.evidence.experiment import card_of

    card = card_of(result.name)
    found = result.judgement(card)
    return result.to_dict() | {
        "fault": found.fault,
        "weak": result.weak,
        "null": str(result.null(card).verdict),
        "claims": [
            {"effect": str(r.claim.effect), "must_be": r.claim.line, "mean": r.bounds.mean, "low": r.bounds.low,
             "high": r.bounds.high, "count": r.bounds.count, "verdict": str(r.verdict)}
            for r in found.readings
        ],
    }  # fmt: skip


def _print(result: Result) -> None:
    summary = _summary(result)
    line(
        f"{result.name}: {result.verdict}{' (weak)' if result.weak else ''} ({result.profile}, {len(result.seeds)} seeds)"
    )
    if summary["fault"]:
        line(f"  {summary['fault']}")
    for claim in summary["claims"]:
        interval = f" ({claim['low']:.3g} to {claim['high']:.3g})" if claim["count"] > 1 else ""
        line(f"  {claim['effect']}: {claim['mean']:.3g}{interval}, {claim['must_be']}: {claim['verdict']}")
    for mutant, how in result.killed.items():
        line(f"  planted bug {mutant}: {how if how == 'survived' else 'noticed by the ' + how}")
    line(f"  with nothing in it: {summary['null']}")
