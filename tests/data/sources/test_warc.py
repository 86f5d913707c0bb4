"""Web archives: every record comes back, and whatever is damaged costs itself and never memory, time or the rest."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almanac.data.sources.document import Fault
from almanac.data.sources.warc import Page, Record, page_of, records

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=ISO-8859-1\r\n"


def record(content: bytes, *, kind: str = "response", length: int | None = None) -> bytes:
    fields = [
        "WARC/1.0", f"WARC-Type: {kind}", "WARC-Target-URI: http://a.example/x", "WARC-Date: 2024-01-02T03:04:05Z",
        "Content-Type: application/http; msgtype=response", f"Content-Length: {len(content) if length is None else length}",
    ]  # fmt: skip
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


def read(data: bytes, **limits: int) -> list[Record | Fault]:
    return list(records(io.BytesIO(data), "x", **limits))


def contents(found: list[Record | Fault]) -> list[bytes]:
    return [item.content for item in found if isinstance(item, Record)]


BODIES = [HEAD + b"\r\n<p>one", b"", b"two\r\n\r\nWARC/1.0\r\n", bytes(range(256)) * 400]


def test_records_come_back_from_plain_from_one_member_and_from_many() -> None:
    raw = [record(body) for body in BODIES]
    for data in (b"".join(raw), gzip.compress(b"".join(raw)), b"".join(map(gzip.compress, raw))):
        found = read(data)
        assert contents(found) == BODIES and len(found) == len(BODIES)
        assert found[0].fields["warc-target-uri"] == "http://a.example/x" and found[0].type == "response"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.booleans())
def test_any_content_comes_back(bodies: list[bytes], packed: bool) -> None:
    raw = [record(body) for body in bodies]
    assert contents(read(b"".join(map(gzip.compress, raw) if packed else raw))) == bodies


def test_a_damaged_member_costs_itself() -> None:
    members = [gzip.compress(record(b"%d" % number * 50)) for number in range(4)]
    members[1] = members[1][:30] + b"\x00\xff\x00" + members[1][33:]
    members[2] = members[2][:-4]  # the end of its checksum is missing
    found = read(b"".join(members))
    assert contents(found)[0] == b"0" * 50 and contents(found)[-1] == b"3" * 50
    assert sum(isinstance(item, Fault) for item in found) >= 2


def test_lengths_that_lie_cost_their_record() -> None:
    for length in (3, 60, 0):  # shorter than the content, longer by a part of what follows, none
        raw = [record(b"first content"), record(b"x" * 20, length=length), record(b"y" * 20), record(b"last content")]
        found = read(b"".join(raw))
        assert contents(found)[0] == b"first content" and contents(found)[-1] == b"last content", length
        assert any(isinstance(item, Fault) for item in found)
    for length in (10**12, 10**30, -5):
        found = read(record(b"z", length=length) + record(b"after"))
        assert isinstance(found[0], Fault)
    packed = gzip.compress(record(b"x", length=10**9)) + gzip.compress(record(b"after"))
    assert contents(read(packed)) == [b"after"]  # within a member a length reaches to the end of the member


def test_what_is_too_large_is_passed_over() -> None:
    found = read(record(b"a" * 5000) + record(b"small"), max_content=100)
    assert isinstance(found[0], Fault) and "5,000 bytes" in found[0].reason and contents(found) == [b"small"]
    bomb = gzip.compress(record(b"\x00" * (8 << 20)))
    found = read(bomb + gzip.compress(record(b"never read")), max_content=100, max_member=1 << 20)
    assert all(isinstance(item, Fault) for item in found[:1])
    assert len(bomb) < 20_000


@pytest.mark.parametrize("cut", [1, 20, 90, 150, 190])
def test_a_file_that_ends_too_early_tells_so(cut: int) -> None:
    whole = record(b"a" * 40)
    found = read(record(b"before") + whole[:cut])
    assert contents(found) == [b"before"]
    assert len(found) == 2 or cut < 12  # before the first line is whole there is no record yet
    packed = gzip.compress(whole)
    found = read(gzip.compress(record(b"before")) + packed[: len(packed) // 2])
    assert contents(found) == [b"before"] and isinstance(found[-1], Fault)


def test_nothing_is_no_archive() -> None:
    assert isinstance(read(b"just some text\n" * 10)[0], Fault)
    assert isinstance(read(b"")[0], Fault)


def test_noise_never_breaks_the_reader() -> None:
    rng = random.Random(5)
    whole = b"".join(gzip.compress(record(body)) for body in BODIES) + record(b"plain")
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        for item in read(bytes(data[: rng.randint(1, len(data))]), max_content=1 << 20):
            assert isinstance(item, Fault) or page_of(item) is None or isinstance(page_of(item), Page | Fault)


def page(head: bytes, body: bytes) -> Page | Fault | None:
    (found,) = read(record(head + b"\r\n" + body))
    assert isinstance(found, Record)
    return page_of(found)


def test_pages_are_taken_out_of_responses() -> None:
    assert page(HEAD, b"<p>caf\xe9") == Page(b"<p>caf\xe9", "ISO-8859-1")
    packed = zlib.compress(b"<p>zip")
    assert page(HEAD + b"Content-Encoding: deflate\r\n", packed) == Page(b"<p>zip", "ISO-8859-1")
    chunked = b"4\r\n<p>c\r\n5;x=1\r\nhunks\r\n0\r\n\r\n"
    assert page(HEAD + b"Transfer-Encoding: chunked\r\n", chunked) == Page(b"<p>chunks", "ISO-8859-1")
    assert page(HEAD + b"Transfer-Encoding: chunked\r\n", b"<p>joined") == Page(b"<p>joined", "ISO-8859-1")
    assert isinstance(page(HEAD + b"Content-Encoding: gzip\r\n", b"no gzip"), Fault)
    bomb = gzip.compress(b"a" * (20 << 20))
    assert isinstance(page(HEAD + b"Content-Encoding: gzip\r\n", bomb), Fault)
    assert isinstance(page(HEAD + b"Content-Encoding: br\r\n", b"?"), Fault)
    assert page(HEAD.replace(b"200", b"404"), b"<p>") is None
    assert page(HEAD.replace(b"text/html", b"image/png"), b"<p>") is None
