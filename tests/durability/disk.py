"""What a disk may hold after a crash: the files before an operation, and any allowed part of what it asked for.

The model is the least that POSIX promises. Bytes written to a file are safe after its fsync; a name made, moved or
removed is safe after the fsync of its folder; until then each of them may be there or not, in any combination, and
bytes may be there up to a sector, or as zeros. (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.)
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

SECTOR, PAGE = 512, 4096
APPLIED, DROPPED, ZEROS = -1, 0, -2  # what became of a pending effect; a number above 0 is a tear after so many bytes


@dataclasses.dataclass(frozen=True)
class Effect:
    """One thing an operation asked of the disk. ``kind``: create, write, truncate, rename, rename_folder, unlink, mkdir,
    rmdir, sync (of a file) or sync_folder. Paths are relative to the folder watched.
    """

    kind: str
    inode: int = -1
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""

    @property
    def folder(self) -> str:
        """The folder whose fsync makes a change of names safe."""
        return str(Path(self.path).parent)


def moved(path: str, source: str, target: str) -> str:
    """``path`` after the folder ``source`` has become ``target``."""
    return target + path[len(source) :] if path == source or path.startswith(f"{source}/") else path


@dataclasses.dataclass
class Disk:
    """Names to inodes, inodes to bytes, and folders."""

    names: dict[str, int] = dataclasses.field(default_factory=dict)
    files: dict[int, bytes] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=lambda: {"."})

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """The present content of ``folder``, all of it safe."""
        disk = cls()
        for number, path in enumerate(sorted(folder.rglob("*"))):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                disk.folders.add(name)
            else:
                disk.names[name], disk.files[number] = number, path.read_bytes()
        return disk

    def copy(self) -> Disk:
        """One that can be changed without changing this."""
        return Disk(dict(self.names), dict(self.files), set(self.folders))

    def apply(self, effect: Effect, outcome: int = APPLIED) -> None:
        """Lets ``effect`` reach the disk, or the part of it that ``outcome`` says."""
        if effect.kind == "create":
            self.names[effect.path] = effect.inode
            self.files.setdefault(effect.inode, b"")
        elif effect.kind == "write":
            data = effect.data if outcome == APPLIED else effect.data[:outcome]
            data = bytes(len(effect.data)) if outcome == ZEROS else data
            before = self.files.get(effect.inode, b"").ljust(effect.offset, b"\0")
            self.files[effect.inode] = before[: effect.offset] + data + before[effect.offset + len(data) :]
        elif effect.kind == "truncate":
            self.files[effect.inode] = self.files.get(effect.inode, b"")[: effect.offset].ljust(effect.offset, b"\0")
        elif effect.kind == "rename":
            self.names.pop(effect.path, None)
            self.names[effect.target] = effect.inode
        elif effect.kind == "rename_folder":
            self.names = {moved(path, effect.path, effect.target): inode for path, inode in self.names.items()}
            self.folders = {moved(path, effect.path, effect.target) for path in self.folders}
        elif effect.kind == "unlink":
            self.names.pop(effect.path, None)
        elif effect.kind == "mkdir":
            self.folders.add(effect.path)
        elif effect.kind == "rmdir":
            self.folders.discard(effect.path)

    def content(self) -> frozenset[tuple[str, bytes]]:
        """Every file that can be reached, with its bytes: equal for states that nobody can tell apart."""
        found = {
            (name, self.files.get(inode, b""))
            for name, inode in self.names.items()
            if all(str(parent) in self.folders for parent in Path(name).parents)
        }
        return frozenset(found | {(f"{folder}/", b"") for folder in self.folders})

    def write_to(self, folder: Path) -> None:
        """Makes ``folder``, which must not exist, hold this."""
        folder.mkdir(parents=True)
        for name, data in sorted(self.content()):
            if name.endswith("/"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            elif (folder / name).parent.is_dir():
                (folder / name).write_bytes(data)


@dataclasses.dataclass(frozen=True)
class CrashState:
    """A disk after a crash; ``acknowledged`` if the operation had returned; ``story`` says what was lost."""

    disk: Disk
    acknowledged: bool
    story: str


def crash_states(before: Disk, trace: Sequence[Effect], *, seed: int, subsets: int = 8) -> Iterator[CrashState]:
    """Every prefix of ``trace``, with what was not yet safe kept, dropped, torn, zeroed and mixed; no state twice.

    ``subsets`` random mixtures are drawn per prefix.
    """
    rng = random.Random(seed)
    seen: set[frozenset[tuple[str, bytes]]] = set()
    for end in range(len(trace) + 1):
        done = trace[:end]
        pending = _pending(done)
        for outcomes in _outcomes(done, pending, rng, subsets):
            disk = before.copy()
            for number, effect in enumerate(done):
                if outcomes.get(number, APPLIED) != DROPPED:
                    disk.apply(effect, outcomes.get(number, APPLIED))
            content = disk.content()
            if content not in seen or end == len(trace):
                seen.add(content)
                yield CrashState(disk, end == len(trace), f"after {end} of {len(trace)}: {outcomes}")


def _pending(done: Sequence[Effect]) -> list[int]:
    """The places of the effects that no fsync has made safe yet."""
    safe: set[int] = set()
    for number, effect in enumerate(done):
        if effect.kind == "sync":
            safe |= {
                n for n, e in enumerate(done[:number]) if e.kind in ("write", "truncate") and e.inode == effect.inode
            }
        elif effect.kind == "sync_folder":
            named = ("create", "rename", "rename_folder", "unlink", "mkdir", "rmdir")
            safe |= {n for n, e in enumerate(done[:number]) if e.kind in named and e.folder == effect.path}
    return [n for n, e in enumerate(done) if n not in safe and not e.kind.startswith("sync")]


def _outcomes(
    done: Sequence[Effect], pending: Sequence[int], rng: random.Random, subsets: int
) -> Iterator[dict[int, int]]:
    """What may have become of the ``pending`` effects; those not named were applied."""
    writes = [n for n in pending if done[n].kind == "write"]
    names = [n for n in pending if done[n].kind != "write"]
    yield {}
    yield dict.fromkeys(pending, DROPPED)
    yield dict.fromkeys(writes, DROPPED)
    yield dict.fromkeys(names, DROPPED)
    yield dict.fromkeys(writes, ZEROS)
    for one in pending:
        yield {one: DROPPED}
        yield {n: DROPPED for n in pending if n != one}
    for one in writes[-2:]:
        size = len(done[one].data)
        for cut in itertools.chain(range(SECTOR, size, SECTOR), range(PAGE, size, PAGE)):
            yield {one: cut}
            yield {one: cut, **dict.fromkeys(names, DROPPED)}
    for _ in range(subsets if pending else 0):
        yield {n: rng.choice((APPLIED, DROPPED, ZEROS) if n in writes else (APPLIED, DROPPED)) for n in pending}
