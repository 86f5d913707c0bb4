"""``almanac verify``: a model on disk is loaded and held against its certificate, or gets its first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from almanac.core.errors import NotFoundError
from almanac.files.hub import PACKAGES, alias_path
from almanac.language_model.load import load
from almanac.verify import certificate as certificates


def verify_model(path: str | Path) -> dict[str, Any]:
    """Checks a model folder or GGUF file against its certificate; writes one where there is none.

    Returns:
        ``{"certificate": path, "new": bool, "relative": ..., "agreement": ..., "steps": [...]}``.

    Raises:
        IntegrityError: a certified file changed. ParityError: it answers otherwise than certified.
        NotFoundError: no such model.
    """
    target = Path(path)
    if not target.exists() and str(path) in PACKAGES:
        target = alias_path(str(path), download=True)
    if not target.exists():
        raise NotFoundError(f"There is no model {path}", remedy="Give a model folder, a .gguf file or an alias.")
    folder = target if target.is_dir() else target.parent
    place = folder / certificates.NAME if target.is_dir() else folder / f"{target.name}.{certificates.NAME}"
    if place.is_file():
        known = certificates.read(place)
        certificates.check_files(known, folder, alone=target.is_file())
        lm = load(target)
        measured = certificates.check(known, lm)
        certificates.check_digests(known, lm)
        return {"certificate": str(place), "new": False, "steps": known["steps"], **measured}
    lm = load(target)
    names = {place.name}
    files = [target] if target.is_file() else sorted(p for p in folder.iterdir() if p.is_file() and p.name not in names)
    certificates.write(certificates.certify(lm, files=files), place)
    return {"certificate": str(place), "new": True, "steps": [], "relative": 0.0, "agreement": 1.0}
