"""Curves read piece by piece are those of the whole log, however it grows, breaks off or begins anew."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from almanac.train.events.curves import LARGEST, MAX_LINE_BYTES, POINTS, Curves, last_lines, of_step

PIECE = 2 * MAX_LINE_BYTES


def line(step: int, **fields: Any) -> bytes:
    given = {"loss": 1.0, "learning_rate": 0.1, "gradient_norm": 2.0, "tokens": 100, "seconds": 0.5, **fields}
    return json.dumps({"step": step, **given}).encode() + b"\n"


def read(path: Path, most_bytes: int = PIECE) -> Curves:
    curves = Curves(path, of_step)
    while not curves.read(most_bytes):
        pass
    return curves


def expected(values: dict[int, float], stride: int) -> list[tuple[int, int, float, float, float]]:
    """The slow way: every value kept."""
    found = []
    for place in sorted({step // stride for step in values}):
        inside = {step: value for step, value in values.items() if step // stride == place}
        few = list(inside.values())
        found.append((place, max(inside), sum(few) / len(few), min(few), max(few)))
    return found


@pytest.mark.parametrize("count", [1, POINTS - 1, POINTS, 5000])
def test_every_stretch_has_its_mean_least_and_most(tmp_path: Path, count: int) -> None:
    dice = random.Random(count)
    values = {step: dice.uniform(-3, 3) for step in range(1, count + 1)}
    path = tmp_path / "log"
    path.write_bytes(b"".join(line(step, loss=value) for step, value in values.items()))
    curves = read(path)
    assert curves.step == curves.lines == count and len(curves.series["loss"].points()) <= POINTS
    for point, wanted in zip(curves.series["loss"].points(), expected(values, curves.stride), strict=True):
        assert point == pytest.approx(wanted)
    assert curves.stride == max(1, 1 << (count // POINTS).bit_length())
    assert curves.series["tokens_per_second"].points()[0][2] == 200
    assert curves.tally.tokens == 100 * count and curves.tally.seconds_per_step == 0.5


def test_pieces_of_any_size_give_the_same(tmp_path: Path) -> None:
    dice = random.Random(1)
    data = b"".join(line(step, loss=dice.random()) for step in range(1, 3000))
    path = tmp_path / "log"
    path.write_bytes(b"")
    grown = Curves(path, of_step)
    place = 0
    while place < len(data):
        size = dice.randrange(1, 9000)
        with path.open("ab") as stream:
            stream.write(data[place : place + size])
        place += size
        grown.read(PIECE)
    whole = read(path)
    assert grown.generation == 1 and grown.damaged == 0
    assert grown.series == whole.series and grown.tally == whole.tally


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line(1) + line(2)[:-9])
    curves = Curves(path, of_step)
    assert curves.read(PIECE) and curves.step == 1
    path.write_bytes(line(1) + line(2))
    curves.read(PIECE)
    assert curves.step == 2 and curves.damaged == 0


def test_a_log_that_begins_anew_is_noticed(tmp_path: Path) -> None:
    """As a resumed run does it: a new file in the old one's place; or the same file, shorter, or with other lines."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(line(step) for step in range(1, 21)))
    curves = Curves(path, of_step)
    curves.read(PIECE)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"".join(line(step, loss=7.0) for step in range(1, 31)))
    fresh.replace(path)
    curves.read(PIECE)
    assert curves.generation == 2 and curves.step == 30 and curves.series["loss"].points()[0][2] == 7.0
    assert curves.tally.tokens == 3000
    path.write_bytes(line(1))
    curves.read(PIECE)
    assert curves.generation == 3 and curves.step == 1
    path.write_bytes(line(1, loss=3.0) + line(2))
    curves.read(PIECE)
    assert curves.generation == 4 and curves.series["loss"].points()[0][2] == 3.0
    path.unlink()
    curves.read(PIECE)
    assert curves.generation == 5 and curves.step == 0 and not curves.series


HOSTILE = [
    b"\xff\xfe\n", b"[]\n", b"{}\n", b"null\n", b'{"step": "1"}\n', b'{"step": true}\n', b'{"step": -1}\n',
    b'{"step": 1e9}\n', b'{"step": 9007199254740992000}\n', b"[" * 60_000 + b"\n",
    b'{"step": 1, "loss": ' + b"9" * 5000 + b"}\n",
    b'{"step": 5,\n', b"\n", b'{"step": 1, "loss": 1' + b" " * MAX_LINE_BYTES + b"}\n",
]  # fmt: skip


def test_what_is_no_line_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line(1) + b"".join(bad + line(2 + at) for at, bad in enumerate(HOSTILE)))
    curves = read(path)
    assert curves.damaged == len(HOSTILE) and curves.lines == len(HOSTILE) + 1


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    bad: list[Any] = [None, "1", True, [], {}, 2 * LARGEST, 10**400]
    path = tmp_path / "log"
    path.write_bytes(b"".join(line(step, loss=value) for step, value in enumerate(bad)) + b'{"step": 7, "loss": NaN}\n')
    curves = read(path)
    assert "loss" not in curves.series and curves.lines == 8 and curves.damaged == 0


def test_a_line_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line(1) + b"x" * (5 * PIECE) + b"\n" + line(2))
    curves = read(path)
    assert curves.step == 2 and curves.damaged == 1 and curves.lines == 2


def test_a_far_step_does_not_make_a_long_curve(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(line(1) + line(2**47) + line(3))
    curves = read(path)
    assert len(curves.series["loss"].points()) == 2 and curves.step == 2**47


def test_links_and_devices_are_not_read(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(line(1))
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder", "absent"):
        curves = Curves(tmp_path / name, of_step)
        assert curves.read(PIECE) and curves.lines == 0
        assert list(last_lines(tmp_path / name, 1000)) == []


def test_the_last_lines_alone_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(line(step) for step in range(1, 1001)) + line(1001)[:-5])
    assert [found["step"] for found in last_lines(path, 5 * len(line(1000)))][-4:] == [997, 998, 999, 1000]
    path.write_bytes(line(1))
    assert [found["step"] for found in last_lines(path, 1000)] == [1]
