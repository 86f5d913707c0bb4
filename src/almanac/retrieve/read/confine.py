"""Closing the doors of a reading process, as far as the kernel and the interpreter let us; none opens again.

    network     its own empty network namespace (the loopback in it is down), where the kernel grants one
    files       Landlock with no rule: no path can be opened, whatever the rights of the user
    limits      address space, processor and wall time, no bytes into files, no further descriptors, no core dump
    audit hook  what is left of Python's own ways out (open, socket, subprocess, ...) ends the process, with its name

The first two hold for native code too, and are missing on some systems (namespaces may be switched off, Landlock came
with Linux 5.13); the other two always hold. The system calls are made through ctypes, for Python has no names for them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

_NEW_USER, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000  # flags of unshare(2)
_SET_PARENT_DEATH_SIGNAL, _SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 1, 4, 38  # options of prctl(2)
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # Landlock's system calls, alike on all architectures
_RULESET_VERSION = 1
_FILE_RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1}  # by Landlock version, all that it knows
_ALL_FILE_RIGHTS = 2**16 - 1  # from version 5
_NETWORK_RIGHTS = 0b11  # from version 4: bind and connect
_SCOPES = 0b11  # from version 6: abstract sockets, signals to others

# What the readers need at work. ctypes is how PDFium is called; the calls themselves raise no event.
_ALLOWED_EVENTS = frozenset(
    """builtins.id code.__new__ compile exec object.__getattr__ sys._getframe sys._getframemodulename
    ctypes.addressof ctypes.cdata ctypes.cdata/buffer ctypes.string_at ctypes.wstring_at ctypes.PyObj_FromPtr
    ctypes.get_errno ctypes.set_errno ctypes.create_string_buffer ctypes.create_unicode_buffer
    array.__new__ object.__setattr__ object.__delattr__ sys.unraisablehook""".split()
)


def leave_network() -> bool:
    """Moves this process, and all it will start, into an empty network; whether the kernel granted it."""
    library = ctypes.CDLL(None, use_errno=True)
    return library.unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC) == 0


def no_new_privileges() -> None:
    """No program started from here can gain rights; needed for Landlock, harmless everywhere."""
    ctypes.CDLL(None, use_errno=True).prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def close_files() -> bool:
    """Denies every path to this process (Landlock); whether the kernel knows how."""
    library = ctypes.CDLL(None, use_errno=True)
    version = library.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    if version < 1:
        return False
    rights = [_FILE_RIGHTS.get(version, _ALL_FILE_RIGHTS)]
    if version >= 4:
        rights.append(_NETWORK_RIGHTS)
    if version >= 6:
        rights.append(_SCOPES)
    wanted = struct.pack(f"={len(rights)}Q", *rights)
    ruleset = library.syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), 0)
    if ruleset < 0:
        return False
    closed = library.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return closed


def follow_parent() -> None:
    """Dies with the process that started this one, and is not to be looked into by its equals."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    library.prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def address_space() -> int:
    """Bytes of address space that this process uses."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(descriptor, 64).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def limit(*, address_space_bytes: int, cpu_seconds: int, wall_seconds: float) -> None:
    """The kernel ends this process, or refuses it, beyond these."""
    for kind, value in (
        (resource.RLIMIT_AS, address_space_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),
    ):
        resource.setrlimit(kind, (value, value))
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def watch(report: Callable[[str], None]) -> None:
    """From here on, an import is refused, and any other act beyond reading text is told to ``report``, which ends it."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import":
            raise ImportError(f"{arguments[0]} was not imported before the file was opened")
        if event not in _ALLOWED_EVENTS:
            report(event)
            os._exit(1)

    sys.addaudithook(refuse)
