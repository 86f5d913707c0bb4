"""What the installed distribution says it needs, and what of that is missing; the metadata is the only list."""

from __future__ import annotations

import re
from importlib import metadata

DISTRIBUTION = "almanac-lm"

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


def missing_by_extra() -> dict[str, list[str]]:
    """Extra -> its packages that are not installed; ``""`` stands for what is always needed.

    Raises:
        metadata.PackageNotFoundError: the distribution itself is not installed.
    """
    found: dict[str, list[str]] = {"": []}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        name, extra = parsed(requirement)
        missing = found.setdefault(extra, [])
        if not _is_installed(name):
            missing.append(name)
    return found


def parsed(requirement: str) -> tuple[str, str]:
    """Name and extra of a requirement line: ``gguf>=0.19; extra == 'oracles'`` -> (gguf, oracles)."""
    name = _NAME.match(requirement)
    extra = _EXTRA.search(requirement)
    assert name is not None, requirement
    return name.group(), extra.group(1) if extra else ""


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
