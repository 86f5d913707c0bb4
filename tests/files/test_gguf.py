"""The GGUF reader and writer against the `gguf` package, in both directions, and every declared figure checked."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from files import gguf_bytes as raw

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError, ShapeError, UnsupportedError
from almanac.files.gguf import FORMATS, GGUF, format_named, read_gguf, write_gguf


def read_bytes(folder: Path, data: bytes) -> GGUF:
    (folder / "x.gguf").write_bytes(data)
    return read_gguf(folder / "x.gguf")


def test_a_sound_file_reads_as_built(tmp_path: Path) -> None:
    opened = read_bytes(tmp_path, raw.sample().build())
    assert (opened.version, opened.alignment) == (3, 32)
    scores = opened.metadata.pop("scores")
    flags = opened.metadata.pop("flags")
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32 and scores.tolist() == [1.0, -2.0, 0.5]
    assert isinstance(flags, np.ndarray) and flags.dtype == np.bool_ and flags.tolist() == [False, True]
    assert opened.metadata == {
        "general.architecture": "llama",
        "general.alignment": 32,
        "a.u8": 255,
        "a.i8": -1,
        "a.u16": 65534,
        "a.i16": -2,
        "a.i32": -5,
        "a.f32": 1.5,
        "a.u64": 2**63,
        "a.i64": -(2**62),
        "a.f64": 0.1,
        "a.bool": True,
        "tokens": ["a", "", "ü"],
    }
    assert {name: (tensor.type, tensor.shape, tensor.nbytes) for name, tensor in opened.tensors.items()} == {
        "token_embd.weight": ("F32", (3, 4), 48),
        "blk.0.attn_q.weight": ("Q4_0", (2, 32), 36),
        "blk.0.ffn_up.weight": ("Q8_0", (64,), 68),
        "output_norm.weight": ("F16", (8,), 16),
    }
    blocks = opened.tensors["blk.0.attn_q.weight"].blocks()
    assert blocks.shape == (2, 18) and blocks.flatten().tolist() == list(range(36))
    assert opened.tensors["blk.0.attn_q.weight"].dense().shape == (2, 32)


def test_version_two_reads_the_same(tmp_path: Path) -> None:
    file = raw.sample()
    file.version = 2
    assert read_bytes(tmp_path, file.build()).version == 2


def test_f32_is_shared_and_changes_stay_in_memory(tmp_path: Path) -> None:
    data = raw.sample().build()
    tensor = read_bytes(tmp_path, data).tensors["token_embd.weight"]
    assert tensor.dense().data_ptr() == tensor.blocks().data_ptr()
    tensor.dense().zero_()
    assert not tensor.dense().any()
    assert (tmp_path / "x.gguf").read_bytes() == data


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint32("n", 7)
    writer.add_string("empty", "")
    writer.add_array("words", ["x", "ÿ" * 300, ""])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_float64("precise", 0.1)
    tensors = {"F32": generator.standard_normal((2, 3, 4, 32)), "Q8_0": generator.standard_normal((3, 64))}
    tensors["F16"] = generator.standard_normal(5)
    for name, values in tensors.items():
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = read_gguf(tmp_path / "x.gguf")
    assert opened.metadata["words"] == ["x", "ÿ" * 300, ""] and opened.metadata["precise"] == 0.1
    assert np.array_equal(opened.metadata["numbers"], [1, -2, 3]) and opened.metadata["n"] == 7
    for theirs in gguf.GGUFReader(tmp_path / "x.gguf").tensors:
        values = opened.tensors[theirs.name].dense().numpy()
        assert np.array_equal(values, gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(values.shape))
        assert values.shape == tensors[theirs.name].shape


METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "negative": -3,
    "large": 2**40,
    "largest": 2**64 - 1,
    "eps": 1e-5,
    "flag": False,
    "template": "{% for m in messages %}ü\n",
    "tokens": ["<s>", "", "ü", "\0"],
    "ids": [3, -1, 2],
    "scores": np.array([0.5, -1.5], dtype=np.float32),
    "bytes": np.arange(4, dtype=np.uint8),
    "mask": [True, False],
    "short": np.int16(-7),
    "precise": np.float64(0.1),
}
KINDS = {"llama.block_count": "UINT32", "negative": "INT32", "large": "INT64", "largest": "UINT64", "eps": "FLOAT32",
         "flag": "BOOL", "template": "STRING", "short": "INT16", "precise": "FLOAT64"}  # fmt: skip
ARRAY_KINDS = {"tokens": "STRING", "ids": "INT32", "scores": "FLOAT32", "bytes": "UINT8", "mask": "BOOL"}


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_the_package_reads_what_we_write(tmp_path: Path, alignment: int) -> None:
    torch.manual_seed(0)
    dense = {f"t.{entry.name}": torch.randn(2, 3, 256) for entry in FORMATS.values()}
    tensors = {f"t.{entry.name}": (entry.name, dense[f"t.{entry.name}"], (2, 3, 256)) for entry in FORMATS.values()}
    packed = format_named("Q5_1").quantize(torch.randn(5, 32))
    tensors["packed"] = ("Q5_1", packed, (5, 32))
    tensors["empty"] = ("F32", torch.zeros(0), (0,))
    write_gguf(tmp_path / "x.gguf", METADATA | {"general.alignment": alignment}, tensors)
    theirs = gguf.GGUFReader(tmp_path / "x.gguf")
    assert theirs.alignment == alignment
    for key, value in METADATA.items():
        field = theirs.get_field(key)
        assert field is not None
        want = np.float32(value).item() if key == "eps" else plain(value)
        assert field.contents() == want
        kinds = [KINDS[key]] if key in KINDS else ["ARRAY", ARRAY_KINDS[key]] if key in ARRAY_KINDS else ["STRING"]
        assert [kind.name for kind in field.types] == kinds, key
    assert [tensor.name for tensor in theirs.tensors] == list(tensors), "the order is kept"
    ours = read_gguf(tmp_path / "x.gguf")
    for tensor in theirs.tensors:
        assert tensor.data_offset % alignment == 0
        assert tuple(reversed(tensor.shape.tolist())) == tensors[tensor.name][2] == ours.tensors[tensor.name].shape
        assert tensor.data.tobytes() == ours.tensors[tensor.name].blocks().numpy().tobytes()
        if tensor.name in dense:
            entry = FORMATS[int(tensor.tensor_type)]
            assert tensor.data.tobytes() == entry.quantize(dense[tensor.name]).numpy().tobytes()
    assert ours.tensors["packed"].blocks().equal(packed)
    assert torch.equal(ours.tensors["t.F32"].dense(), dense["t.F32"])


def test_our_own_round_trip_keeps_values_kinds_and_bytes(tmp_path: Path) -> None:
    source = read_bytes(tmp_path, raw.sample().build())
    nested = {"nested": [[1, 2], [3]], "deep": [[["a"], []], [["b"]]]}
    kinds = {"nested": "array:array:int32", "deep": "array:array:array:string"}
    tensors = {name: (tensor.type, tensor.blocks(), tensor.shape) for name, tensor in source.tensors.items()}
    write_gguf(tmp_path / "y.gguf", source.metadata | nested, tensors, types=source.types | kinds)
    again = read_gguf(tmp_path / "y.gguf")
    assert again.types == source.types | kinds
    assert list(again.metadata) == [*source.metadata, "nested", "deep"]
    for key, value in source.metadata.items():
        assert np.array_equal(again.metadata[key], value), key
    assert [part.tolist() for part in again.metadata["nested"]] == [[1, 2], [3]]
    assert again.metadata["deep"] == nested["deep"]
    for name, tensor in source.tensors.items():
        assert again.tensors[name].blocks().equal(tensor.blocks())


@pytest.mark.parametrize(
    ("metadata", "types"),
    [
        ({"a": []}, {}),
        ({"a": [1, "x"]}, {}),
        ({"a": None}, {}),
        ({"a": {"b": 1}}, {}),
        ({"a": 2**64}, {}),
        ({"a": 300}, {"a": "uint8"}),
        ({"a": -1}, {"a": "uint32"}),
        ({"a": 1e300}, {}),
        ({"a": True}, {"a": "uint8"}),
        ({"a": 1}, {"a": "bool"}),
        ({"a": 1}, {"a": "int128"}),
        ({"a": 1}, {"a": "string"}),
        ({"a": "x"}, {"a": "array:string"}),
        ({"a": [[[[[1]]]]]}, {}),
        ({"": 1}, {}),
        ({"\ud800": 1}, {}),
        ({"a": "\ud800"}, {}),
        ({"general.alignment": 12}, {}),
        ({"general.alignment": 0}, {}),
        ({"general.alignment": "32"}, {}),
    ],
)
def test_metadata_that_cannot_be_written(tmp_path: Path, metadata: dict[str, object], types: dict[str, str]) -> None:
    with pytest.raises(FileFormatError):
        write_gguf(tmp_path / "x.gguf", metadata, {}, types=types)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (("Q4_0", torch.zeros(2, 33), (2, 33)), ShapeError),
        (("F32", torch.zeros(2, 3), (2, 4)), ShapeError),
        (("F32", torch.zeros(2, 3), (-2, -3)), ShapeError),
        (("F32", torch.zeros(6, dtype=torch.int32), (6,)), ShapeError),
        (("Q4_0", torch.zeros(17, dtype=torch.uint8), (32,)), ShapeError),
        (("F32", torch.zeros(()), ()), ShapeError),
        (("F32", torch.zeros(1, 1, 1, 1, 1), (1, 1, 1, 1, 1)), ShapeError),
        (("Q9_Z", torch.zeros(32), (32,)), UnsupportedError),
        (("Q4_0", torch.full((32,), torch.nan), (32,)), UnsupportedError),
    ],
)
def test_tensors_that_cannot_be_written_leave_the_old_file(
    tmp_path: Path, entry: tuple[str, torch.Tensor, tuple[int, ...]], error: type[AlmanacError]
) -> None:
    write_gguf(tmp_path / "x.gguf", {"old": 1}, {})
    with pytest.raises(error):
        write_gguf(tmp_path / "x.gguf", {}, {"good": ("F32", torch.ones(4), (4,)), "bad": entry})
    with pytest.raises(FileFormatError, match="63"):
        write_gguf(tmp_path / "x.gguf", {}, {"n" * 64: ("F32", torch.ones(4), (4,))})
    assert read_gguf(tmp_path / "x.gguf").metadata == {"old": 1}


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + body


WRONG_PAIR: dict[str, tuple[str | bytes, int, bytes]] = {
    "duplicate key": ("a.u8", raw.U8, b"\xff"),
    "unknown value kind": ("x", 13, b""),
    "unknown array kind": ("x", raw.ARRAY, array(13, 0)),
    "bool of 2": ("x", raw.BOOL, b"\x02"),
    "array bool of 2": ("x", raw.ARRAY, array(raw.BOOL, 1, b"\x02")),
    "bad UTF-8 value": ("x", raw.STRING, raw.text(b"\xff")),
    "bad UTF-8 in array": ("x", raw.ARRAY, array(raw.STRING, 1, raw.text(b"\xc0\x80"))),
    "bad UTF-8 key": (b"\xff", raw.U8, b"\x01"),
    "empty key": ("", raw.U8, b"\x01"),
    "giant key": ("k" * 65536, raw.U8, b"\x01"),
    "deep nesting": ("x", raw.ARRAY, array(raw.ARRAY, 1) * 4 + array(raw.U8, 0)),
    "mixed nesting": ("x", raw.ARRAY, array(raw.ARRAY, 2, array(raw.U8, 1, b"\1") + array(raw.I8, 1, b"\1"))),
}
WRONG_ALIGNMENT: dict[str, tuple[int, bytes]] = {
    **{f"alignment {value}": (raw.U32, struct.pack("<I", value)) for value in (0, 1, 4, 48, 2**31 + 1, 2**32 - 1)},
    "alignment of another kind": (raw.U64, struct.pack("<Q", 32)),
}
WRONG_TENSOR: dict[str, tuple[int, dict[str, object]]] = {
    "duplicate tensor": (1, {"name": "token_embd.weight"}),
    "no dimensions": (0, {"dims": []}),
    "five dimensions": (0, {"dims": [4, 3, 1, 1, 1]}),
    "overflowing product": (0, {"dims": [2**32, 2**32]}),
    "overflow hidden by a zero": (0, {"dims": [2**62, 2**62, 0], "data": b""}),
    "row of half a block": (1, {"dims": [16, 4]}),
    "unaligned": (1, {"offset": 65}),
    "overlap": (1, {"offset": 32}),
    "hole": (3, {"offset": 2**10, "data": bytes(2**11)}),
    "unknown tensor type": (0, {"type_id": 99}),
}


@pytest.mark.parametrize("change", [*WRONG_PAIR, *WRONG_ALIGNMENT, *WRONG_TENSOR])
def test_one_wrong_thing_is_refused(tmp_path: Path, change: str) -> None:
    file = raw.sample()
    if change in WRONG_PAIR:
        file.pairs.append(WRONG_PAIR[change])
    elif change in WRONG_ALIGNMENT:
        file.pairs[1] = ("general.alignment", *WRONG_ALIGNMENT[change])
        declared = int.from_bytes(WRONG_ALIGNMENT[change][1], "little")
        file.alignment = declared if 0 < declared < 100 else 32  # so that nothing else is wrong with the file
    else:
        place, fields = WRONG_TENSOR[change]
        file.tensors[place] = dataclasses.replace(file.tensors[place], **fields)
    reason = "appears twice" if "duplicate" in change else "alignment is" if "alignment" in change else ""
    with pytest.raises(FileFormatError, match=f"not a sound GGUF file: .*{reason}"):
        read_bytes(tmp_path, file.build())


def test_a_string_that_runs_over_the_end_of_the_file_is_refused(tmp_path: Path) -> None:
    cut = struct.pack("<IQQ", raw.STRING, 1, 100) + b"abc"
    with pytest.raises(FileFormatError, match="100 bytes long"):
        read_bytes(tmp_path, raw.RawFile(pairs=[("x", raw.ARRAY, cut)]).build())


def test_a_count_is_compared_with_what_is_left_before_anything_is_read(tmp_path: Path) -> None:
    pair = ("x", raw.ARRAY, array(raw.STRING, 1000, raw.text("a") * 9))
    with pytest.raises(FileFormatError, match="declares 1000 strings and 81 bytes are left"):
        read_bytes(tmp_path, raw.RawFile(pairs=[pair]).build())


def test_more_strings_than_any_vocabulary_are_refused_before_they_are_made(tmp_path: Path) -> None:
    count = (1 << 24) + 1
    data = raw.RawFile(pairs=[("x", raw.ARRAY, struct.pack("<IQ", raw.STRING, count))]).build()
    (tmp_path / "x.gguf").write_bytes(data)
    os.truncate(tmp_path / "x.gguf", len(data) + 8 * count)  # empty strings, a sparse file
    with pytest.raises(FileFormatError, match=f"declares {count} strings"):
        read_gguf(tmp_path / "x.gguf")


def test_truncation_at_every_byte_and_any_rest_are_refused(tmp_path: Path) -> None:
    data = raw.sample().build()
    for length in range(1, len(data)):
        with pytest.raises(FileFormatError):
            read_bytes(tmp_path, data[:length])
    assert read_bytes(tmp_path, data + bytes(31)).tensors, "padding behind the last tensor is sound"
    with pytest.raises(FileFormatError, match="belong to no tensor"):
        read_bytes(tmp_path, data + bytes(64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0x03000000}, "big-endian"),
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
    ],
)
def test_other_versions_say_so(tmp_path: Path, change: dict[str, int], message: str) -> None:
    file = raw.sample()
    file.version = change["version"]
    with pytest.raises(UnsupportedError, match=message):
        read_bytes(tmp_path, file.build())


def test_types_that_exist_and_are_not_offered_are_named(tmp_path: Path) -> None:
    file = raw.sample()
    for kind in gguf.GGMLQuantizationType:
        if int(kind) not in FORMATS:
            file.tensors[0].type_id = int(kind)
            with pytest.raises(UnsupportedError, match=rf"as {kind.name},"):
                read_bytes(tmp_path, file.build())


def test_absent_empty_folder_and_metadata_only(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(FileFormatError):
        read_gguf(tmp_path)
    with pytest.raises(FileFormatError):
        read_bytes(tmp_path, b"")
    file = raw.RawFile(pairs=[("a", raw.U8, b"\x05")])
    assert read_bytes(tmp_path, file.build()).metadata == {"a": 5}
