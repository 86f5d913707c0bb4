"""Sharded models: index and shards agree exactly, and replacing one model by another is one step for readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError, UnsafeFileError
from almanac.files import store
from almanac.files.safetensors import SafetensorsFile, ShardedSafetensors, read_sharded, write_safetensors

INDEX = "model.safetensors.index.json"


def model(value: float, count: int = 6) -> dict[str, Tensor]:
    return {f"layers.{i}.w": torch.full((250,), value + i) for i in range(count)}  # 1000 bytes each


def sharded(folder: Path, value: float = 0.0) -> list[Path]:
    return write_safetensors(folder / "model.safetensors", model(value), max_shard_bytes=2500)


def assert_model(folder: Path, value: float) -> None:
    opened = read_sharded(folder)
    assert set(opened) == set(model(value))
    for name, tensor in model(value).items():
        assert torch.equal(opened[name], tensor)


def test_shards_are_filled_in_order_and_read_back(tmp_path: Path) -> None:
    written = sharded(tmp_path)
    assert [path.name for path in written] == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 6000}
    assert index["weight_map"]["layers.3.w"] == "model-00002-of-00003.safetensors"
    opened = read_sharded(tmp_path)
    assert isinstance(opened, ShardedSafetensors) and opened.metadata == {"format": "pt"}
    assert len(opened) == 6 and opened.entries["layers.5.w"].shape == (250,)
    assert_model(tmp_path, 0.0)


def test_one_tensor_beyond_the_limit_gets_its_own_shard(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(10), "big": torch.zeros(1000), "b": torch.zeros(10)}
    assert len(write_safetensors(tmp_path / "model.safetensors", tensors, max_shard_bytes=100)) == 4
    assert set(read_sharded(tmp_path)) == set(tensors)


@pytest.mark.parametrize("before", [2500, 10**9, 1000])
@pytest.mark.parametrize("after", [2500, 10**9, 3000])
def test_a_reader_sees_the_old_model_or_the_new_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, model(0.0), max_shard_bytes=before)
    seen: list[float] = []

    def observing(real):
        def step(*arguments, **options):
            result = real(*arguments, **options)
            opened = read_sharded(tmp_path)
            value = float(opened["layers.0.w"][0])
            assert_model(tmp_path, value)
            seen.append(value)
            return result

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", observing(Path.replace))
        patch.setattr(Path, "unlink", observing(Path.unlink))
        written = write_safetensors(path, model(100.0), max_shard_bytes=after)
    assert seen == sorted(seen) and seen[-1] == 100.0, "old, then new, and never back"
    assert_model(tmp_path, 100.0)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in written}, "nothing of the old model is left"


def test_a_failed_sharded_write_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded(tmp_path, 0.0)
    files, calls, real = sorted(tmp_path.iterdir()), [], store.os.fsync

    def second_shard_fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(store.os, "fsync", second_shard_fails)
    with pytest.raises(OSError, match="No space"):
        sharded(tmp_path, 100.0)
    assert sorted(tmp_path.iterdir()) == files
    assert_model(tmp_path, 0.0)


def edit_index(folder: Path, **changes: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    for tensor, shard in changes.items():
        if shard is None:
            del index["weight_map"][tensor]
        else:
            index["weight_map"][tensor] = shard
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change",
    [
        {"layers.0.w": None},
        {"layers.0.w": "model-00002-of-00003.safetensors"},
        {"invented": "model-00001-of-00003.safetensors"},
    ],
    ids=["forgotten", "misplaced", "invented"],
)
def test_an_index_that_disagrees_with_a_shard_is_refused(tmp_path: Path, change: dict[str, str | None]) -> None:
    sharded(tmp_path)
    edit_index(tmp_path, **change)
    with pytest.raises(FileFormatError, match="disagree"):
        read_sharded(tmp_path)


def test_the_same_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_safetensors(tmp_path / "model-00003-of-00003.safetensors", model(9.0))
    with pytest.raises(FileFormatError, match="disagree"):
        read_sharded(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}',
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(AlmanacError):
        read_sharded(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(NotFoundError, match="model-00002-of-00003"):
        read_sharded(tmp_path)


def test_single_file_and_absence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="neither"):
        read_sharded(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UnsafeFileError, match="Convert"):
        read_sharded(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", model(1.0))
    assert isinstance(read_sharded(tmp_path), SafetensorsFile)
    assert_model(tmp_path, 1.0)
    write_safetensors(tmp_path / "adapter_model.safetensors", model(2.0, count=1))
    assert list(read_sharded(tmp_path, name="adapter_model.safetensors")) == ["layers.0.w"]
