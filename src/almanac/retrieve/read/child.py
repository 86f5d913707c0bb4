"""The process in which documents from strangers are parsed: started by `process`, never imported by it.

It waits for a file, imports that format's reader and forks; the fork closes its doors (`confine`), takes the bytes,
answers in frames (`wire`) and ends. So no file meets what another left behind, and the process that waits never sees a
byte of any. What became of the fork goes out by a second pipe that the fork does not hold.

Run as ``python -I -S child.py STATUS_DESCRIPTOR FOLDER...``, the folders being those to import from.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

HEADER = struct.Struct("<IQ")  # bytes of the job's JSON, bytes of the file
_BLOCK = 1 << 20
# What the standard library imports in the middle of the readers' work, when it is too late.
_LATE = """heapq encodings.ascii encodings.cp437 encodings.cp1252 encodings.idna encodings.latin_1 encodings.utf_8
encodings.utf_8_sig encodings.utf_16 encodings.utf_16_be encodings.utf_16_le encodings.utf_32 encodings.utf_32_be
encodings.utf_32_le encodings.raw_unicode_escape encodings.unicode_escape""".split()


def main(arguments: list[str]) -> None:
    """Serve jobs from standard input until it ends."""
    status = int(arguments[0])
    sys.path.extend(arguments[1:])
    from almanac.core import errors  # noqa: F401 (the forks need it, and cannot import)
    from almanac.retrieve.read import confine, formats, wire  # noqa: F401

    for late in _LATE:
        importlib.import_module(late)
    isolated = confine.leave_network()
    confine.no_new_privileges()
    os.write(status, b"n" if isolated else b"-")
    while header := _exactly(HEADER.size):
        job_bytes, file_bytes = HEADER.unpack(header)
        job = json.loads(_exactly(job_bytes))
        _prepare(job["modules"])
        if job["archive"]:
            formats.readers()
        fork = os.fork()
        if fork == 0:
            os.close(status)
            _work(job, file_bytes)
        os.write(status, struct.pack("<i", _await(fork)))


def _await(fork: int) -> int:
    """How the fork ended; if the parent goes away first, both do."""
    watched = select.poll()
    watched.register(0, 0)  # no event but the end of the pipe
    descriptor = os.pidfd_open(fork)
    watched.register(descriptor, select.POLLIN)
    if descriptor not in (ready for ready, _ in watched.poll()):
        os.kill(fork, signal.SIGKILL)
        os._exit(1)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])


def _prepare(modules: list[str]) -> None:
    """Imports readers and what they import late, while that is still possible; an absent extra shows when it is used."""
    for name in modules:
        module = importlib.import_module(name)
        with contextlib.suppress(ImportError):
            for late in getattr(module, "IMPORTS", ()):
                importlib.import_module(late)


def _exactly(count: int) -> bytes:
    """The next ``count`` bytes of standard input, or none at its end."""
    data = bytearray()
    while len(data) < count:
        block = os.read(0, min(_BLOCK, count - len(data)))
        if not block:
            return b""
        data += block
    return bytes(data)


def _work(job: dict[str, Any], file_bytes: int) -> None:
    """Reads one file in the fork, and ends it whatever happens."""
    from almanac.core.errors import FileFormatError
    from almanac.retrieve.read import confine
    from almanac.retrieve.read.wire import Begun, Ended, Skipped

    current = name = job["name"]
    code = 1

    def failed(cause: str) -> None:
        _send(Skipped(current, FileFormatError(f"{current} {cause}", remedy="Convert it, or leave it out.")))

    try:
        confine.follow_parent()
        confine.limit(
            address_space_bytes=confine.address_space() + job["memory_bytes"],
            cpu_seconds=job["total_seconds"] + 1,
            wall_seconds=job["wall_seconds"],
        )
        confine.close_files()
        confine.watch(lambda event: failed(f"was stopped: its reader attempted {event}"))
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        for event in _events(job, _exactly(file_bytes), name):
            if isinstance(event, Begun):
                current = event.name
                signal.setitimer(signal.ITIMER_PROF, job["seconds"])
            _send(event)
        _send(Ended())
        code = 0
    except MemoryError:
        failed(f"needs more than {job['memory_bytes'] >> 20} MiB of memory")
    except Exception as error:  # whatever a reader raises is the fault of this one file
        failed(f"cannot be read: its reader failed: {type(error).__name__}: {error}"[:300])
        if not job["archive"]:  # the file was taken in to its end, so the next may follow
            _send(Ended())
            code = 0
    finally:
        os._exit(code)  # nothing of this process may outlive its file


def _events(job: dict[str, Any], data: bytes, name: str) -> Iterator[Any]:
    from almanac.core.errors import AlmanacError
    from almanac.retrieve.read.wire import Skipped

    module = sys.modules[job["modules"][0]]
    try:
        if job["archive"]:
            yield from module.members(data, name, after=job["after"])
        else:
            yield module.read(data, name)
    except AlmanacError as error:
        yield Skipped(name, error)


def _send(event: Any) -> None:
    from almanac.core.errors import FileFormatError
    from almanac.retrieve.read.wire import Skipped, pack

    try:
        frame = pack(event)
    except FileFormatError as error:
        frame = pack(Skipped(event.document.path, error))
    remaining = memoryview(frame)
    while remaining:
        remaining = remaining[os.write(1, remaining) :]


if __name__ == "__main__":
    main(sys.argv[1:])
