"""``almanac evidence``: the experiment that backs a technique, run here and now; it can fail."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line
from almanac.core.errors import NotFoundError, RequestError

REPRODUCED = "REPRODUCED"


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
    set before. Exit code 0 if it was reproduced, 1 if not.

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
            line("the pages are current" if current else "the pages are not what the stored results say")
        return 0 if current else 1
    assert name is not None
    if name not in names:
        close = get_close_matches(name, names, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "`almanac evidence --list` shows those there are."
        raise NotFoundError(f"No experiment is called {name!r}", remedy=remedy)
    result = runner.run(name, profile=profile, seed=seed)
    if json:
        emit(result.to_dict())
    else:
        for key, value in result.to_dict().items():
            line(f"{key}: {value}")
    return 0 if result.verdict == REPRODUCED else 1
