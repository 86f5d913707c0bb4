"""``almanac list``: what there is, found by walking the folders; nothing is registered anywhere."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, Literal

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, size, table

ARXIV = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5})", re.IGNORECASE)
KINDS = ("models", "techniques", "aliases")

Row = dict[str, Any]


def listing(kind: Literal["models", "techniques", "aliases"] | None = None, /, *, json: Json = False) -> int:
    """Show the models, techniques and aliases that there are.

    Families of models that are read and run here (what they are called in config.json and in GGUF, and whether they
    write text, read it, or both), techniques with their file and the paper each stands on, and the names of models that
    are fetched through pip, with whether they are in the cache.

    ```
    almanac list
    almanac list techniques --json
    ```

    Args:
        kind: Only these.
    """
    makers: dict[str, Callable[[], list[Row]]] = {"models": models, "techniques": techniques, "aliases": aliases}
    wanted = {name: makers[name]() for name in KINDS if kind in (None, name)}
    if json:
        emit(wanted)
        return 0
    for index, (name, rows) in enumerate(wanted.items()):
        if index:
            line()
        if kind is None:
            line(f"{name.upper()}")
        header = [key for key in rows[0] if key != "bytes"] if rows else []
        table(header, [[_cell(row, key) for key in header] for row in rows])
    return 0


def models() -> list[Row]:
    """The families: ``name`` (the checkpoint's model_type), ``kind``, hub ``architecture``, GGUF architecture, title."""
    from almanac.models.encoder_decoder_family import encoder_decoder_families
    from almanac.models.family import encoder_families, families

    kinds = (
        ("decoder", [(family, family.gguf) for family in families()]),
        ("encoder", [(family, None) for family in encoder_families()]),
        ("encoder-decoder", [(family, None) for family in encoder_decoder_families()]),
    )
    return [
        {
            "name": family.model_type,
            "kind": kind,
            "architecture": family.architecture,
            "gguf": gguf,
            "title": _title(sys.modules[family.read.__module__].__doc__),
        }
        for kind, found in kinds
        for family, gguf in found
    ]


def techniques() -> list[Row]:
    """The technique files: catalog ``name``, arXiv number of its ``paper``, ``path`` below the sources, title."""
    from almanac.core import catalog

    return [
        {
            "name": name,
            "paper": _paper(module.__doc__),
            "path": f"{module.__name__.replace('.', '/')}.py",
            "title": _title(module.__doc__),
        }
        for name, module in catalog.techniques().items()
    ]


def aliases() -> list[Row]:
    """The models that come through pip: ``name``, whether ``cached``, bytes in the cache, package and licence."""
    from almanac.core.errors import NotFoundError
    from almanac.files.hub import PACKAGES, alias_path, cache_folder

    rows = []
    for name, package in PACKAGES.items():
        try:
            alias_path(name, download=False)
        except NotFoundError:
            cached = False
        else:
            cached = True
        files = [cache_folder() / name / member.rpartition("/")[2] for member in package.members]
        nbytes = sum(file.stat().st_size for file in files) if cached else 0
        source = f"{package.name} {package.version}"
        rows.append({"name": name, "cached": cached, "bytes": nbytes, "package": source, "licence": package.licence})
    return rows


def _title(doc: str | None) -> str:
    """The first sentence of a docstring, without the full stop."""
    paragraph = " ".join(inspect.cleandoc(doc or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\w)\. ", paragraph)[0].rstrip(".").replace("``", "")


def _paper(doc: str | None) -> str | None:
    found = ARXIV.search(doc or "")
    return found.group(1) if found else None


def _cell(row: Row, key: str) -> str:
    value = row[key]
    if key == "cached":
        return size(row["bytes"]) if value else "no"
    return "-" if value is None else str(value)
