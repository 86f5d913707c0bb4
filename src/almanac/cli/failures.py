"""What went wrong, as a cause, a remedy and an exit code.

=====  ==================================================================================
code   meaning
=====  ==================================================================================
0      done
1      it could not be done (training, memory, disk, a lock, a missing package, a fault of ours), or a check did not hold
2      the input or the command line is at fault
3      bytes are not those recorded, or two forms of a model disagree
130    interrupted (Ctrl-C)
141    whoever read the output went away
=====  ==================================================================================
"""

from __future__ import annotations

import errno
import sys
import traceback
from dataclasses import dataclass

from cyclopts import CycloptsError

from almanac.cli.printing import emit, visible
from almanac.cli.typed import unmarked
from almanac.core.errors import (
    AlmanacError,
    FileFormatError,
    IntegrityError,
    NotFoundError,
    ParityError,
    PreflightError,
    RequestError,
    SelectionError,
    ShapeError,
    TemplateError,
    UnsupportedError,
)

OTHER, INPUT, INTEGRITY, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141

_INPUT = (
    FileFormatError, NotFoundError, PreflightError, RequestError, SelectionError, ShapeError, TemplateError,
    UnsupportedError,
)  # fmt: skip
_INTEGRITY = (IntegrityError, ParityError)
_REMEDIES = {
    errno.ENOSPC: "Free some space, then run the same command again.",
    errno.EDQUOT: "Free some space, then run the same command again.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EACCES: "Check the permissions of that place, or choose another.",
    errno.EPERM: "Check the permissions of that place, or choose another.",
}


@dataclass(frozen=True)
class Failure:
    """``kind`` is the error's class, for machines; an interruption has no remedy."""

    kind: str
    cause: str
    remedy: str
    code: int


def failure_of(error: BaseException, *, verb: str | None = None) -> Failure:
    """The failure that an exception stands for; ``verb`` is the one whose command line did not parse, if known.

    Notes added to a KeyboardInterrupt say what an interruption of that verb leaves behind.
    """
    kind = type(error).__name__
    if isinstance(error, AlmanacError):
        code = INTEGRITY if isinstance(error, _INTEGRITY) else INPUT if isinstance(error, _INPUT) else OTHER
        return Failure(kind, error.cause, error.remedy, code)
    if isinstance(error, CycloptsError):
        return _usage(error, verb)
    if isinstance(error, KeyboardInterrupt):
        notes = " ".join(error.__notes__) if "__notes__" in vars(error) else "Nothing was changed."
        return Failure(kind, f"interrupted: {notes}", "", INTERRUPTED)
    if isinstance(error, MemoryError):
        return Failure(kind, "There is not enough memory", "Close other programs, or use a smaller model.", OTHER)
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {error.filename}" if error.filename else ""
        remedy = _REMEDIES.get(error.errno, "Check that place, then run the same command again.")
        return Failure(kind, f"{error.strerror}{place}", remedy, OTHER)
    return Failure(
        kind,
        f"This is a fault of almanac ({kind}: {error})",
        "Run it again with --debug and report what it shows.",
        OTHER,
    )


def show(failure: Failure, *, in_json: bool = False, error: BaseException | None = None) -> None:
    """Tells a failure on stderr, in two lines or as one JSON object; with ``error`` after its traceback."""
    if error is not None:
        traceback.print_exception(error, file=sys.stderr)
    if in_json:
        emit(
            {"error": failure.cause, "remedy": failure.remedy, "kind": failure.kind, "exit_code": failure.code},
            stream=sys.stderr,
        )
    elif failure.code == INTERRUPTED:
        print(f"\n{failure.cause}", file=sys.stderr, flush=True)
    else:
        print(f"error: {_line(failure.cause)}", file=sys.stderr)
        print(f"remedy: {_line(failure.remedy)}", file=sys.stderr, flush=True)


def _usage(error: CycloptsError, verb: str | None) -> Failure:
    cause = unmarked(str(error)).rstrip(".")
    page = f"almanac {verb} --help" if verb else "almanac --help"
    remedy = f"See `{page}`; a text that begins with a hyphen goes after --."
    return Failure("UsageError", cause, remedy, INPUT)


def _line(text: str) -> str:
    return visible(" ".join(text.split()), sys.stderr)
