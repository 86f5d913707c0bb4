"""Whether Ctrl-C was pressed, even where a training run took it as a request and ended in its own way."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from almanac.core.errors import TrainingError

STOPPED = "Run the same command again; it goes on where it was."


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that saves and stops on Ctrl-C: told as an interruption, with what to do, and not as a failure."""
    with noticing_ctrl_c() as pressed:
        try:
            yield
        except (KeyboardInterrupt, TrainingError) as error:
            if isinstance(error, TrainingError) and not pressed():
                raise
            stop = KeyboardInterrupt()
            stop.add_note(STOPPED)
            raise stop from error


@contextmanager
def noticing_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT arrived within the block; handlers are left as they are.

    Outside the main thread, where no signal arrives, it always says no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        seen: set[int] = set()

        def pressed() -> bool:
            try:
                seen.update(reader.recv(4096))  # Python writes the number of every signal, whoever handles it
            except BlockingIOError:
                return signal.SIGINT in seen
            return signal.SIGINT in seen

        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield pressed
        finally:
            signal.set_wakeup_fd(before)
