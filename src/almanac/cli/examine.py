"""What this machine can do for almanac: each examination yields findings, each with one command that mends it.

Nothing here uses the network, and a missing or broken library is a finding, never a failure.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from almanac.cli.environment import SWITCHES
from almanac.cli.packages import DISTRIBUTION, missing_by_extra
from almanac.cli.printing import size

LEAST_PYTHON = (3, 11)
LEAST_MEMORY_BYTES = 4_200_000_000
"""What a build with the embedded model and default settings takes at its peak, measured: 4.0 GB."""
LEAST_DISK_BYTES = 2_000_000_000
"""The cached base model, and an assistant with its work folder, which holds the adapted model and training states."""
WIDE = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "bf16", "sve")
GPU_DEVICES = ("/dev/nvidia0", "/dev/kfd")

State = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line: ``remedy`` is one command (or one sentence) where there is something to mend.

    ``blocks``: the main job cannot run like this.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None
    blocks: bool = False


def python() -> Iterator[Finding]:
    """The interpreter."""
    version = f"{platform.python_version()} ({platform.python_implementation()}, {sys.platform}, {platform.machine()})"
    if sys.version_info >= LEAST_PYTHON:
        yield Finding("python", "ok", version)
    else:
        yield Finding("python", "missing", version, "Install Python 3.11 or later.", blocks=True)


def torch() -> Iterator[Finding]:
    """The build of torch and how to get the other."""
    module = _imported("torch")
    if module is None:
        yield Finding("torch", "missing", "cannot be imported", f"pip install {DISTRIBUTION}", blocks=True)
        return
    cuda, hip = module.version.cuda, module.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    public = module.__version__.partition("+")[0]
    if cuda or hip:
        other = f"for a smaller, CPU-only build install torch=={public}+cpu from PyTorch's own CPU index"
    else:
        other = f"for a GPU: pip install --force-reinstall torch=={public}, from an index that serves the CUDA build"
    yield Finding("torch", "ok", f"{module.__version__}, {build} build ({other})")


def processor() -> Iterator[Finding]:
    """Cores, threads and instruction sets."""
    module = _imported("torch")
    cores = usable_cores()
    threads = module.get_num_threads() if module is not None else None
    busy = os.getloadavg()[0]
    if threads is None or threads <= cores:
        yield Finding("cores", "ok", f"{cores:g} usable, {threads or '?'} threads")
        if busy > cores and threads and threads > 1 and "OMP_WAIT_POLICY" not in os.environ:
            detail = f"{busy:.0f} tasks want {cores:g} cores: threads that wait by spinning take them from each other"
            yield Finding("load", "warn", detail, "export OMP_WAIT_POLICY=PASSIVE")
    else:
        remedy = f"export OMP_NUM_THREADS={max(1, int(cores))}"
        yield Finding(
            "cores", "warn", f"{cores:g} usable, but {threads} threads: they will wait for each other", remedy
        )
    known = [name for name in WIDE if name in _cpu_flags()]
    capability = module.backends.cpu.get_cpu_capability() if module is not None else "?"
    detail = f"{', '.join(known) or 'not told by this system'}; torch uses {capability}"
    yield Finding("instructions", "ok" if known or not _cpu_flags() else "warn", detail)


def memory() -> Iterator[Finding]:
    """Memory free now, within this process's limit."""
    free = free_memory_bytes()
    if free is None:
        yield Finding("memory", "ok", "not told by this system")
    elif free >= LEAST_MEMORY_BYTES:
        yield Finding("memory", "ok", f"{size(free)} free")
    else:
        remedy = f"Free memory: a build wants {size(LEAST_MEMORY_BYTES)}."
        yield Finding("memory", "warn", f"only {size(free)} free", remedy)


def disk() -> Iterator[Finding]:
    """Room and permission where fetched models go."""
    from almanac.files.hub import cache_folder

    folder = cache_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        remedy = "export XDG_CACHE_HOME=/a/folder/of/yours"
        yield Finding("disk", "missing", f"{existing} cannot be written to", remedy, blocks=True)
    elif free < LEAST_DISK_BYTES:
        remedy = "export XDG_CACHE_HOME=/a/larger/disk"
        yield Finding("disk", "warn", f"only {size(free)} free at {folder}", remedy)
    else:
        yield Finding("disk", "ok", f"{size(free)} free at {folder}")


def kernels() -> Iterator[Finding]:
    """The compiler, and the products with packed weights that it makes."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    module = _imported("almanac.nn.stored.kernels")
    if module is not None and module.available():
        yield Finding("kernels", "ok", f"packed weights are multiplied as they are, compiled with {compiler}")
    elif compiler is None:
        detail = "no C compiler: packed weights are expanded before use, several times slower"
        yield Finding("kernels", "missing", detail, "apt-get install gcc libc6-dev")
    else:
        detail = f"{compiler} cannot build them here: packed weights are expanded before use, several times slower"
        yield Finding("kernels", "warn", detail, "apt-get install gcc libc6-dev")


def templates() -> Iterator[Finding]:
    """The confined process in which chat templates run."""
    from almanac.core.errors import AlmanacError
    from almanac.tokenizers.template_process import shared_process

    try:
        shared_process().render("{{ 6 * 7 }}", {}, now="2026-01-01T00:00:00")
    except AlmanacError as error:
        yield Finding("templates", "missing", error.cause, error.remedy, blocks=True)
    else:
        yield Finding("templates", "ok", "chat templates run in a confined process")


def accelerators() -> Iterator[Finding]:
    """GPUs and the like."""
    module = _imported("torch")
    if module is not None and module.accelerator.is_available():
        kind = module.accelerator.current_accelerator().type
        count = module.accelerator.device_count()
        names = {module.cuda.get_device_name(index) for index in range(count)} if kind == "cuda" else {kind}
        yield Finding("accelerators", "ok", f"{count} x {', '.join(sorted(names))}")
    elif present := [device for device in GPU_DEVICES if Path(device).exists()]:
        remedy = "pip install --force-reinstall torch, from an index that serves the build for this GPU"
        yield Finding("accelerators", "warn", f"{present[0]} is there, but this torch cannot use it", remedy)
    else:
        yield Finding("accelerators", "ok", "none; everything runs on the processor")


def packages() -> Iterator[Finding]:
    """What the distribution needs, and its extras."""
    try:
        missing = missing_by_extra()
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warn", f"{DISTRIBUTION} is not installed, only imported", "pip install -e .")
        return
    for extra, names in missing.items():
        name = f"extra {extra}" if extra else "packages"
        command = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"
        if names:
            yield Finding(name, "missing", f"without {', '.join(names)}", command, blocks=not extra)
        else:
            yield Finding(name, "ok", "installed")


def models() -> Iterator[Finding]:
    """The models that come through pip, each read in full and compared with its pinned digest."""
    from almanac.core.errors import NotFoundError
    from almanac.files.hub import PACKAGES, alias_path, recheck

    for alias in PACKAGES:
        command = f"almanac doctor --fetch {alias}"
        try:
            alias_path(alias, download=False)
        except NotFoundError:
            yield Finding(alias, "missing", "not in the cache; it is fetched through pip when first used", command)
            continue
        if recheck(alias):
            yield Finding(alias, "ok", "in the cache, every byte as pinned")
        else:
            yield Finding(alias, "missing", "damaged in the cache: do not use it", command, blocks=True)


def network() -> Iterator[Finding]:
    """What would use the network."""
    open_ = [name for name, value in SWITCHES.items() if os.environ.get(name) != value]
    if open_:
        detail = f"used only when asked; but your environment sets {', '.join(open_)} otherwise"
        yield Finding("network", "warn", detail, f"unset {' '.join(open_)}")
    else:
        yield Finding("network", "ok", "used only when asked: --fetch, --download, or the first use of an alias")


EXAMINATIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, torch, processor, memory, disk, kernels, templates, accelerators, packages, models, network,
)  # fmt: skip


def findings() -> list[Finding]:
    """All of them, in the order they are read best."""
    return [finding for examination in EXAMINATIONS for finding in examination()]


def usable_cores() -> float:
    """Processor cores that this process may use: its affinity, within the quota of its control group."""
    cores = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    words = _text("/sys/fs/cgroup/cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        cores = min(cores, int(words[0]) / int(words[1]))
    return round(cores, 1)


def free_memory_bytes() -> int | None:
    """Bytes this process can still take, or None where the system does not tell."""
    available = next(
        (
            int(line.split()[1]) * 1024
            for line in _text("/proc/meminfo").splitlines()
            if line.startswith("MemAvailable")
        ),
        None,
    )
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        room = max(0, int(limit) - int(used))
        return room if available is None else min(available, room)
    return available


def _cpu_flags() -> set[str]:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _imported(name: str) -> Any:
    """The module, or None if it, or the system library under it, is missing or broken."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None
