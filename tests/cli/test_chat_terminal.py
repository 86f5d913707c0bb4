"""``almanac chat`` on a terminal: Ctrl-C cancels the answer and keeps the conversation, Ctrl-D ends."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A child on a pseudo-terminal of its own, read until something appears."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _START, *words]
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """Reads until ``pattern`` matches what came since the last call; returns all of that."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(pattern, self.seen):
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            try:
                chunk = os.read(self.master, 65536)
            except OSError:  # Linux: the child closed its end
                chunk = b""
            assert chunk, f"ended before {pattern!r}: {self.seen!r}"
            self.seen += chunk.decode(errors="replace")
        found, self.seen = self.seen, ""
        return found

    def send(self, text: bytes) -> None:
        os.write(self.master, text)

    def press_at_prompt(self, key: bytes, pattern: str) -> str:
        """Presses ``key`` once a second until ``pattern`` appears, as a person would.

        Python's line editor notices a signal only while it waits in select(): one that arrives between the prompt's
        last character and that call is answered at the next key.
        """
        for _ in range(PATIENCE_SECONDS):
            self.send(key)
            if select.select([self.master], [], [], 1.0)[0]:
                break
        return self.until(pattern)

    def close(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        os.close(self.master)


_START = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal to this process
from almanac.cli.main import main
main()
"""


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    found = Terminal("chat", str(model), "--max-tokens", "4000")
    try:
        yield found
    finally:
        found.close()


def test_ctrl_c_cancels_the_answer_and_keeps_the_conversation(terminal: Terminal) -> None:
    terminal.until(r"Ctrl-D ends\r\n(.*\n)*.*> $")
    terminal.send(b"Hello.\n")
    terminal.until(r"Hello\.\r\n[^\r\n]{20}")  # the answer has begun
    terminal.send(CTRL_C)
    rest = terminal.until(r"\(cancelled\)\r\n.*> $")
    assert len(rest) < 20_000
    terminal.press_at_prompt(CTRL_C, r"/quit or Ctrl-D ends\)\r\n.*> $")  # only the line is dropped
    terminal.send(b"/help\n")
    assert "/reset" in terminal.until(r"/help .*\r\n.*> $")
    terminal.send(b"Hello again.\n")
    terminal.until(r"again\.\r\n[^\r\n]{20}")
    terminal.send(CTRL_C)
    terminal.until(r"\(cancelled\)\r\n.*> $")
    terminal.send(CTRL_D)
    assert terminal.child.wait(PATIENCE_SECONDS) == 0
