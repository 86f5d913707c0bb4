"""The parent's side of the template process: starting it, asking it, ending it when a limit is breached.

One child process per process, started at the first rendering (about 0.1 s) and kept. It gets no environment, no
files, no network, and cannot write but to its pipe. Whatever goes wrong in it ends as a `TemplateError`, and the next
rendering finds a new child. Messages are JSON lines of bounded size; nothing is ever unpickled.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from almanac.core.errors import RequestError, TemplateError, UnsupportedError

MEMORY_BYTES = 512 * 1024 * 1024  # above what the child uses when it is ready
WORN_BYTES = 64 * 1024 * 1024  # growth after which the memory limit would no longer be fair to the next template
CPU_SECONDS = 1.0
WALL_SECONDS = 1.0
OUTPUT_BYTES = 1024 * 1024
REQUEST_BYTES = 16 * 1024 * 1024 - 1
_START_SECONDS = 20.0
_REPLY_BYTES = 6 * OUTPUT_BYTES + 16 * 1024  # JSON writes one byte of text as at most six ("\u0000")
_CHUNK_BYTES = 64 * 1024

_TRUST = "Use a template from a publisher you trust, or give your own."
_KINDS = {  # what the child reports -> cause and remedy
    "memory": (f"The chat template needs more than {MEMORY_BYTES >> 20} MiB of memory", _TRUST),
    "output": (f"The chat template writes more than {OUTPUT_BYTES >> 20} MiB", "Send fewer or shorter messages."),
    "recursion": ("The chat template nests or recurses too deeply", _TRUST),
    "unsafe": ("The chat template tries to leave its sandbox", _TRUST),
    "forbidden": ("The chat template tried to leave its sandbox and was stopped", _TRUST),
    "syntax": ("The chat template is not valid Jinja", "Correct it at that line."),
    "template": ("The chat template failed", "Check the roles, the order and the fields of the messages."),
}


class _EndedError(Exception):
    """The child ended, or must be ended, without an answer; the text says why."""


class TemplateProcess:
    """A confined child that renders templates, one at a time. Safe to use from several threads and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def render(self, source: str, variables: Mapping[str, Any], *, now: str, mark: str = "") -> str:
        """The text that `source` makes of `variables`.

        Args:
            source: a Jinja template.
            variables: plain JSON data.
            now: ISO date and time that `strftime_now` shows.
            mark: text that is put around each `{% generation %}` block.

        Raises:
            TemplateError: the template is broken, refuses the messages, or breached a limit (which is named).
            RequestError: the variables are not JSON, or too large.
            UnsupportedError: this system cannot confine a process.
        """
        try:
            request = json.dumps({"source": source, "variables": variables, "now": now, "mark": mark})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"The messages or tools are not plain JSON data ({error})",
                remedy="Use texts, numbers, lists and objects only.",
            ) from error
        payload = request.encode("ascii") + b"\n"
        if len(payload) > REQUEST_BYTES:
            raise RequestError(
                f"The messages hold {len(payload):,} bytes, more than the {REQUEST_BYTES:,} allowed",
                remedy="Send fewer or shorter messages.",
            )
        with self._lock:
            return _text(self._ask(payload))

    def close(self) -> None:
        """End the child, if there is one. The next rendering starts a new one."""
        with self._lock:
            self._stop()

    def _ask(self, payload: bytes) -> dict[str, Any]:
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        try:
            line = _exchange(child, payload, WALL_SECONDS)
            reply = json.loads(line)
        except _EndedError as error:
            raise TemplateError(self._cause(str(error)), remedy=_TRUST) from error
        except (ValueError, RecursionError) as error:
            self._stop()
            raise TemplateError("The template process answered nonsense and was ended", remedy=_TRUST) from error
        except BaseException:  # an interrupt: the answer would arrive in the next conversation
            self._stop()
            raise
        if not isinstance(reply, dict) or reply.get("worn") or reply.get("error") in ("memory", "forbidden"):
            self._stop()
        return reply if isinstance(reply, dict) else {}

    def _cause(self, reason: str) -> str:
        """End the child; say why in the user's terms."""
        child = self._child
        code = child.poll() if child is not None else None
        self._stop()
        if code == -signal.SIGPROF:
            return f"The chat template needs more than {CPU_SECONDS:g} s of processor time"
        return reason if code is None else f"The chat template ended its process (exit code {code})"

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        script = Path(__file__).with_name("template_child.py")
        limits = (MEMORY_BYTES, WORN_BYTES, OUTPUT_BYTES, CPU_SECONDS)
        command = [sys.executable, "-I", "-S", str(script), *map(str, limits), *_library_folders()]
        self._child = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )
        try:
            _exchange(self._child, b"", _START_SECONDS)
        except _EndedError as error:
            self._stop()
            raise UnsupportedError(
                "The process for chat templates did not start; it needs Linux, Jinja and limits on memory and time",
                remedy="Run on Linux, or build prompts without a chat template.",
            ) from error
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            _close_pipes(child)
            child.wait()

    def _forget(self) -> None:
        """After a fork: the child belongs to the parent, and the lock may be held by a thread that is not here."""
        self._lock = threading.Lock()
        child, self._child = self._child, None
        if child is not None:
            _close_pipes(child)
            child.returncode = 0  # not ours to wait for


@functools.cache
def shared_process() -> TemplateProcess:
    """The one template process of this process."""
    return TemplateProcess()


def _library_folders() -> list[str]:
    """Where Jinja and what it needs lie; found without importing them."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UnsupportedError(f"The library {name} is not installed", remedy=f"Install {name}.")
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _exchange(child: subprocess.Popen[bytes], payload: bytes, seconds: float) -> bytes:
    """Write `payload`, read one line; both within `seconds` in all. Raises _EndedError if that fails."""
    assert child.stdin is not None
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    source, sink = child.stdout.fileno(), child.stdin.fileno()
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if payload:
        poll.register(sink, select.POLLOUT)
    remaining, answer = memoryview(payload), bytearray()
    while not answer.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _EndedError(f"The chat template takes longer than {seconds:g} s")
        for descriptor, _ in poll.poll(left * 1000):
            if descriptor == sink:
                try:
                    remaining = remaining[os.write(sink, remaining[:_CHUNK_BYTES]) :]
                except BrokenPipeError as error:
                    _await_end(child)
                    raise _EndedError("The template process ended") from error
                if not remaining:
                    poll.unregister(sink)
            elif chunk := os.read(source, _CHUNK_BYTES):
                answer += chunk
                if len(answer) > _REPLY_BYTES:
                    raise _EndedError("The template process wrote more than it may")
            else:
                _await_end(child)
                raise _EndedError("The template process ended")
    return bytes(answer)


def _await_end(child: subprocess.Popen[bytes]) -> None:
    """The pipe is closed, so the process is about to be gone: wait for its exit code, but not for ever."""
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        child.kill()


def _text(reply: Mapping[str, Any]) -> str:
    """The rendered text of a reply, or the error it reports."""
    text = reply.get("text")
    if isinstance(text, str):
        return text
    cause, remedy = _KINDS.get(str(reply.get("error")), _KINDS["template"])
    raise TemplateError(f"{cause}: {str(reply.get('message'))[:500]}", remedy=remedy)
