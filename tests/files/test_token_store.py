"""Token stores: what is written is read back, in constant memory, whole or not at all."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from almanac.core.errors import AlmanacError, FileFormatError, IntegrityError, NotFoundError, RequestError
from almanac.files.token_store import TokenStore, open_token_store, write_token_store


def documents(count: int, vocab_size: int, seed: int = 0) -> list[list[list[int]]]:
    """Documents in runs, some of them empty."""
    dice = random.Random(seed)
    return [
        [[dice.randrange(vocab_size) for _ in range(dice.choice((0, 1, 5, 9)))] for _ in range(dice.choice((0, 1, 3)))]
        for _ in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [2**16, 2**16 + 1, 2**32])
@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 2**20])
def test_what_is_written_is_read(vocab_size: int, shard_tokens: int, tmp_path: Path) -> None:
    given = documents(40, vocab_size)
    store = write_token_store(
        tmp_path / "s", given, vocab_size=vocab_size, facts={"tokenizer": "x"}, shard_tokens=shard_tokens
    )
    flat = [[token for run in document for token in run] for document in given]
    flat = [document for document in flat if document]
    stream = [token for document in flat for token in document]
    again = open_token_store(tmp_path / "s")
    again.verify()
    assert (again.num_tokens, again.facts, again.digest) == (len(stream), {"tokenizer": "x"}, store.digest)
    assert again.ends.tolist() == torch.tensor([len(document) for document in flat]).cumsum(0).tolist()
    assert again.read(0, len(stream)).tolist() == stream
    for start, length in ((0, 0), (3, 11), (len(stream) - 5, 5), (len(stream), 0)):
        assert again.read(start, length).tolist() == stream[start : start + length]
    for start, length in ((-1, 2), (len(stream), 1), (0, len(stream) + 1), (0, -1)):
        with pytest.raises(RequestError):
            again.read(start, length)


def test_a_store_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = write_token_store(path, [[[1, 2, 3]]], vocab_size=9)
    for bad in ([[[1, 9]]], [[[1, -1]]], [], [[[]]]):
        with pytest.raises(RequestError):
            write_token_store(path, bad, vocab_size=9)
        assert open_token_store(path).digest == first.digest

    def failing() -> Iterator[list[list[int]]]:
        yield [[4, 5]]
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_token_store(path, failing(), vocab_size=9)
    assert open_token_store(path).read(0, 3).tolist() == [1, 2, 3]
    second = write_token_store(path, [[[7]], [[8]]], vocab_size=9)
    assert second.digest != first.digest
    assert [item.name for item in tmp_path.iterdir()] == ["s"]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        run = list(range(1000))
        write_token_store(tmp_path / str(count), ([run] for _ in range(count)), vocab_size=1000, shard_tokens=50_000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(5)
    assert peak(500) < peak(50) + 100_000  # of 1 MB more on the disk


def changed(store: TokenStore, name: str, how: str) -> None:
    path = store.folder / name
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[-1]
    elif how == "longer":
        data += b"\0"
    elif how == "gone":
        path.unlink()
        return
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "ends.bin", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "longer", "gone", "flipped"])
def test_damage_is_told(name: str, how: str, tmp_path: Path) -> None:
    store = write_token_store(tmp_path / "s", [[[1, 2, 3]], [[4, 5, 6, 7]]], vocab_size=9, shard_tokens=4)
    changed(store, name, how)
    with pytest.raises((FileFormatError, IntegrityError, NotFoundError)):
        open_token_store(store.folder).verify()


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", 10**15), ("documents", 10**15), ("width", 8), ("version", 2), ("shard_tokens", 0), ("files", {"../x": ""}),
     ("tokens", True), ("vocab_size", "9"), ("facts", [])],
)  # fmt: skip
def test_a_hostile_manifest_is_refused(field: str, value: object, tmp_path: Path) -> None:
    store = write_token_store(tmp_path / "s", [[[1, 2, 3]]], vocab_size=9)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, field: value}, indent=2, sort_keys=True) + "\n")
    with pytest.raises(AlmanacError):
        open_token_store(store.folder)
