"""The one error tree. Every error a user can cause says what is wrong and what to do about it.

AlmanacError
├── FileFormatError        a file is malformed, truncated, lying about its sizes, or of a refused kind
│   └── UnsafeFileError    the format can carry code (pickle and kin) or a path leaves its folder
├── IntegrityError         bytes do not match their recorded digest
├── UnsupportedError       a known thing that is not (or cannot be) done here, with the reason
│   └── ArchitectureError  no family of ours reads this model
├── SelectionError         a pattern names no site
├── ShapeError             tensors do not fit where they were put
├── TemplateError          a chat template is hostile, broken or over its limits
├── RequestError           a generation request cannot be honoured (empty prompt, unknown option, too long)
├── PreflightError         a training run could not learn
├── TrainingError          a training run cannot go on (no finite step, a stop, a folder of another run)
├── ParityError            two forms of one model disagree beyond the stated bound
├── NotFoundError          a name, alias, file or document does not exist
├── LockedError            another process is writing here
└── MissingExtraError      an optional dependency is not installed
"""

from __future__ import annotations


class AlmanacError(Exception):
    """A failure with a cause and a remedy.

    Args:
        cause: one sentence, what is wrong, naming the file, field or value.
        remedy: one sentence, what the user can do now.
    """

    def __init__(self, cause: str, *, remedy: str) -> None:
        super().__init__(f"{cause.rstrip('.')}. {remedy}")
        self.cause = cause
        self.remedy = remedy


class FileFormatError(AlmanacError):
    """A file is malformed, truncated, or declares sizes that are not its own."""


class UnsafeFileError(FileFormatError):
    """A file could run code when loaded, or names a path outside its folder."""


class IntegrityError(AlmanacError):
    """Bytes do not match the digest recorded for them."""


class UnsupportedError(AlmanacError):
    """A combination that is known and not offered, with the reason."""


class ArchitectureError(UnsupportedError):
    """No model family here reads this architecture."""


class SelectionError(AlmanacError):
    """A site pattern selects nothing."""


class ShapeError(AlmanacError):
    """A tensor does not fit the place it was meant for."""


class TemplateError(AlmanacError):
    """A chat template is broken, hostile, or exceeded its limits."""


class RequestError(AlmanacError):
    """A generation request that cannot be honoured as asked."""


class PreflightError(AlmanacError):
    """A training run that could not learn anything was stopped before it started."""


class TrainingError(AlmanacError):
    """A training run cannot go on as it stands; what it had saved is intact."""


class ParityError(AlmanacError):
    """Two forms of the same model disagree by more than the stated bound."""


class NotFoundError(AlmanacError):
    """A named thing does not exist."""


class LockedError(AlmanacError):
    """Another process holds the writer's lock."""


class MissingExtraError(AlmanacError):
    """An optional dependency is needed and absent."""
