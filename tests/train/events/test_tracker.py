"""Trackers hold what the run folder holds, once per step, through crashes and resumption, read back by somebody else."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.small_run import run

from almanac.core.errors import MissingExtraError, RequestError
from almanac.core.value import Value
from almanac.train.events.event import Event, Started, StepDone
from almanac.train.events.tracker import NAMES, Tracker, named, title_of

Steps = dict[int, float]
CRASH, STEPS, SAVED = 13, 20, 10  # the run dies at step 13, goes on from the checkpoint of step 10


class Watch:
    """What a run measures, as pre-training writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started) and event.step == 0:
            self._write([0])
        elif isinstance(event, StepDone) and event.step % 4 == 0:
            self._write(range(0, event.step + 1, 4))

    def _write(self, steps: Any) -> None:
        lines = [{"step": s, "loss": 5.0 - s / 10, "bits_per_byte": 2.0, "sample": f"`text` <b> {s}"} for s in steps]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Dies:
    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step == CRASH:
            raise KeyboardInterrupt


def crashed_and_resumed(folder: Path, tracker: Tracker) -> Steps:
    """The losses of the log of a run that died and went on, both parts tracked."""
    watch = Watch(folder.parent / "measured.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(folder, listeners=[watch, tracker.build(folder), Dies()], steps=STEPS)
    run(folder, listeners=[watch, tracker.build(folder)], steps=STEPS)
    return logged(folder)


def logged(folder: Path) -> Steps:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return {line["step"]: line["loss"] for line in lines}


def once(pairs: list[tuple[int, float]]) -> Steps:
    """Steps and values, none of them twice."""
    assert len({step for step, _ in pairs}) == len(pairs), f"steps told twice: {[step for step, _ in pairs]}"
    return dict(pairs)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed (extra 'track')")
    folder = tmp_path / "run"
    expected = crashed_and_resumed(folder, named("tensorboard"))
    scalars, texts = events_of(folder)
    assert once(scalars["train/loss"]) == pytest.approx(expected, rel=1e-6)
    assert set(once(scalars["held_out/loss"])) == {0, 4, 8, 12, 16, 20}
    assert {"train/learning_rate", "train/gradient_norm", "train/tokens_per_second"} <= set(scalars)
    assert '"learning_rate": 0.005' in texts["settings"][0][1] and "`text` <b> 20" in texts["sample"][-1][1]


def events_of(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, str]]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    (place,) = (folder / "tensorboard").iterdir()
    read = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): [
            (e.step, tensor_util.make_ndarray(e.tensor_proto).item().decode()) for e in read.Tensors(tag)
        ]
        for tag in read.Tags()["tensors"]
    }
    return scalars, texts


def test_tensorboard_switched_on_late_is_told_the_whole_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed (extra 'track')")
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(folder, listeners=[Dies()], steps=STEPS)
    run(folder, listeners=[named("tensorboard").build(folder)], steps=STEPS)
    assert once(events_of(folder)[0]["train/loss"]) == pytest.approx(logged(folder), rel=1e-6)


def test_trackio(tmp_path: Path) -> None:
    """In a process of its own: trackio reads where its store lies when it is imported. Its SQLite file is read by itself."""
    pytest.importorskip("trackio", reason="the package trackio is not installed (extra 'track')")
    folder = tmp_path / "books" / "run"
    expected = elsewhere("trackio", folder, TRACKIO_DIR=str(tmp_path / "store"))
    (file,) = (tmp_path / "store").glob("*.db")
    with sqlite3.connect(file) as connection:
        rows = connection.execute("select run_name, run_id, step, metrics from metrics order by id").fetchall()
        configs = connection.execute("select config from configs").fetchall()
    connection.close()
    assert len({(name, key) for name, key, _, _ in rows}) == 1
    found = [(step, json.loads(metrics)) for _, _, step, metrics in rows]
    losses = once([(step, item["train/loss"]) for step, item in found if "train/loss" in item])
    assert losses == pytest.approx(expected, rel=1e-6)
    samples = {step: item["sample"] for step, item in found if "sample" in item}
    assert set(samples) == {0, 4, 8, 12, 16, 20} and "`text` <b> 20" in json.dumps(samples[20])
    assert json.loads(configs[0][0])["learning_rate"] == 5e-3


def test_wandb(tmp_path: Path) -> None:
    """The offline files, read without wandb's own code but for the messages' layout."""
    pytest.importorskip("wandb", reason="the package wandb is not installed (extra 'track')")
    folder = tmp_path / "books" / "run"
    expected = elsewhere("wandb", folder)
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one id, which `wandb sync` joins
    losses, names = [], set()
    for file in files:
        for record in records_of(file):
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                names |= set(row)
                if "train/loss" in row:
                    losses.append((row["_step"], row["train/loss"]))
            if record.WhichOneof("record_type") == "run":
                config = {item.key: item.value_json for item in record.run.config.update}
                assert config.get("learning_rate", "0.005") == "0.005"
    assert once(losses) == pytest.approx(expected, rel=1e-6)
    assert {"held_out/loss", "sample"} <= {name.split(".")[0] for name in names}


def records_of(file: Path) -> Iterator[Any]:
    """The format is LevelDB's log: after a header of 7 bytes, blocks of 32 KiB of (checksum, length, type, data)."""
    from wandb.proto import wandb_internal_pb2

    data, place, held = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            place += left
            continue
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            held = b""
            yield record


ELSEWHERE = """
import sys
from pathlib import Path
from train.events.test_tracker import crashed_and_resumed
from almanac.train.events.tracker import named
import json
print(json.dumps(crashed_and_resumed(Path(sys.argv[2]), named(sys.argv[1]))))
"""
NO_NETWORK = """
import socket
def refused(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")
real = socket.socket.connect
def connect(self, address):
    local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
    return real(self, address) if local else refused(address)
socket.socket.connect = connect
socket.getaddrinfo_real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **others: (
    socket.getaddrinfo_real(host, *more, **others) if host in (None, "127.0.0.1", "localhost", "::1") else refused(host)
)
"""


def elsewhere(name: str, folder: Path, **surroundings: str) -> Steps:
    """`crashed_and_resumed` in a process that can open no connection but to itself."""
    folder.parent.mkdir()
    root = Path(__file__).parents[2]
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS") if key in os.environ}
    environment = {
        **kept, "PYTHONPATH": str(root), "HOME": str(folder.parent.parent), "HF_HUB_OFFLINE": "1",
        "WANDB_CACHE_DIR": str(folder.parent.parent), "WANDB_CONFIG_DIR": str(folder.parent.parent), **surroundings,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK + ELSEWHERE, name, str(folder)],
        capture_output=True, text=True, env=environment, timeout=300, cwd=folder.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a connection was tried" not in done.stderr
    return {int(step): loss for step, loss in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_missing_package_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"tensorboard": "torch.utils.tensorboard"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"Tracking with {name} .*") as caught:
        run(tmp_path, listeners=[named(name).build(tmp_path)])
    assert "almanac-lm[track]" in caught.value.remedy and "\n" not in str(caught.value)


def test_names_and_values() -> None:
    for name in NAMES:
        tracker = named(name)
        assert tracker.offline and Value.from_dict(tracker.to_dict()) == tracker
    with pytest.raises(RequestError, match="mlflow"):
        named("mlflow")


def test_online_is_refused_where_there_is_no_such_thing(tmp_path: Path) -> None:
    for name in ("tensorboard", "trackio"):
        with pytest.raises(RequestError, match=r"online|alone"):
            run(tmp_path, listeners=[named(name).with_(offline=False).build(tmp_path)])


def test_titles() -> None:
    assert title_of(Path("/a/books/.pretrain/run")) == "books"
    assert title_of(Path("/a/books/run")) == "run"
    assert title_of(Path("/a/books")) == "books"
