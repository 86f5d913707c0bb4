"""Checkpoints as generations: each a folder that is there whole or not at all.

Order of a save: files under a temporary folder name (each fsynced and read back) -> manifest of their digests -> rename
-> fsync of the folder -> pointer -> only then the oldest generation goes. Killed anywhere in between, the pointer names
a whole generation. Nothing is pickled: tensors are safetensors, everything else is JSON. Where many processes train, each
writes its parts and one moves the folder (``train.pieces``); any number of processes can go on from it.

    checkpoints/latest.json             {"generation": "step-00000025"}
    checkpoints/step-00000025/          tensors.safetensors  facts.json  manifest.json
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.core.errors import AlmanacError, FileFormatError, IntegrityError, TrainingError
from almanac.files.safetensors import write_safetensors
from almanac.files.store import remove_partials, sha256_file, sync_folder, write_json
from almanac.files.strict_json import read_json
from almanac.train.pieces import SLICES, TENSORS, OneWriter, Writers, tensors_from
from almanac.train.training import Snapshot

KEPT = 2  # generations, and the newest that a run may go back to where it is neither
POINTER, FACTS, MANIFEST = "latest.json", "facts.json", "manifest.json"
_PARTIAL = ".partial-"
_SPARE_BYTES = 16 << 20  # room left on the disk for everything that is not a checkpoint


class Checkpoints:
    """The generations in one folder. One run writes there: the run folder's lock is held by the caller."""

    def __init__(self, folder: Path, writers: Writers | None = None) -> None:
        self.folder, self.writers = folder, writers or OneWriter()
        self.writers.decided(self._sweep)

    def _sweep(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)
        remove_partials(folder)

    def save(self, snapshot: Snapshot) -> Path:
        """Writes one generation, durable and pointed at when this returns.

        Raises:
            TrainingError: a tensor is not finite, or the disk has no room; the generations before are intact.
        """
        writers = self.writers
        writers.agreed(lambda: _refuse_not_finite(snapshot))
        self.require_room(sum(tensor.nbytes for tensor in snapshot.tensors.values()))
        target = self.folder / _name(snapshot.facts["counters"]["step"])
        if writers.decided(lambda: target.name == self._pointed() and not _fault(target)):
            writers.decided(lambda: self._remove_old(target))
            return target  # the same step again, as when a run stops right after a save
        partial = self.folder / writers.decided(self._begin)
        try:
            held, slices = writers.given(snapshot.tensors)
            parts = writers.agreed(lambda: _write_tensors(partial / writers.file, held))
            facts, places = writers.facts(snapshot.facts), writers.together(slices)
            writers.decided(lambda: self._commit(partial, target, facts, (parts, places)))
        except BaseException:
            if writers.leads:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return target

    def _begin(self) -> str:
        partial = self.folder / f"{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}"
        partial.mkdir()
        return partial.name

    def _commit(
        self, partial: Path, target: Path, facts: dict[str, Any], written: tuple[list[tuple[str, str]], list[Any]]
    ) -> None:
        parts, places = written
        digests = dict([(FACTS, write_json(partial / FACTS, facts)), *parts])
        if any(places):
            named = {name: held for (name, _), held in zip(parts, places, strict=True)}
            digests[SLICES] = write_json(partial / SLICES, named)
        write_json(partial / MANIFEST, {"files": digests})
        if target.exists():  # left by a run that was killed before its pointer moved, or damaged
            shutil.rmtree(target)
        partial.rename(target)
        sync_folder(self.folder)
        write_json(self.folder / POINTER, {"generation": target.name})
        self._remove_old(target)

    def generations(self) -> list[str]:
        """Names of the generations present, oldest first."""
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def load(self) -> tuple[Snapshot, list[str]] | None:
        """The newest generation whose bytes are those written, and which newer ones were damaged; None if none exists.

        Raises:
            IntegrityError: there are generations and none of them is whole.
        """
        name, damaged = self.writers.decided(self._newest_whole)
        if name is not None:
            return _read(self.folder / name, self.writers), damaged
        if damaged:
            raise IntegrityError(
                f"No checkpoint in {self.folder} is whole ({'; '.join(damaged)})",
                remedy="Remove the folder to start the run again, or restore it from a backup.",
            )
        return None

    def anchor(self, step: int) -> Snapshot | None:
        """The newest whole generation, of at most ``step`` steps, that a run may go back to, or None."""
        name = self.writers.decided(lambda: self._newest_anchor(step))
        return _read(self.folder / name, self.writers) if name is not None else None

    def _newest_whole(self) -> tuple[str | None, list[str]]:
        damaged: list[str] = []
        for name in self._candidates():
            fault = _fault(self.folder / name)
            if fault is None:
                return name, damaged
            damaged.append(f"{name}: {fault}")
        return None, damaged

    def _newest_anchor(self, step: int) -> str | None:
        for name in [name for name in self.generations() if name <= _name(step)][::-1]:
            if self._is_anchor(name) and _fault(self.folder / name) is None:
                return name
        return None

    def require_room(self, nbytes: int) -> None:
        """Raises TrainingError if ``nbytes`` more, from each process its own, do not fit on the disk."""
        nbytes = sum(self.writers.together(nbytes))
        needed, free = nbytes + _SPARE_BYTES, self.writers.decided(lambda: shutil.disk_usage(self.folder).free)
        if free < needed:
            raise TrainingError(
                f"Checkpoints need {needed >> 20} MiB more, {self.folder} has {free >> 20} MiB left",
                remedy="Free some space, then start the same run again: it goes on from its last checkpoint.",
            )

    def _remove_old(self, newest: Path) -> None:
        before = [name for name in self.generations() if name <= newest.name]
        kept = {*before[-KEPT:], *[name for name in before if self._is_anchor(name)][-1:]}
        for name in set(self.generations()) - kept:
            shutil.rmtree(self.folder / name)

    def _is_anchor(self, name: str) -> bool:
        try:
            return _object(self.folder / name / FACTS).get("anchor") is True
        except AlmanacError:  # damaged: it is not one to go back to
            return False

    def _candidates(self) -> list[str]:
        """What the pointer names, then older ones; if the pointer names nothing that is here, all from the newest."""
        newest_first = self.generations()[::-1]
        name = self._pointed()
        return newest_first[newest_first.index(name) :] if name in newest_first else newest_first

    def _pointed(self) -> str | None:
        try:
            return str(_object(self.folder / POINTER)["generation"])
        except (AlmanacError, KeyError):
            return None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _fault(folder: Path) -> str | None:
    """Why a generation is not what was saved, or None."""
    try:
        digests = _object(folder / MANIFEST)["files"]
        parts = (SLICES, *_object(folder / SLICES)) if SLICES in digests else (TENSORS,)
        wrong = [name for name in (*parts, FACTS) if sha256_file(folder / name) != digests[name]]
    except (AlmanacError, OSError, KeyError, TypeError) as error:
        return f"its manifest or a file cannot be read ({error})"
    return f"{wrong[0]} is not what was saved" if wrong else None


def _read(folder: Path, writers: Writers) -> Snapshot:
    return Snapshot(*writers.finished(tensors_from(folder, writers), _object(folder / FACTS)))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> tuple[str, str]:
    write_safetensors(path, tensors, max_shard_bytes=2**63)
    return path.name, sha256_file(path)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds no object", remedy="The checkpoint is damaged.")
    return value


def _refuse_not_finite(snapshot: Snapshot) -> None:
    for name, tensor in snapshot.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} is not finite, so it is not saved",
                remedy="Lower the learning rate and start from a checkpoint.",
            )
