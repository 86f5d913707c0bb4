"""The folder of a run: ``run.json`` says what the run is, and a folder only ever holds one run.

run.json        identity (settings, criterion, data, network), then what was forecast and measured
metrics.jsonl   a line per step
checkpoints/    see ``train.checkpoint``
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from almanac.core.errors import TrainingError
from almanac.files.store import Lock, remove_partials, write_json
from almanac.files.strict_json import read_json

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
_SAMPLED_BYTES = 1 << 16  # of each frozen tensor that go into the network's fingerprint


class RunFolder:
    """A run folder while a run writes in it; a context that holds the folder's lock.

    Args:
        path: made if absent.
        identity: what must be equal for the run to be continued, JSON-ready.

    Raises (on entering):
        LockedError: another process is running there.
        TrainingError: the folder holds another run.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self._content: dict[str, Any] = {}
        self._lock: Lock | None = None

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path)
        self._lock.acquire()
        try:
            remove_partials(self.path)
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        self._lock.release()

    @property
    def metrics(self) -> Path:
        """Where the log of steps goes."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """Where the generations go."""
        return self.path / CHECKPOINTS

    def record(self, section: str, value: Any) -> None:
        """Sets a section of run.json beside the identity, such as ``measured``."""
        self._content[section] = value
        write_json(self.path / RUN, {"version": 1, "identity": self.identity, **self._content})

    def _claim(self) -> None:
        path = self.path / RUN
        if path.exists():
            self._content = read_run(self.path)
            differing = _differing(self._content.pop("identity", {}), self.identity)
            self._content.pop("version", None)
            if differing:
                raise TrainingError(
                    f"{self.path} holds another run: {', '.join(differing)} differ",
                    remedy="Give the same model, data and settings to go on, or name another folder.",
                )
        self.record("torch", torch.__version__)


def read_run(folder: str | Path) -> dict[str, Any]:
    """run.json of a folder. Raises NotFoundError, FileFormatError, or TrainingError if it is none of ours."""
    content = read_json(Path(folder) / RUN)
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("identity"), dict):
        raise TrainingError(f"{folder} holds a {RUN} that is not of a run", remedy="Name another folder.")
    return content


def fingerprint(network: nn.Module) -> str:
    """SHA-256 (hex) over the names and shapes of all parameters and the first bytes of every frozen one.

    What learns is left out: it has other values every time the run is resumed.
    """
    hashed = hashlib.sha256()
    for name, parameter in network.named_parameters():
        hashed.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}\n".encode())
        if not parameter.requires_grad:
            first = parameter.detach().flatten()[: _SAMPLED_BYTES // parameter.element_size()]
            hashed.update(first.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _differing(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*saved, *given} if saved.get(name) != given.get(name))
