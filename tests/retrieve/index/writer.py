"""A process that is meant to be killed: imports once, then forks a writer of documents for every line it is sent.

Prints the writer's process id, and one line per document once `DocumentIndex.add` has returned.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from retrieve.index.corpus import WordVectors, document

from almanac.files.store import Lock
from almanac.retrieve.index.store import DocumentIndex


def write(folder: Path, start: int) -> None:
    """Adds documents, and removes every fourth again, until killed."""
    index = DocumentIndex.open(folder, embedder=WordVectors(4))
    for number in range(start, start + 10_000):
        index.add([document(f"d{number}", f"words of {number}", "x " * (number % 50))])
        print(f"added d{number}", flush=True)
        if number % 4 == 3:
            print(f"removing d{number - 1}", flush=True)
            index.remove([f"d{number - 1}"])
            print(f"removed d{number - 1}", flush=True)


def hold(folder: Path) -> None:
    """Takes the lock and keeps it."""
    with Lock(folder):
        print("held", flush=True)
        sys.stdin.read()


def main() -> None:
    """Serves lines of the form ``write FOLDER START`` and ``hold FOLDER 0``."""
    print("ready", flush=True)
    for line in sys.stdin:
        verb, folder, start = line.split()
        child = os.fork()
        if child == 0:
            try:
                print(f"pid {os.getpid()}", flush=True)
                hold(Path(folder)) if verb == "hold" else write(Path(folder), int(start))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
