"""The parent's side of the reading process: starting it, giving it files, ending it when a limit is breached.

One waiting child per process (started at the first file, a tenth of a second), in which every file is read by a fork of
its own: see `child`. It gets no environment, no network and nothing but bytes. Whatever goes wrong with a file ends as
one `Skipped` that names it; where a member of an archive did the harm, the rest of the archive is still read.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError, UnsupportedError
from almanac.retrieve.read import wire
from almanac.retrieve.read.child import HEADER
from almanac.retrieve.read.document import Reading
from almanac.retrieve.read.formats import MAX_BYTES, Format, formats, suffix_of

MEMORY_BYTES = 512 * 2**20  # above what the process uses before it sees the file
SECONDS = (
    10  # of processor time for a file or a member of an archive; one more for each MiB of a kind that may be large
)
WALL = 2  # times as much may pass on the clock, for other programs want the processor too
ARCHIVE_SECONDS = 30  # for all members together; two more for each MiB
MAX_TOTAL_BYTES = 256 * 2**20  # text that one archive may give
_START_SECONDS = 20.0
_GRACE_SECONDS = 1.0  # for starting and answering, on top of the wall time
_BLOCK = 1 << 16
_STOPPED_BY = {
    signal.SIGPROF: "takes longer than {seconds} s of processor time",
    signal.SIGXCPU: "takes longer than {seconds} s of processor time",
    signal.SIGKILL: "was ended by the system, for its time or its memory",
}


@dataclasses.dataclass
class Outcome:
    """What came out of one file: ``skipped`` names the file itself, or members of the archive that it is."""

    readings: list[Reading] = dataclasses.field(default_factory=list)
    skipped: dict[str, AlmanacError] = dataclasses.field(default_factory=dict)

    def skip(self, name: str, error: AlmanacError) -> None:
        """Names a file or member as not read, once."""
        self.skipped.setdefault(name, error)


class _EndedError(Exception):
    """The child ended, or must be ended, without an answer; the text says why."""


class ReaderProcess:
    """Reads files, one at a time, each in a confined process. Safe to use from several threads and after a fork.

    Args:
        known: the format of each suffix.
        folders: further folders that the readers are imported from.
        seconds: of processor time for one file or member; larger files are given more.
        memory_bytes: that one file or archive may take.
    """

    def __init__(
        self,
        known: Mapping[str, Format] | None = None,
        *,
        folders: tuple[str, ...] = (),
        seconds: int = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.isolated = False  # whether the kernel gave the child an empty network, known once it has started
        self._known = known
        self._folders = folders
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._status = -1
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def read(self, data: bytes, name: str) -> Outcome:
        """Everything readable in the file ``data``, which is called ``name``; its suffix decides how.

        Raises:
            NotFoundError: no reader for this suffix.
            UnsupportedError: this system cannot confine a process.
        """
        known = formats() if self._known is None else self._known
        kind = known.get(suffix_of(name))
        if kind is None:
            raise NotFoundError(
                f"{name} has no reader for {suffix_of(name) or 'a file without suffix'}",
                remedy=f"These kinds are read: {', '.join(sorted(known))}.",
            )
        mebibytes = len(data) >> 20
        seconds = self._seconds + (mebibytes if kind.max_bytes > MAX_BYTES else 0)
        others = sorted({other.module for other in known.values()} - {kind.module}) if kind.archive else []
        job = {
            "name": name,
            "modules": [kind.module, *others],
            "archive": kind.archive,
            "after": "",
            "seconds": seconds,
            "total_seconds": ARCHIVE_SECONDS + 2 * mebibytes if kind.archive else seconds,
            "memory_bytes": self._memory_bytes,
        }
        job["wall_seconds"] = WALL * job["total_seconds"] + _GRACE_SECONDS
        with self._lock:
            outcome = self._run(job, data)
        if not outcome.readings and not outcome.skipped:
            outcome.skip(name, FileFormatError(f"{name} holds no documents", remedy="Put documents into it."))
        return outcome

    def close(self) -> None:
        """End the child, if there is one. The next file starts a new one."""
        with self._lock:
            self._stop()

    def _run(self, job: dict[str, Any], data: bytes) -> Outcome:
        """Runs the job, and an archive again from behind each member that ended its process."""
        outcome = Outcome()
        deadline = time.monotonic() + job["wall_seconds"]
        while True:
            conversation = _Conversation(job, outcome, deadline)
            try:
                if self._child is None or self._child.poll() is not None:
                    self._start()
                assert self._child is not None
                conversation.hold(self._child, self._status, data)
            except _EndedError as error:
                self._stop()
                conversation.blame(str(error))
            except BaseException:  # an interrupt: the answer would arrive in the next conversation
                self._stop()
                raise
            else:
                return outcome
            if not job["archive"] or conversation.current == job["name"] or conversation.current == job["after"]:
                return outcome
            if time.monotonic() >= deadline:
                return outcome
            job["after"] = conversation.current

    def _start(self) -> None:
        self._stop()
        self._status, theirs = os.pipe()
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), str(theirs)]
        try:
            self._child = subprocess.Popen(
                [*command, *_import_folders(), *self._folders],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs,),
                cwd="/",
                env={},
                start_new_session=True,  # Ctrl-C in the terminal is for the parent
            )
        finally:
            os.close(theirs)
        ready, _, _ = select.select([self._status], [], [], _START_SECONDS)
        answer = os.read(self._status, 1) if ready else b""
        if not answer:
            self._stop()
            raise UnsupportedError(
                "The process for reading documents did not start; it needs Linux and limits on memory and time",
                remedy="Run on Linux.",
            )
        self.isolated = answer == b"n"

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # the fork that reads is of the same group
            child.kill()
            self._close_pipes(child)
            child.wait()

    def _close_pipes(self, child: subprocess.Popen[bytes]) -> None:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._status)

    def _forget(self) -> None:
        """After a fork: the child belongs to the parent, and the lock may be held by a thread that is not here."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is not None:
            self._close_pipes(child)
            child.returncode = 0  # not ours to wait for


class _Conversation:
    """One job given to one child, and what it answers."""

    def __init__(self, job: dict[str, Any], outcome: Outcome, deadline: float) -> None:
        self.current = job["after"] or job["name"]  # what the reader is at
        self._job = job
        self._outcome = outcome
        self._deadline = deadline
        self._wait_until = time.monotonic() + WALL * job["seconds"] + _GRACE_SECONDS
        self._received = bytearray()
        self._ended = False

    def hold(self, child: subprocess.Popen[bytes], status: int, data: bytes) -> None:
        """Sends the job and the file, and takes in every frame. Raises _EndedError if that cannot be finished."""
        assert child.stdin is not None
        assert child.stdout is not None
        source, sink = child.stdout.fileno(), child.stdin.fileno()
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)
        poll = select.poll()
        for descriptor, events in ((source, select.POLLIN), (status, select.POLLIN), (sink, select.POLLOUT)):
            poll.register(descriptor, events)
        job = json.dumps(self._job).encode()
        waiting = [memoryview(HEADER.pack(len(job), len(data)) + job), memoryview(data)]
        while True:
            left = min(self._wait_until, self._deadline) - time.monotonic()
            if left <= 0:
                raise _EndedError(self._too_long())
            ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
            if source in ready:
                self._take(os.read(source, _BLOCK))
            elif status in ready:  # the fork is gone, so nothing follows what is in its pipe now
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._take(os.read(source, _BLOCK))
                self._check(os.read(status, 4))
                return
            if sink in ready and not _feed(sink, waiting):
                poll.unregister(sink)

    def blame(self, reason: str) -> None:
        """Names the file or member that ended the process, unless it was named already."""
        error = FileFormatError(f"{self.current} {reason}", remedy="Convert it, or leave it out.")
        self._outcome.skip(self.current, error)

    def _take(self, block: bytes) -> None:
        """Adds what arrived, and acts on every frame that is now whole."""
        if not block:
            raise _EndedError("ended the process that read it")
        self._received += block
        prefix_bytes = wire.PREFIX.size
        while len(self._received) >= prefix_bytes:
            prefix = bytes(self._received[:prefix_bytes])
            try:
                body_bytes, text_bytes = wire.sizes(prefix)
                middle = prefix_bytes + body_bytes
                end = middle + text_bytes
                if len(self._received) < end:
                    return
                event = wire.unpack(
                    prefix, bytes(self._received[prefix_bytes:middle]), bytes(self._received[middle:end])
                )
            except ValueError as error:
                raise _EndedError("made its reader answer nonsense") from error
            del self._received[:end]
            self._act(event, text_bytes)

    def _act(self, event: wire.Event, text_bytes: int) -> None:
        name = self._job["name"]
        told = (
            event.document.path if isinstance(event, Reading) else "" if isinstance(event, wire.Ended) else event.name
        )
        if self._ended or not (told in ("", name) or (self._job["archive"] and told.startswith(f"{name}/"))):
            raise _EndedError("made its reader answer nonsense")
        self._wait_until = time.monotonic() + WALL * self._job["seconds"] + _GRACE_SECONDS
        if isinstance(event, wire.Ended):
            self._ended = True
        elif isinstance(event, wire.Begun):
            self.current = event.name
        elif isinstance(event, wire.Skipped):
            self._outcome.skip(event.name, event.error)
        else:
            self._count(text_bytes)
            self._outcome.readings.append(event)

    def _count(self, text_bytes: int) -> None:
        self._job["text_bytes"] = self._job.get("text_bytes", 0) + text_bytes
        if self._job["text_bytes"] > MAX_TOTAL_BYTES:
            self._deadline = 0.0
            raise _EndedError(
                f"and what follows was left out: more than {MAX_TOTAL_BYTES >> 20} MiB of text in one archive"
            )

    def _check(self, status: bytes) -> None:
        """The fork is gone; was it done?"""
        code = struct.unpack("<i", status)[0] if len(status) == 4 else 1
        if self._ended and code == 0 and not self._received:
            return
        cause = _STOPPED_BY.get(-code, "ended the process that read it (signal {code})" if code < 0 else "")
        raise _EndedError(cause.format(seconds=self._job["seconds"], code=-code) or "ended the process that read it")

    def _too_long(self) -> str:
        if self._deadline <= self._wait_until and self._job["archive"]:
            return f"and what follows was left out: the archive takes longer than {WALL * self._job['total_seconds']} s"
        return f"takes longer than {WALL * self._job['seconds']} s"


@functools.cache
def shared_process() -> ReaderProcess:
    """The one reading process of this process."""
    return ReaderProcess()


def _feed(sink: int, waiting: list[memoryview]) -> bool:
    """Writes what the pipe takes; whether more is waiting."""
    while waiting and not waiting[0]:
        waiting.pop(0)
    if waiting:
        with contextlib.suppress(BrokenPipeError):  # the end will show in the other pipes
            waiting[0] = waiting[0][os.write(sink, waiting[0][:_BLOCK]) :]
    return any(waiting)


def _import_folders() -> list[str]:
    """Where this package and the libraries of its readers lie; found without importing them."""
    folders = [str(Path(__file__).parents[3])]
    for name in ("markdown_it", "mdurl", "pypdfium2", "pypdfium2_raw"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))
