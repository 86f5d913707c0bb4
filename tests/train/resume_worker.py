"""Runs small trainings in forked children, one a line of input: ``FOLDER STEPS SAVE_EVERY SAVING KILL_AT DELAY``.

Answers with the child's exit status when it is gone. With KILL_AT > 0 the child kills itself before its KILL_AT-th
fsync or rename, the points between which a crash can fall; with DELAY > 0 it is killed after so many seconds. Forking
saves importing torch every time. SAVING is ``background`` where a thread writes the checkpoints.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402
from train import small_run  # noqa: E402


def arm(kill_at: int) -> None:
    """Makes the ``kill_at``-th call of fsync or rename the last thing this process attempts."""
    calls = 0

    def watched(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    os.fsync, os.rename, os.replace = watched(os.fsync), watched(os.rename), watched(os.replace)


def child(folder: str, steps: str, save_every: str, saving: str, kill_at: str) -> int:
    arm(int(kill_at))
    is_background = saving == "background"
    outcome = small_run.run(Path(folder), steps=int(steps), save_every=int(save_every), background_saves=is_background)
    return 0 if outcome.finished else 3


def main() -> None:
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    small_run.run(steps=1)  # children find everything imported
    for line in sys.stdin:
        *job, delay = line.split()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(*job)
            finally:
                os._exit(status)
        if float(delay) > 0:
            time.sleep(float(delay))
            os.kill(pid, signal.SIGKILL)  # a zombie at worst, since it is waited for only below
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
