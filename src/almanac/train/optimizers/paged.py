"""Paged states: what an optimizer remembers lies in a file that is mapped, so that memory holds of it what there is room for.

Dettmers 2023, arXiv 2305.14314, section 3 (paged optimizers): there the states are moved between a GPU and the machine's
memory by its driver, page by page; here between memory and disk by the kernel. A step touches each state once, in order, so
that what does not fit is read and written once a step. Numbers are the same bits as without.

Deviation: the states of one parameter are made and moved after another, so that they never lie in memory all at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.errors import TrainingError, UnsupportedError
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.optimizer import Optimizer

LEAST_BYTES = 1 << 16  # smaller states stay where they are


@dataclass(frozen=True, kw_only=True)
class Paged(Optimizer):
    """``inner``, its states in files below ``folder`` that have no name and go with the process.

    The folder must be on a disk: by default it is the system's for temporary files, which may be memory itself.
    """

    inner: Optimizer = AdamW()
    folder: str | None = None

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Raises UnsupportedError for parameters that are not in the machine's memory."""
        if elsewhere := [name for name, parameter in parameters.items() if parameter.device.type != "cpu"]:
            raise UnsupportedError(
                f"{elsewhere[0]} is not in the machine's memory, and states are paged between memory and disk",
                remedy="Train on the processor, or without Paged.",
            )
        return _PagedOptimizer(self.inner.build(parameters), self.folder)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """What is in no file: of the largest parameter while it is moved, and small ones."""
        each = [self.inner.state_bytes({name: parameter}) for name, parameter in parameters.items()]
        return max(each, default=0) + sum(nbytes for nbytes in each if nbytes < LEAST_BYTES)


class _PagedOptimizer(torch.optim.Optimizer):
    """Steps ``inner`` one parameter at a time. Groups and states are those of ``inner``."""

    def __init__(self, inner: torch.optim.Optimizer, folder: str | None) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.folder = inner, folder
        self.state = inner.state
        self._mapped: dict[int, Tensor] = {}  # by the address of their numbers
        self._has_moved = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters. Raises TrainingError if the disk has no room for the states."""
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [parameter.grad for parameter in moving]
        for parameter in moving:
            parameter.grad = None
        try:
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = gradient
                self.inner.step()
                parameter.grad = None
                self._move(self.state[parameter])
        finally:
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = gradient
        if self._has_moved:
            _return_freed_memory()
            self._has_moved = False

    def _move(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if isinstance(value, Tensor) and value.nbytes >= LEAST_BYTES and value.data_ptr() not in self._mapped:
                state[key] = mapped = _in_file(value, self.folder)
                self._mapped[mapped.data_ptr()] = mapped
                self._has_moved = True


def _return_freed_memory() -> None:
    """Where the C library keeps freed memory for later, has it given back: the states' first places are not needed again."""
    with contextlib.suppress(AttributeError):  # other libraries than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _in_file(tensor: Tensor, folder: str | None) -> Tensor:
    """The same numbers, mapped from a file that has no name any more."""
    descriptor, path = tempfile.mkstemp(prefix="almanac-state-", dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, tensor.nbytes)  # a page that finds no room later would end the process
        flat = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    except OSError as error:
        raise TrainingError(
            f"No room for {tensor.nbytes >> 20} MiB of an optimizer's states in {folder or tempfile.gettempdir()}: {error}",
            remedy="Free some space, or name a folder on another disk.",
        ) from error
    finally:
        os.close(descriptor)
        Path(path).unlink()
    return flat.view(tensor.shape).copy_(tensor)
