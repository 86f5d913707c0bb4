"""``almanac evidence``: the experiment that backs a technique, run here and now; it can fail."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line
from almanac.core.errors import NotFoundError, RequestError

if TYPE_CHECKING:
    from almanac.evidence.runner import Result

STALE = "the pages are not what the stored results say; running an experiment draws them anew"


def evidence(
    name: str | None = None,
    /,
    *,
    profile: Literal["quick", "full"] = "quick",
    seed: int = 0,
    listed: Annotated[bool, Parameter(name="--list", show_default=False)] = False,
    check: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> int:
    """Run the experiment that backs a technique.

    Reproduces at laptop scale the effect that a technique's paper claims, beside a baseline, against a threshold that was
    set before. Where docs/evidence is below the current folder, stores the result there and draws the pages. Exit code 0
    if it was reproduced, 1 if not.

    ```
    almanac evidence --list
    almanac evidence adapt.lora --profile full
    almanac evidence --check
    ```

    Args:
        name: The technique's catalog name.
        profile: `quick` shows the direction in minutes; only `full` counts as evidence.
        seed: Of the experiment.
        listed: Show which techniques have an experiment.
        check: Tell whether the pages under docs are what the stored results say; exit code 1 if not.
    """
    from almanac.evidence import runner

    if sum((name is not None, listed, check)) != 1:
        raise RequestError("Which experiment?", remedy="Give one name, or --list, or --check.")
    names = runner.names()
    if listed:
        if json:
            emit({"experiments": names})
        else:
            line("\n".join(names))
        return 0
    if check:
        current = runner.render(check=True)
        if json:
            emit({"current": current})
        else:
            line("the pages are current" if current else STALE)
        return 0 if current else 1
    assert name is not None
    if name not in names:
        close = get_close_matches(name, names, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "`almanac evidence --list` shows those there are."
        raise NotFoundError(f"No experiment is called {name!r}", remedy=remedy)
    result = runner.run(name, profile=profile, seed=seed)
    if runner.FOLDER.is_dir():
        runner.render()
    if json:
        emit(result.to_dict())
    else:
        _print(result)
    return 0 if result.verdict == runner.REPRODUCED else 1


def _print(result: Result) -> None:
    line(f"{result.name}: {result.verdict}")
    line(f"  figure {result.value:.3g}, threshold {result.threshold:.3g} ({result.profile}, seed {result.seed})")
    for key, value in result.details.items():
        line(f"  {key}: {value}")
    for mutant, killed in result.mutants.items():
        line(f"  mutant {mutant}: {'killed' if killed else 'SURVIVED'}")
