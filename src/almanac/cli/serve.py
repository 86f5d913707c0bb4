"""``almanac serve``: an assistant over HTTP, with a page and an OpenAI-compatible API; training runs with their curves."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from almanac.cli.options import Json
from almanac.cli.printing import emit, line, note

if TYPE_CHECKING:
    from almanac.serve.settings import ServeSettings


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens, and what must hold before others than this machine can reach it.

    Args:
        host: Address to listen on; any but this machine's own needs a token, and TLS or a proxy that speaks it.
        port: Port to listen on; 0 takes a free one.
        allow_host: A name under which the server may be called, beside its address; may be given several times.
        certificate: PEM file with the certificate, for TLS.
        key: PEM file with the certificate's key.
        behind_proxy: A proxy in front of this server speaks TLS.
        block_bytes: Pad every piece of a stream to a multiple of this, so that its size tells less about the text.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: Annotated[bool, Parameter(show_default=False)] = False
    block_bytes: int = 0

    def settings(self, token_file: Path | None) -> ServeSettings:
        """As the server wants them."""
        from almanac.serve.settings import ServeSettings

        return ServeSettings(
            host=self.host,
            port=self.port,
            token_file=str(token_file or ""),
            hosts=self.allow_host,
            certificate=str(self.certificate or ""),
            key=str(self.key or ""),
            behind_proxy=self.behind_proxy,
            stream_block_bytes=self.block_bytes,
        )


LOOPBACK = Listening()
DEMO = Path("demo")


def serve(
    assistant: Path | None = None,
    /,
    *,
    runs: Path | None = None,
    token_file: Path | None = None,
    listening: Listening = LOOPBACK,
    json: Json = False,
) -> int:
    """Serve an assistant: a web page and an OpenAI-compatible API.

    With --runs the page at /runs shows the curves of the training runs below a folder as they grow; without an assistant
    only those are served, and no model is loaded.

    Without further options only this machine is served, and needs no token. Ctrl-C ends it; answers under way get a few
    seconds. The log, on stderr, holds no questions, no answers and no names of documents.

    ```
    almanac serve assistant
    almanac serve --runs my-model
    almanac serve assistant --port 9000 --token-file tokens
    almanac serve assistant --host 192.168.1.5 --token-file tokens --certificate server.pem --key server.key
    ```

    Args:
        assistant: A folder made by `almanac build`; without it and without --runs `demo`, where `make demo` puts its own.
        runs: A folder with training runs in it, at any depth.
        token_file: A file with the tokens that are admitted, one in a line; made with a new one if it is not there.
    """
    from almanac.serve.app import serve as served

    settings = listening.settings(token_file)
    chosen = DEMO if assistant is None and runs is None else assistant

    def ready(address: str, is_new: bool) -> None:
        made = str(token_file) if is_new else None
        if json:
            told = {"event": "ready", "url": address, "api": f"{address}v1", "token_file_made": made}
            emit(told if runs is None else {**told, "runs": f"{address}runs"})
            return
        if chosen is not None:
            line(f"The page: {address}")
            line(f"The API:  {address}v1 (OpenAI-compatible)")
        if runs is not None:
            line(f"The runs: {address}runs")
        if made:
            line(f"A token was made for you; it is in {made}, which only you can read.")
        note("Ctrl-C ends it.")

    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn hands on, or not, after it has ended in order
        served(chosen, settings=settings, ready=ready, runs=runs)
    note("Stopped.")
    return 0
