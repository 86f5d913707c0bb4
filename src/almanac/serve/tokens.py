"""Bearer tokens: made for the user, kept in a file that only the user can read, compared in constant time.

A line of the file is ``token`` or ``name token``; ``#`` begins a comment. The file is read again when it changes, so that
a token is withdrawn by deleting its line.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from almanac.core.errors import NotFoundError, RequestError
from almanac.files.store import write_atomic

TOKEN_BYTES = 32  # 256 bits
_MIN_CHARACTERS = 43  # of 256 bits in base64
_MAX_FILE_BYTES = 1 << 20
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


def make_token_file(path: Path) -> str:
    """Writes a file with one new token, mode 0600, and returns the token. Raises NotFoundError without its folder."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    write_atomic(path, f"owner {token}\n".encode(), mode=0o600)
    return token


class TokenFile:
    """The tokens that are admitted now.

    Raises:
        NotFoundError: no such file. RequestError: others can read it, or a token is short or no token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._stamp(path.stat()) if path.is_file() else None
        self._owners = self._read()

    def owner_of(self, presented: str) -> str | None:
        """The name of whoever owns a token, or None. Takes equally long for every wrong one."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, owner in self._now():
            if hmac.compare_digest(digest, known):
                found = owner
        return found

    def _now(self) -> list[tuple[bytes, str]]:
        """Read again if the file changed; a file that went away, or that others can read, admits nobody."""
        try:
            stamp = self._stamp(self.path.stat())
            if stamp != self._seen:
                self._seen = stamp
                self._owners = self._read()
        except (OSError, NotFoundError, RequestError):
            self._seen, self._owners = None, []
        return self._owners

    @staticmethod
    def _stamp(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode)

    def _read(self) -> list[tuple[bytes, str]]:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid():
                    raise RequestError(
                        f"Others can read the tokens in {self.path}, or own the file",
                        remedy=f"Run `chmod 600 {self.path}`, and make new tokens if others may have seen these.",
                    )
                text = file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileNotFoundError as error:
            raise NotFoundError(f"There is no token file {self.path}", remedy="Name a path; it is made.") from error
        owners = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) > 2 or len(words[-1]) < _MIN_CHARACTERS or not _TOKEN.fullmatch(words[-1]):
                raise RequestError(
                    f"Line {number} of {self.path} is no `name token` with 256 bits",
                    remedy="Delete the file; a new one is made. Or take 32 random bytes in base64.",
                )
            digest = hashlib.sha256(words[-1].encode()).digest()
            owners.append((digest, words[0] if len(words) == 2 else digest.hex()[:12]))
        if not owners:
            raise RequestError(f"{self.path} holds no token", remedy="Delete it; a new one is made.")
        return owners
