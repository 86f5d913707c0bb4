"""GGUF files put together from raw figures, right or wrong, without the code under test; notes where each figure lies."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


@dataclass
class RawTensor:
    """A tensor as the file shall declare it; `data` is what actually lies there."""

    name: str | bytes
    dims: list[int]  # fastest first, as in the file
    type_id: int
    data: bytes
    offset: int | None = None  # None: where it belongs


@dataclass
class RawFile:
    """`pairs` are (key, type id, body bytes). `figures` after `build` are (label, position, width in bytes)."""

    pairs: list[tuple[str | bytes, int, bytes]] = field(default_factory=list)
    tensors: list[RawTensor] = field(default_factory=list)
    version: int = 3
    alignment: int = 32
    tensor_count: int | None = None
    pair_count: int | None = None
    figures: list[tuple[str, int, int]] = field(default_factory=list)

    def build(self) -> bytes:
        out = bytearray(b"GGUF")
        self.figures = []

        def figure(label: str, value: int, width: int = 8) -> None:
            self.figures.append((label, len(out), width))
            out.extend((value % 2 ** (8 * width)).to_bytes(width, "little"))

        figure("version", self.version, 4)
        figure("tensor count", len(self.tensors) if self.tensor_count is None else self.tensor_count)
        figure("pair count", len(self.pairs) if self.pair_count is None else self.pair_count)
        for key, type_id, body in self.pairs:
            key_bytes = key if isinstance(key, bytes) else key.encode()
            figure("key length", len(key_bytes))
            out.extend(key_bytes)
            figure("value type", type_id, 4)
            if type_id == STRING:
                self.figures.append(("string length", len(out), 8))
            elif type_id == ARRAY:
                self.figures += [("array type", len(out), 4), ("array count", len(out) + 4, 8)]
                if body[:4] == struct.pack("<I", STRING):
                    self.figures.append(("first string length", len(out) + 12, 8))
            elif key == "general.alignment":
                self.figures.append(("alignment", len(out), len(body)))
            out.extend(body)
        position = 0
        for tensor in self.tensors:
            name = tensor.name if isinstance(tensor.name, bytes) else tensor.name.encode()
            figure("name length", len(name))
            out.extend(name)
            figure("dimensions", len(tensor.dims), 4)
            for size in tensor.dims:
                figure("dimension", size)
            figure("tensor type", tensor.type_id, 4)
            figure("offset", position if tensor.offset is None else tensor.offset)
            position += -(-len(tensor.data) // self.alignment) * self.alignment
        for tensor in self.tensors:
            out.extend(bytes(-len(out) % self.alignment) + tensor.data)
        return bytes(out)


def sample(data: bytes = bytes(range(256)) * 4) -> RawFile:
    """A small sound file with every kind of value and four tensors (F32, Q4_0, Q8_0, F16)."""
    pairs: list[tuple[str | bytes, int, bytes]] = [
        ("general.architecture", STRING, text("llama")),
        ("general.alignment", U32, struct.pack("<I", 32)),
        ("a.u8", U8, b"\xff"),
        ("a.i8", I8, b"\xff"),
        ("a.u16", U16, b"\xfe\xff"),
        ("a.i16", I16, b"\xfe\xff"),
        ("a.i32", I32, struct.pack("<i", -5)),
        ("a.f32", F32, struct.pack("<f", 1.5)),
        ("a.u64", U64, struct.pack("<Q", 2**63)),
        ("a.i64", I64, struct.pack("<q", -(2**62))),
        ("a.f64", F64, struct.pack("<d", 0.1)),
        ("a.bool", BOOL, b"\x01"),
        ("tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ü")),
        ("scores", ARRAY, struct.pack("<IQ3f", F32, 3, 1.0, -2.0, 0.5)),
        ("flags", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x00\x01"),
    ]
    tensors = [
        RawTensor("token_embd.weight", [4, 3], 0, data[:48]),
        RawTensor("blk.0.attn_q.weight", [32, 2], 2, data[:36]),
        RawTensor("blk.0.ffn_up.weight", [64], 8, data[:68]),
        RawTensor("output_norm.weight", [8], 1, data[:16]),
    ]
    return RawFile(pairs=pairs, tensors=tensors)
