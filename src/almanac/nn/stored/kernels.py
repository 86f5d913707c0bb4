"""The compiled products with packed weights (``blocks.c``), built once per machine with the C compiler found there.

They make decoding several times faster and change results only by float32 rounding; where there is no compiler, every
stored weight falls back to expanding in torch. The library is linked without a runtime of its own, so that it joins
torch's pool of threads instead of starting a second one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from almanac.core.weight import by_group

SOURCE = Path(__file__).with_name("blocks.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared")
THREADED = ("-fopenmp", "-nostartfiles", "-nodefaultlibs", "-lc", "-Wl,--unresolved-symbols=ignore-all")
LANES = 16
COMPILE_SECONDS = 120

_enabled = True


@contextmanager
def disabled() -> Iterator[None]:
    """Within the block stored weights use torch alone; for tests and for judging the kernels."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def available() -> bool:
    """Whether the compiled products are in use."""
    return _enabled and _library() is not None


def linear(x: Tensor, blocks: Tensor, in_features: int, format_id: int) -> Tensor | None:
    """x float32 [..., in] times packed rows: blocks uint8 [out, row_bytes] -> [..., out]; None where not available."""
    library = _library() if _enabled else None
    if library is None or x.dtype != torch.float32 or x.device.type != "cpu" or blocks.device.type != "cpu":
        return None
    rows, out = x.numel() // in_features, blocks.shape[0]
    padded = -(-in_features // LANES) * LANES
    flat = x.reshape(rows, in_features)
    if padded != in_features:
        flat = torch.nn.functional.pad(flat, (0, padded - in_features))
    flat, blocks = flat.contiguous(), blocks.contiguous()
    y = torch.empty(*x.shape[:-1], out)
    _checked(
        library.almanac_linear(
            flat.data_ptr(), rows, in_features, padded, blocks.data_ptr(), blocks.shape[1], out, y.data_ptr(),
            format_id, torch.get_num_threads(),
        )
    )  # fmt: skip
    return y


def product(x: Tensor, blocks: Tensor, in_features: int, format_id: int, dense: Callable[[], Tensor]) -> Tensor:
    """`linear`, or where that is not available the product with the weight that ``dense`` gives, [out, in]."""
    fast = linear(x, blocks, in_features, format_id)
    return torch.nn.functional.linear(x, dense().to(x.dtype)) if fast is None else fast


def grouped(
    x: Tensor, ends: Tensor, blocks: Tensor, in_features: int, format_id: int, dense: Callable[[int], Tensor]
) -> Tensor:
    """`product` of the rows of every group [n, in] with its own blocks uint8 [groups, out, row_bytes] -> [n, out]."""

    def of_group(rows: Tensor, group: int) -> Tensor:
        return product(rows, blocks[group], in_features, format_id, lambda: dense(group))

    return by_group(x, ends, blocks.shape[1], of_group)


def expand(blocks: Tensor, in_features: int, format_id: int) -> Tensor | None:
    """Packed rows uint8 [out, row_bytes] -> float32 [out, in]; None where not available."""
    library = _library() if _enabled else None
    if library is None or blocks.device.type != "cpu":
        return None
    blocks = blocks.contiguous()
    out = torch.empty(blocks.shape[0], in_features)
    _checked(
        library.almanac_expand(
            blocks.data_ptr(), blocks.shape[1], blocks.shape[0], in_features, out.data_ptr(),
            format_id, torch.get_num_threads(),
        )
    )  # fmt: skip
    return out


def _checked(code: int) -> None:
    if code == 2:
        raise MemoryError("no memory for the buffers of a packed product")
    assert code == 0, "a stored weight asked for a format that blocks.c does not know"


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.system() != "Linux":
        return None
    for flags in ((*FLAGS, *THREADED), FLAGS):  # a toolchain without OpenMP still gives one thread
        if (path := _build(compiler, flags)) is not None and (library := _load(path)) is not None:
            return library
    return None


def _build(compiler: str, flags: tuple[str, ...]) -> Path | None:
    text = SOURCE.read_bytes()
    key = hashlib.sha256(text + repr((compiler, flags, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "almanac" / "kernels"
    target = folder / f"blocks-{key}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "blocks.so"
            command = [compiler, str(SOURCE), "-o", str(made), *flags]
            done = subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=False)
            if done.returncode != 0:
                return None
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return target


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.almanac_linear.argtypes = [
        pointer, long, long, long, pointer, long, long, pointer, integer, integer,
    ]  # fmt: skip
    library.almanac_expand.argtypes = [pointer, long, long, long, pointer, integer, integer]
    return library


def _processor() -> str:
    """What ``-march=native`` depends on, so that a cache shared between machines never serves the wrong code."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.machine())
