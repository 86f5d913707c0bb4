"""``almanac serve`` as a user starts it: it says where it is, makes the token, refuses what is unsafe, ends on Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serve.world import assistant_in

from almanac.assistant.ask import Assistant
from almanac.cli.serve import Listening, serve
from almanac.core.errors import AlmanacError, MissingExtraError, NotFoundError, RequestError
from almanac.serve import app as app_module
from almanac.serve.app import listen
from almanac.serve.settings import ServeSettings

STARTED = """
import sys
from pathlib import Path
from almanac.assistant import ask
from serve.world import assistant_in
made = assistant_in(Path(sys.argv[1]))
ask.open_assistant = lambda folder: made
from almanac.cli.serve import Listening, serve
sys.exit(serve(made.folder, token_file=Path(sys.argv[2]), listening=Listening(port=0), json=True))
"""


def status_of(address: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_starts_serves_and_ends(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STARTED, str(tmp_path / "made"), str(tokens)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        ready: Any = json.loads(process.stdout.readline())
        assert ready["event"] == "ready" and ready["token_file_made"] == str(tokens)
        token = tokens.read_text().split()[-1]
        assert tokens.stat().st_mode & 0o777 == 0o600
        url = ready["url"]
        assert status_of(url) == 200
        assert status_of(f"{url}v1/models") == 401
        assert status_of(f"{url}v1/models", token) == 200
        assert status_of(f"{url}secret-name", token) == 404
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert token not in out + err and "secret-name" not in err and "Traceback" not in err
    assert "GET /v1/models 401" in err.replace("GET - 401", "GET /v1/models 401") and "Stopped." in err


@pytest.mark.parametrize(
    ("listening", "token", "match"),
    [
        (Listening(host="192.0.2.1"), None, "no token"),
        (Listening(host="::"), "t", "in the clear"),
        (Listening(port=99999), None, "port"),
        (Listening(certificate=Path("c")), None, "both"),
    ],
)
def test_what_is_unsafe_is_refused_before_anything_is_made(
    tmp_path: Path, listening: Listening, token: str | None, match: str
) -> None:
    file = tmp_path / token if token else None
    with pytest.raises(RequestError, match=match):
        serve(tmp_path, token_file=file, listening=listening)
    assert not list(tmp_path.iterdir())


def test_no_assistant_and_no_libraries_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="almanac build"):
        serve(tmp_path)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match="serve"):
        serve(tmp_path)


def test_loopback_listens_on_both_addresses_and_nowhere_else() -> None:
    sockets = listen(ServeSettings(port=0))
    try:
        addresses = {item.getsockname()[0] for item in sockets}
        assert "127.0.0.1" in addresses and addresses <= {"127.0.0.1", "::1"}
        assert len({item.getsockname()[1] for item in sockets}) == 1
        with pytest.raises(RequestError, match="cannot be had"):
            listen(ServeSettings(port=sockets[0].getsockname()[1]))
    finally:
        for item in sockets:
            item.close()
    with pytest.raises(AlmanacError, match="Cannot listen"):
        listen(ServeSettings(host="192.0.2.1", port=0))


def test_without_ipv6_the_other_address_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    really = app_module.socket.socket

    def made(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return really(family, kind)

    monkeypatch.setattr(app_module.socket, "socket", made)
    (only,) = listen(ServeSettings(port=0))
    assert only.getsockname()[0] == "127.0.0.1"
    only.close()


def test_the_small_assistant_is_one(tmp_path: Path) -> None:
    """The fixture keeps what the real one promises, so that these tests mean something."""
    made = assistant_in(tmp_path)
    assert isinstance(made, Assistant) and made.name == "assistant"
    assert made.ask("How long does the pump last?").passages
