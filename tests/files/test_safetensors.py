"""safetensors against the format's own library, in both directions, and what a sound file may look like."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from almanac.core.errors import FileFormatError, NotFoundError, UnsupportedError
from almanac.files import mapped
from almanac.files.safetensors import DTYPES, open_safetensors, read_header, write_safetensors, writing


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def every_dtype() -> dict[str, Tensor]:
    """One tensor per dtype of random bits (0 and 1 for bool), and the odd shapes."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for code, dtype in DTYPES.items():
        high = 2 if dtype is torch.bool else 256
        bits = torch.randint(0, high, (3, 5 * dtype.itemsize), dtype=torch.uint8, generator=generator)
        tensors[f"layer.{code}"] = bits.view(dtype)
    tensors["scalar"] = torch.tensor(-0.0)
    tensors["empty"] = torch.zeros(0, 4)
    tensors["empty inside"] = torch.zeros(2, 0, 3, dtype=torch.int64)
    tensors["ünïcode/../../x"] = torch.arange(3)
    return tensors


def assert_same(got: Tensor, want: Tensor) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert raw(got) == raw(want)


def test_every_dtype_round_trips_bit_for_bit(tmp_path: Path) -> None:
    tensors = every_dtype()
    [path] = write_safetensors(tmp_path / "a.safetensors", tensors, metadata={"note": "ü"})
    opened = open_safetensors(path)
    assert set(opened) == set(tensors) and len(opened) == len(tensors) and "absent" not in opened
    for name, tensor in tensors.items():
        assert_same(opened[name], tensor)
        assert opened.entries[name].shape == tuple(tensor.shape)
    assert opened.metadata == {"format": "pt", "note": "ü"}
    assert read_header(path) == opened.header
    with pytest.raises(KeyError):
        opened["absent"]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = every_dtype()
    [path] = write_safetensors(tmp_path / "a.safetensors", tensors, metadata={"k": "v"})
    listed = dict(safetensors.deserialize(path.read_bytes()))
    assert {name: bytes(fields["data"]) for name, fields in listed.items()} == {n: raw(t) for n, t in tensors.items()}
    del tensors["layer.F8_E8M0"]  # the library's torch side cannot name this dtype
    [path] = write_safetensors(tmp_path / "b.safetensors", tensors, metadata={"k": "v"})
    for name, tensor in safetensors.torch.load_file(path).items():
        assert_same(tensor, tensors[name])
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt", "k": "v"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in every_dtype().items() if "E8M0" not in name}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"k": "v"})
    opened = open_safetensors(tmp_path / "a.safetensors")
    assert set(opened) == set(tensors) and opened.metadata == {"k": "v"}
    for name, tensor in tensors.items():
        assert_same(opened[name], tensor)
    safetensors.torch.save_file({}, tmp_path / "none.safetensors")
    assert len(open_safetensors(tmp_path / "none.safetensors")) == 0


def build(path: Path, header: dict[str, object] | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_unaligned_tensors_are_read_right(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.25])
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "float": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    for spaces in range(8):
        text = json.dumps(header).encode() + b" " * spaces
        opened = open_safetensors(build(tmp_path / "a.safetensors", text, b"abc" + raw(values)))
        assert_same(opened["float"], values)
        assert opened["odd"].tolist() == list(b"abc")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])  # their first two bytes are those of a pickle
def test_a_header_whose_length_looks_like_a_pickle_loads(tmp_path: Path, length: int) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
    path = build(tmp_path / "a.safetensors", header, b"\x07")
    assert path.read_bytes()[0] == 0x80
    assert open_safetensors(path)["a"].tolist() == [7]


def test_writing_in_place_never_reaches_the_disk(tmp_path: Path) -> None:
    [path] = write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(4096)})
    before = path.read_bytes()
    opened = open_safetensors(path)
    opened["w"].mul_(3)
    assert opened["w"].sum() == 3 * 4096, "one process sees its own change"
    assert path.read_bytes() == before
    assert open_safetensors(path)["w"].sum() == 4096


def test_tensors_share_the_mapping_and_outlive_it(tmp_path: Path) -> None:
    [path] = write_safetensors(tmp_path / "a.safetensors", {"w": torch.arange(1000), "v": torch.ones(8)})
    opened = open_safetensors(path)
    first, second = opened["w"], opened["w"]
    assert first.data_ptr() == second.data_ptr()
    path.unlink()
    del opened, second
    assert first.sum() == 499500


def test_a_model_may_be_rewritten_from_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.arange(5000), "b": torch.ones(3)})
    write_safetensors(path, open_safetensors(path))
    assert open_safetensors(path)["a"].tolist() == list(range(5000))


def test_a_file_larger_than_memory_opens_at_once(tmp_path: Path) -> None:
    elements = 2**36 // 4  # 64 GiB, sparse
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 2**36]}}).encode().ljust(120)
    path = build(tmp_path / "big.safetensors", header, b"")
    with path.open("r+b") as stream:
        stream.truncate(128 + 2**36)
    opened = open_safetensors(path)
    assert opened["w"][-1] == 0
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**36, limit[1]))
    try:
        with pytest.raises(UnsupportedError, match="cannot be mapped"):
            open_safetensors(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_equal_tensors_give_equal_bytes_whatever_their_order_or_layout(tmp_path: Path) -> None:
    a, b = torch.arange(12.0).view(3, 4), torch.arange(5, dtype=torch.int8)
    [one] = write_safetensors(tmp_path / "1.safetensors", {"a": a, "b": b})
    [two] = write_safetensors(tmp_path / "2.safetensors", {"b": b, "a": a.T.contiguous().T})
    assert one.read_bytes() == two.read_bytes()
    assert read_header(one).data_start % 8 == 0
    conjugate = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    [three] = write_safetensors(tmp_path / "3.safetensors", {"c": conjugate})
    assert open_safetensors(three)["c"].tolist() == [1 - 2j]


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"a": torch.zeros(2, dtype=torch.complex128)}, UnsupportedError),
        ({"a": torch.zeros(2, device="meta")}, UnsupportedError),
        ({"a": torch.eye(3).to_sparse()}, UnsupportedError),
        ({"__metadata__": torch.zeros(2)}, FileFormatError),
        ({"\ud800": torch.zeros(2)}, FileFormatError),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(
    tmp_path: Path, tensors: dict[str, Tensor], error: type[Exception]
) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"old": torch.ones(1)})
    with pytest.raises(error):
        write_safetensors(path, tensors)
    with pytest.raises(FileFormatError, match="text to text"):
        write_safetensors(path, {"a": torch.ones(1)}, metadata={"epoch": 3})  # type: ignore[dict-item]
    assert list(open_safetensors(path)) == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_over_the_limit_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_HEADER_BYTES", 128)
    with pytest.raises(FileFormatError, match="over the limit"):
        write_safetensors(tmp_path / "a.safetensors", {"n" * 100: torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_absent_empty_and_folder(tmp_path: Path) -> None:
    for read in (open_safetensors, read_header):
        with pytest.raises(NotFoundError):
            read(tmp_path / "absent.safetensors")
        with pytest.raises(NotFoundError):
            read("nul\0byte.safetensors")
        with pytest.raises(FileFormatError):
            read(tmp_path)
        (tmp_path / "empty.safetensors").write_bytes(b"")
        with pytest.raises(FileFormatError):
            read(tmp_path / "empty.safetensors")


ENTRY = '{"a": {"dtype": "%s", "shape": [%s], "data_offsets": [%s]}}'


@pytest.mark.parametrize(
    ("declared", "text", "reason"),
    [
        (None, "", "needs at least 10"),
        (10**8 + 1, "{}", "over the limit"),
        (1, "{}", "a header of 1 bytes"),
        (10**8, "{}", "has 10 in all"),
        (2, "[]", "does not begin with a JSON object"),
        (3, " {}", "does not begin with a JSON object"),
        (None, ENTRY % ("U8", 4, "4, 0"), "not a start and an end"),
        (None, ENTRY % ("U8", 4, "0, 4, 4"), "not a start and an end"),
        (None, ENTRY % ("U8", 4, "0, 3"), "needs 4 bytes and declares 3"),
        (None, ENTRY % ("U8", 2**63, "0, 0"), "not a list of at most 64 whole numbers"),
        (None, ENTRY % ("U8", "4294967296, 2147483648", "0, 0"), "overflows"),
        (None, ENTRY % ("U7", 4, "0, 4"), "unknown dtype 'U7'"),
        (None, ENTRY % ("U8", 0, "1, 1"), "leaves a hole"),
        (None, ENTRY % ("U8", 4, "0, 4"), "cover 4 bytes and the file holds 0"),
    ],
)
def test_each_fault_is_called_by_its_name(tmp_path: Path, declared: int | None, text: str, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    length = len(text) if declared is None else declared
    path.write_bytes(length.to_bytes(8, "little")[: 8 if text else 7] + text.encode())
    if reason == "over the limit":
        os.truncate(path, 2 * 10**8)  # sparse: long enough for the header that it declares
    for read in (open_safetensors, read_header):
        with pytest.raises(FileFormatError, match=reason):
            read(path)


def test_elements_smaller_than_a_byte_are_known_and_not_offered(tmp_path: Path) -> None:
    build(tmp_path / "a.safetensors", (ENTRY % ("F4", 2, "0, 1")).encode(), b"a")
    with pytest.raises(UnsupportedError, match="F4"):
        open_safetensors(tmp_path / "a.safetensors")


def test_a_machine_with_the_other_byte_order_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = write_safetensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    monkeypatch.setattr(mapped, "sys", SimpleNamespace(byteorder="big"))
    with pytest.raises(UnsupportedError, match="little"):
        open_safetensors(path)


def test_a_bool_is_zero_or_one(tmp_path: Path) -> None:
    path = build(
        tmp_path / "a.safetensors", {"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\x01\x02"
    )
    with pytest.raises(FileFormatError, match="BOOL"):
        open_safetensors(path)["a"]
