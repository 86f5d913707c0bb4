"""A group of processes that runs many cases: importing torch takes longer than any of them."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

WAIT_SECONDS = 300  # on a machine that does much else
TESTS = Path(__file__).parents[2]


class Group:
    """``ranks`` processes with gloo between them on the loopback."""

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks, self.folder, self._count = ranks, folder, 0
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(ranks),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", str(Path(__file__)), str(folder)],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]

    def run(self, case: str, **given: Any) -> list[Any]:
        """What ``case`` ("module:function") returns on each rank, JSON values. Fails with the first rank's traceback."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"case": case, "given": given}) + "\n")
            process.stdin.flush()
        answers = [json.loads(self._line(process)) for process in self._processes]
        failures = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if answer["error"]]
        if failures:
            self.kill()
            raise AssertionError("\n".join(failures))
        return [answer["value"] for answer in answers]

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        import select

        ready, _, _ = select.select([process.stdout], [], [], WAIT_SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise AssertionError(f"a rank ended or hung (exit code {process.poll()})")
        return line

    def kill(self) -> None:
        """Ends every process."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


@contextmanager
def group_of(ranks: int) -> Iterator[Group]:
    """A group that is gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        group = Group(ranks, Path(folder))
        try:
            yield group
        finally:
            group.kill()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve() -> None:
    """A rank: a case a line, an answer a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    dist.init_process_group("gloo")
    for line in sys.stdin:
        asked = json.loads(line)
        module, _, function = asked["case"].partition(":")
        answer: dict[str, Any] = {"value": None, "error": None}
        try:
            answer["value"] = getattr(importlib.import_module(module), function)(**asked["given"])
        except BaseException:
            answer["error"] = traceback.format_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
