"""What the server costs: tokens per second through its event streams, beside the engine alone and a bare ASGI loop.

    python benchmarks/serve.py [--model smollm2-135m-instruct] [--streams 1 16] [--tokens 64]

Same weights, same prompts, one run. ``engine`` is the engine called directly in a process of its own with as many rows;
``almanac`` is our server, ``bare`` an ASGI application under the same uvicorn that sends as many events of the same form
without computing, checking or counting anything: the ceiling of the transport. The client is this process. While the
streams run, /healthz is asked every 50 ms; its waits are told as median and 99th percentile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROMPT = "The history of the steam engine begins with"


def main() -> None:
    """Runs the children and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=list(CHILDREN))
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child](options)
        return
    print(f"{'streams':>8} {'engine':>9} {'almanac':>9} {'bare':>9} {'of engine':>10} {'health p50':>11} {'p99':>8}")
    engine = json.loads(_child("engine", options).communicate()[0])
    for streams in options.streams:
        ours, waits = _measured("almanac", streams, options)
        bare, _ = _measured("bare", streams, options)
        alone = engine[str(streams)]
        middle, late = statistics.median(waits) * 1e3, waits[int(0.99 * len(waits))] * 1e3
        print(
            f"{streams:>8} {alone:>9.1f} {ours:>9.1f} {bare:>9.0f} {ours / alone:>10.2f} {middle:>8.1f} ms {late:>5.0f} ms"
        )


def _child(kind: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    words = [
        "--child",
        kind,
        "--model",
        options.model,
        "--tokens",
        str(options.tokens),
        "--threads",
        str(options.threads),
    ]
    words += ["--streams", *map(str, options.streams)]
    return subprocess.Popen(
        [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _measured(kind: str, streams: int, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Events per second over all streams, and the sorted waits for /healthz."""
    child = _child(kind, options)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    try:
        asyncio.run(_drive(port, 1, 4))
        return asyncio.run(_drive(port, streams, options.tokens))
    finally:
        child.communicate()


async def _drive(port: int, streams: int, tokens: int) -> tuple[float, list[float]]:
    over = asyncio.Event()
    health = asyncio.create_task(_health(port, over))
    began = time.perf_counter()
    counts = await asyncio.gather(*(_stream(port, seed, tokens) for seed in range(streams)))
    seconds = time.perf_counter() - began
    over.set()
    return sum(counts) / seconds, await health


async def _stream(port: int, seed: int, tokens: int) -> int:
    """Reads one stream and returns the tokens that its usage tells."""
    body = {"model": "model", "prompt": PROMPT, "max_tokens": tokens, "seed": seed, "stream": True}
    data = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    last = b""
    while line := await reader.readline():
        last = line if line.startswith(b"data: {") else last
    writer.close()
    return int(json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"])


async def _health(port: int, over: asyncio.Event) -> list[float]:
    waits = []
    while not over.is_set():
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    return sorted(waits)


def _engine(options: argparse.Namespace) -> None:
    """Tokens per second of the engine alone, by number of rows."""
    lm = _loaded(options)
    ids = lm.tokenizer.encode(PROMPT, allow_special=False)
    found = {}
    for rows in (1, *options.streams):  # the first time warms up
        engine = lm.engine()
        began = time.perf_counter()
        handles = [engine.submit(_request(lm, ids, seed, options.tokens)) for seed in range(rows)]
        engine.run()
        found[rows] = sum(len(handle.new_tokens) for handle in handles) / (time.perf_counter() - began)
    print(json.dumps(found))


def _request(lm: Any, ids: list[int], seed: int, tokens: int) -> Any:
    from almanac.generate.sampling import sampling

    return lm.request(ids, max_tokens=tokens, sampling=sampling(temperature=1.0, seed=seed))


def _almanac(options: argparse.Namespace) -> None:
    from almanac.assistant.ask import Assistant
    from almanac.assistant.settings import BuildSettings
    from almanac.retrieve.index.settings import IndexSettings
    from almanac.retrieve.index.store import DocumentIndex
    from almanac.serve.app import SWITCH_SECONDS, create_app
    from almanac.serve.limits import Limits
    from almanac.serve.settings import ServeSettings

    sys.setswitchinterval(SWITCH_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        index = DocumentIndex.create(Path(folder) / "index", embedder=None, settings=IndexSettings())
        assistant = Assistant(_loaded(options), index, BuildSettings(encoder=""), folder=Path(folder))
        _serve(create_app(assistant, settings=ServeSettings(limits=Limits(concurrency=64))))


def _bare(options: argparse.Namespace) -> None:
    """Sends what our server would send for as many tokens, and knows nothing."""
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
    chunk = {"id": "cmpl-" + "0" * 24, "object": "text_completion", "created": 0, "model": "model", "choices": [choice]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        count = json.loads(body)["max_tokens"] if body else 0
        usage = {**chunk, "choices": [], "usage": {"completion_tokens": count}}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for item in [*[chunk] * count, usage]:
            data = b"data: " + json.dumps(item).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    _serve(app)


def _serve(app: Any) -> None:
    """Serves until stdin ends; the port is the first line of stdout."""
    import uvicorn

    from almanac.serve.app import listen
    from almanac.serve.limits import Limits
    from almanac.serve.protocol import protocol_for
    from almanac.serve.settings import ServeSettings

    sockets = listen(ServeSettings(port=0))
    config = uvicorn.Config(app, http=protocol_for(Limits()), ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    print(sockets[0].getsockname()[1], flush=True)

    def until_told() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=until_told, daemon=True).start()
    server.run(sockets)


def _loaded(options: argparse.Namespace) -> Any:
    import torch

    import almanac

    torch.set_num_threads(options.threads)
    return almanac.load(options.model)


CHILDREN = {"engine": _engine, "almanac": _almanac, "bare": _bare}

if __name__ == "__main__":
    main()
