"""How a server is to run, and which ways are refused before it listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.serve.limits import Limits

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Value):
    """Where to listen and whom to admit.

    - ``token_file``: path of the file with the tokens that are admitted; empty admits loopback without one
    - ``hosts``: further names that a Host header may carry (the public name behind a proxy, a name in the local network)
    - ``certificate``, ``key``: PEM files for TLS
    - ``behind_proxy``: a proxy in front of this server speaks TLS
    - ``stream_block_bytes``: every piece of a stream is padded to a multiple of this, so that its size tells less about
      the text (Whisper Leak, McDonald 2025, arXiv:2511.03675); 0 for none
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str = ""
    hosts: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    behind_proxy: bool = False
    stream_block_bytes: int = 0
    limits: Limits = Limits()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A wildcard is not loopback, and neither is a name."""
        return is_loopback(self.host)

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names that a Host header may carry, in lower case, without port."""
        own = LOOPBACK_NAMES if self.is_loopback else () if _is_wildcard(self.host) else (_bracketed(self.host),)
        return frozenset(name.lower() for name in (*own, *self.hosts))

    def check(self) -> None:
        """Raises RequestError for a combination that would be unsafe, or cannot work."""
        if not 0 <= self.port <= 65535:
            raise RequestError(f"The port is {self.port}", remedy="Give one from 0 (any free one) to 65535.")
        if not 0 <= self.stream_block_bytes <= 65536:
            raise RequestError(
                f"Blocks of {self.stream_block_bytes} bytes", remedy="Give 0 for none, or at most 65536."
            )
        if bool(self.certificate) != bool(self.key):
            raise RequestError("TLS needs a certificate and its key", remedy="Give both --certificate and --key.")
        if self.is_loopback:
            return
        if not self.token_file:
            raise RequestError(
                f"{self.host} can be reached from other machines, and there is no token",
                remedy="Give --token-file FILE (made if it is not there), or listen on 127.0.0.1.",
            )
        if not (self.certificate or self.behind_proxy):
            raise RequestError(
                f"{self.host} can be reached from other machines, and the token would cross the network in the clear",
                remedy="Give --certificate and --key, or --behind-proxy if a proxy in front of it speaks TLS.",
            )
        if not self.allowed_hosts:
            raise RequestError(
                f"{self.host} is every address, so no name is known under which it may be called",
                remedy="Give the names people will use: --allow-host NAME.",
            )


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone; ``localhost`` is, any other name is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return not host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
