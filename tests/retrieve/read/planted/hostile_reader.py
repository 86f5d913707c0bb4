"""A reader in the hands of the file that it reads: it does what the file's first word says.

Imported only by the reading process of `test_process`, from its own folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from almanac.retrieve.read.document import Outline, Reading

LIBRARY = ctypes.CDLL(None, use_errno=True)
CONNECT, SOCKET, OPEN, SLEEP, KILL = (getattr(LIBRARY, name) for name in ("connect", "socket", "open", "sleep", "kill"))
KEPT: list[bytes] = []


def read(data: bytes, path: str) -> Reading:
    action, _, argument = data.decode().partition(" ")
    told = ACTIONS[action](argument)
    outline = Outline()
    outline.block(str(told))
    return outline.build(path, hashlib.sha256(data).hexdigest())


def _frames(argument: str) -> str:
    """Writes what is no frame, again and again."""
    for _ in range(int(argument or 1)):
        os.write(1, struct.pack("<cII", b"D", 10, 10) + b"x" * 20)
    return "wrote"


def _flood(argument: str) -> str:
    block = struct.pack("<cII", b"B", 20, 0) + b'{"name": "a.hostile"}'[:20]
    while True:
        os.write(1, block * 100)


def _forged(argument: str) -> str:
    """A well-formed frame about another file."""
    body = b'{"name":"other.md","kind":"FileFormatError","cause":"bad","remedy":"none"}'
    os.write(1, struct.pack("<cII", b"S", len(body), 0) + body)
    return "forged"


def _native_connect(argument: str) -> str:
    """A connection that Python does not see; the error number of each step."""
    descriptor = SOCKET(2, 1, 0)
    if descriptor < 0:
        return f"no socket {ctypes.get_errno()}"
    address = struct.pack("=HH", 2, socket.htons(int(argument))) + bytes([127, 0, 0, 1]) + bytes(8)
    failed = CONNECT(descriptor, address, len(address))
    return f"no connection {ctypes.get_errno()}" if failed else "CONNECTED"


def _native_open(argument: str) -> str:
    opened = OPEN(argument.encode(), 0)
    return "OPENED" if opened >= 0 else f"not opened {ctypes.get_errno()}"


def _native_write(argument: str) -> str:
    opened = OPEN(argument.encode(), os.O_CREAT | os.O_WRONLY, 0o600)
    return "OPENED" if opened >= 0 else f"not opened {ctypes.get_errno()}"


def _spin(argument: str) -> str:
    while True:
        hashlib.sha256(b"x" * 10_000).digest()


def _ignore(argument: str) -> str:
    """Ignores every signal that can be ignored, then spins."""
    for number in range(1, 32):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    return _spin(argument)


def _grow(argument: str) -> str:
    while True:
        KEPT.append(bytes(2**20))


def _import(argument: str) -> str:
    import sqlite3

    return sqlite3.sqlite_version


def _raise(kind: type[BaseException]) -> str:
    raise kind("on purpose")


ACTIONS = {
    "say": lambda argument: argument,
    "environment": lambda argument: sorted(os.environ),
    "kept": lambda argument: len(KEPT),
    "keep": lambda argument: KEPT.append(b"x") or "kept",
    "many": lambda argument: "word " * int(argument),
    "open": lambda argument: open(argument).read(),  # noqa: PTH123, SIM115
    "write": lambda argument: open(argument, "w").write("x"),  # noqa: PTH123, SIM115
    "descriptor": lambda argument: os.open(argument, os.O_RDONLY),
    "listdir": os.listdir,
    "remove": os.remove,
    "rename": lambda argument: os.rename(argument, argument + "2"),  # noqa: PTH104
    "mkdir": os.mkdir,
    "chmod": lambda argument: os.chmod(argument, 0),  # noqa: PTH101
    "socket": lambda argument: socket.socket(),
    "resolve": lambda argument: socket.getaddrinfo("localhost", 80),
    "subprocess": lambda argument: subprocess.run(["true"], check=False),
    "system": os.system,
    "fork": lambda argument: os.fork(),
    "exec": lambda argument: os.execv("/bin/true", ["true"]),
    "spawn": lambda argument: os.posix_spawn("/bin/true", ["true"], {}),
    "kill": lambda argument: os.kill(os.getppid(), 9),
    "killpg": lambda argument: os.killpg(0, 9),
    "import": _import,
    "library": lambda argument: ctypes.CDLL("libm.so.6"),
    "thread": lambda argument: threading.Thread(target=print).start(),
    "truncate": lambda argument: os.truncate(argument, 0),
    "native_connect": _native_connect,
    "native_open": _native_open,
    "native_write": _native_write,
    "native_kill": lambda argument: KILL(int(argument), 0),
    "native_sleep": lambda argument: SLEEP(1_000),
    "sleep": lambda argument: time.sleep(1_000),
    "spin": _spin,
    "ignore": _ignore,
    "crash": lambda argument: ctypes.string_at(8),
    "abort": lambda argument: os.abort(),
    "end": lambda argument: os._exit(0),
    "exit": lambda argument: sys.exit(0),
    "interrupt": lambda argument: _raise(KeyboardInterrupt),
    "recurse": lambda argument: _raise(RecursionError),
    "fail": lambda argument: _raise(ValueError),
    "allocate": lambda argument: bytearray(4 * 2**30),
    "grow": _grow,
    "frames": _frames,
    "flood": _flood,
    "forged": _forged,
    "closed": lambda argument: os.close(1),
}
