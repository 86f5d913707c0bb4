"""Who may reach which route. What is not listed here is not served: ``create_app`` refuses to start with such a route."""

from __future__ import annotations

from enum import Enum


class Policy(Enum):
    """``PUBLIC`` holds no data; ``TICKET`` takes a one-use ticket in place of the token."""

    PUBLIC = "public"
    TOKEN = "token"
    TICKET = "ticket"


POLICIES = {
    "GET /healthz": Policy.PUBLIC,
    "GET /": Policy.PUBLIC,
    "GET /ui/{file}": Policy.PUBLIC,
    "GET /runs": Policy.PUBLIC,
    "GET /report": Policy.TICKET,
    "GET /openapi.json": Policy.TOKEN,
    "GET /v1/models": Policy.TOKEN,
    "GET /v1/models/{model}": Policy.TOKEN,
    "POST /v1/chat/completions": Policy.TOKEN,
    "POST /v1/completions": Policy.TOKEN,
    "POST /v1/embeddings": Policy.TOKEN,
    "POST /v1/ask": Policy.TOKEN,
    "GET /v1/assistant": Policy.TOKEN,
    "POST /v1/tickets": Policy.TOKEN,
    "GET /v1/runs": Policy.TOKEN,
    "GET /v1/runs/{path:path}": Policy.TOKEN,
    "GET /v1/documents": Policy.TOKEN,
    "GET /v1/documents/{path:path}": Policy.TOKEN,
    "PUT /v1/documents/{path:path}": Policy.TOKEN,
    "DELETE /v1/documents/{path:path}": Policy.TOKEN,
}


def policy_of(method: str, path: str, files: frozenset[str]) -> Policy:
    """The policy of a request, from exact paths alone: what is not known to be public needs a token.

    ``files``: the names under ``/ui/`` that exist.
    """
    if method in ("GET", "HEAD"):
        if path in ("/", "/healthz", "/runs") or (path.startswith("/ui/") and path.removeprefix("/ui/") in files):
            return Policy.PUBLIC
        if path == "/report":
            return Policy.TICKET
    return Policy.TOKEN
