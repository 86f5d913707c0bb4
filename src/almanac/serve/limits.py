"""Every limit of the server, in one place; each is held by a test at one below, at, and one above."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.value import Value

# Of the API: part of its schema, alike on every server.
MAX_CHOICES = 8  # sequences of one request: n, or prompts times n
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_MESSAGES = 512
MAX_PARTS = 64  # text parts of one message
MAX_INPUTS = 128  # texts of one embeddings request
MAX_QUESTION_CHARACTERS = 20_000
MAX_NAME_CHARACTERS = 256  # of a model, a user, a role
MIN_TOP_P = 1e-6  # float32 makes nothing of what is much smaller, and then no token would remain
PENALTIES = (0.01, 100.0)  # beyond, penalised logits leave the range of float32
DEFAULT_MAX_TOKENS = 512  # where a request names no limit of its own


@dataclass(frozen=True, kw_only=True)
class Limits(Value):
    """What one server allows.

    Times are seconds, sizes bytes. ``first_byte_seconds`` is the time a request may wait for its first token, its place
    in the queue included; past it the client is told when to come back.
    """

    header_bytes: int = 32 << 10  # request line and headers together
    body_bytes: int = 10 << 20
    upload_bytes: int = 512 << 20
    json_depth: int = 64
    json_values: int = 1 << 18
    report_bytes: int = 64 << 20
    rows: int = 16  # sequences decoded together
    queue: int = 64  # sequences that wait behind them
    concurrency: int = 8  # requests that compute, per token
    uploads: int = 2  # at once, on the whole server
    connections: int = 512
    runs: int = 32  # training runs whose curves are held
    run_read_bytes: int = 4 << 20  # of a run's log that one request reads
    tickets: int = 64  # outstanding, per token
    ticket_seconds: float = 30.0
    header_seconds: float = 10.0
    body_idle_seconds: float = 30.0
    body_seconds: float = 60.0
    first_byte_seconds: float = 30.0
    idle_write_seconds: float = 30.0
    total_seconds: float = 600.0
    retry_after_seconds: int = 2
