"""The gate: one check before routing and before a byte of the body is read. Deny by default.

In this order: the kind of connection (no websocket), the Host header against an allow-list (DNS rebinding), Origin and
Sec-Fetch-Site (requests that other pages make), the token, and the declared type of the body (a form or text/plain would
spare a page the browser's question). There are no cookies and no CORS headers, so a browser lends no page its rights.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from almanac.serve.errors import RefusedError, problem_of, send_problem
from almanac.serve.policies import Policy, policy_of
from almanac.serve.settings import ServeSettings, is_loopback
from almanac.serve.tickets import Tickets
from almanac.serve.tokens import TokenFile

PRINCIPAL = "almanac.principal"
NOBODY, LOOPBACK = "public", "loopback"
_IN_ADDRESS = frozenset({"token", "access_token", "api_key", "apikey", "api-key", "key", "bearer", "authorization"})
_MAX_QUERY_FIELDS = 32


class Gate:
    """ASGI middleware; sets ``scope[PRINCIPAL]`` to the name of whoever asks.

    Args:
        tokens: who is admitted; None admits every client on this machine.
        files: the names under ``/ui/`` that exist.
    """

    def __init__(
        self, app: Any, *, settings: ServeSettings, tokens: TokenFile | None, tickets: Tickets, files: frozenset[str]
    ) -> None:
        self.app = app
        self.settings = settings
        self.hosts = settings.allowed_hosts
        self.tokens = tokens
        self.tickets = tickets
        self.files = files

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "no websocket here"})
        else:
            try:
                _check_size(scope, self.settings.limits.header_bytes)
                headers = _Headers(scope["headers"])
                self._check_host(headers)
                self._check_origin(headers, scope)
                scope[PRINCIPAL] = self._principal(headers, scope)
                _check_type(headers, scope)
            except RefusedError as error:
                await send_problem(send, problem_of(error))
                return
            await self.app(scope, receive, send)

    def _check_host(self, headers: _Headers) -> None:
        host = headers.one("host") or ""
        if _name_of(host) not in self.hosts:
            raise _forbidden("The Host header names none of this server's names", "Start it with --allow-host NAME.")

    def _check_origin(self, headers: _Headers, scope: Any) -> None:
        origin, host = headers.one("origin"), headers.one("host") or ""
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise _forbidden("This request comes from a page of another place", "Use the page of this server.")
        site, mode = headers.one("sec-fetch-site"), headers.one("sec-fetch-mode")
        opened = mode == "navigate" and scope["method"] == "GET" and self._policy(scope) is Policy.PUBLIC
        if site in ("cross-site", "same-site") and not opened:
            raise _forbidden("This request comes from a page of another place", "Use the page of this server.")
        if (headers.one("upgrade") or "").lower() == "websocket":
            raise RefusedError("There is no websocket here", remedy="Use plain requests; they stream.", status=400)

    def _principal(self, headers: _Headers, scope: Any) -> str:
        policy = self._policy(scope)
        query = _query(scope)
        if any(name.lower() in _IN_ADDRESS for name, _ in query):
            raise RefusedError(
                "The address carries a token, and addresses end up in logs",
                remedy="Send the header `Authorization: Bearer TOKEN`, and make a new token.",
                status=400 if policy is Policy.PUBLIC or self.tokens is None else 401,
            )
        if policy is Policy.PUBLIC:
            return NOBODY
        if self.tokens is None:
            client = scope.get("client")
            is_forwarded = any(headers.one(name) is not None for name in ("forwarded", "x-forwarded-for"))
            if client is None or not is_loopback(client[0]) or is_forwarded:
                raise _forbidden("Without a token, only this machine is served", "Start it with --token-file FILE.")
            return LOOPBACK
        presented = headers.one("authorization")
        if presented is None and policy is Policy.TICKET:
            owner = self.tickets.redeem(dict(query).get("ticket", ""))
        else:
            scheme, _, token = (presented or "").partition(" ")
            owner = self.tokens.owner_of(token.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise RefusedError(
                "No valid token came with this request",
                remedy="Send the header `Authorization: Bearer TOKEN`; the token is in the server's token file.",
                status=401,
                code="invalid_api_key",
            )
        return owner

    def _policy(self, scope: Any) -> Policy:
        return policy_of(scope["method"], scope["path"], self.files)


class _Headers:
    """Request headers; one that must not be ambiguous may come once."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw

    def one(self, name: str) -> str | None:
        """The value, or None. Raises RefusedError if it came twice."""
        found = [value for key, value in self.raw if key.lower() == name.encode()]
        if len(found) > 1:
            raise RefusedError(f"The header {name} came {len(found)} times", remedy="Send it once.", status=400)
        return found[0].decode("latin-1") if found else None


def _check_size(scope: Any, most_bytes: int) -> None:
    """The protocol bounds headers that come in pieces; whole ones are counted here, with the line ends."""
    line = len(scope["raw_path"]) + len(scope["query_string"])
    if line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > most_bytes:
        raise RefusedError(f"The headers hold more than {most_bytes} bytes", remedy="Send fewer.", status=431)


def _check_type(headers: _Headers, scope: Any) -> None:
    """A body is JSON, or for an upload octets; nothing else is looked at, however it calls itself."""
    declared = headers.one("content-type")
    length = headers.one("content-length")
    has_body = headers.one("transfer-encoding") is not None or length not in (None, "0")
    wanted = "application/octet-stream" if scope["method"] == "PUT" else "application/json"
    if declared is None and not has_body:
        return
    name, _, parameter = (declared or "").lower().replace(" ", "").partition(";")
    if name != wanted or parameter not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise RefusedError(f"The body is not declared as {wanted}", remedy=f"Send Content-Type: {wanted}.", status=415)
    if headers.one("content-encoding") not in (None, "identity"):
        raise RefusedError("The body is compressed", remedy="Send it as it is.", status=415)


def _name_of(host: str) -> str:
    """A Host header without its port, in lower case; what is malformed names nothing."""
    name, _, port = host.lower().rpartition(":") if not host.endswith("]") and ":" in host else (host.lower(), "", "")
    return name if not port or (port.isascii() and port.isdigit()) else ""


def _query(scope: Any) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise RefusedError("The address holds too many fields", remedy="Send fewer.", status=400) from error


def _forbidden(cause: str, remedy: str) -> RefusedError:
    return RefusedError(cause, remedy=remedy, status=403)
