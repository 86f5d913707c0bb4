"""A small raw corpus in which everything that must be left out is planted, and known."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from pathlib import Path

import pytest

SYLLABLES = [a + b for a in "bcdfglmnprstv" for b in "aeiou"]


def prose(seed: int, sentences: int = 12) -> str:
    """Text that passes the rules of Gopher: invented words among English ones, no sentence twice."""
    rng = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(8)]
        made.append(f"The {' '.join(words[:4])} of {' '.join(words[4:6])} and {' '.join(words[6:])}.")
    return "\n".join(made)


def warc_record(content: bytes, *, kind: str, uri: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + content + b"\r\n\r\n")


def page(seed: int) -> bytes:
    paragraphs = "".join(f"<p>{line}</p>" for line in prose(seed).split("\n"))
    html = (
        f"<html><head><title>Caf\xe9</title></head><body><h1>Caf\xe9 {seed}</h1>{paragraphs}<script>x()</script></body>"
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=iso-8859-1\r\n\r\n" + html.encode("latin-1")


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources: ``texts/`` (a folder of many kinds), ``crawl.warc.gz`` and ``records.jsonl.gz``."""
    root = tmp_path_factory.mktemp("raw")
    texts = root / "texts"
    texts.mkdir()
    for number in range(6):
        (texts / f"good-{number}.txt").write_text(prose(number))
    (texts / "copy.txt").write_text(prose(2) + "\n\n")
    (texts / "near.txt").write_text(prose(3, 40))
    (texts / "near-copy.txt").write_text(prose(3, 40).replace(".", " indeed.", 1))
    (texts / "empty.txt").write_text("")
    (texts / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (texts / "mixed.txt").write_bytes(b"Caf\xe9 " + "né. ".encode() + prose(50).encode())
    (texts / "page.html").write_text(f"<h1>A page</h1><p>{prose(51)}</p>")
    (texts / "notes.md").write_text(f"# Notes\n\n{prose(52)}\n")
    (texts / "picture.xyz").write_bytes(b"?")
    (texts / ".hidden.txt").write_text(prose(53))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/inner.txt", prose(60))
        archive.writestr("in/lines.jsonl", json.dumps({"text": prose(61)}) + "\n{bad\n")
        archive.writestr("../outside.html", f"<p>{prose(62)}</p>")
        archive.writestr("bomb.txt", b"\x20" * (100 << 20))
    (texts / "archive.zip").write_bytes(buffer.getvalue())
    records = [warc_record(page(seed), kind="response", uri=f"http://a.example/{seed}") for seed in (70, 71)]
    records[1:1] = [warc_record(b"not http", kind="request", uri="http://a.example/r"), b"\x1f\x8b\x08damaged"]
    records.append(warc_record(prose(72).encode(), kind="conversion", uri="http://a.example/wet"))
    (root / "crawl.warc.gz").write_bytes(b"".join(records))
    lines = [json.dumps({"text": prose(80 + n), "license": "MIT" if n % 2 else "", "url": f"u{n}"}) for n in range(8)]
    lines += ["{broken", json.dumps({"text": "too short"}), json.dumps({"text": f"{prose(90)}\nanna.berg@fernweh.net"})]
    (root / "records.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return root
