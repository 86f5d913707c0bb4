"""Sound small model files and changes to them that know the format: a figure, a description, or a few bytes."""

from __future__ import annotations

import json
import random
import struct

from files import gguf_bytes as raw

BOUNDARY = [0, 1, -1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def safetensors_bytes(header: object, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return ((len(text) if length is None else length) % 2**64).to_bytes(8, "little") + text + data


def sound_header() -> dict[str, object]:
    return {
        "__metadata__": {"format": "pt"},
        "embed.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "norm": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "mask": {"dtype": "BOOL", "shape": [2, 2], "data_offsets": [32, 36]},
        "none": {"dtype": "I64", "shape": [0, 7], "data_offsets": [36, 36]},
        "step": {"dtype": "U8", "shape": [], "data_offsets": [36, 37]},
    }


SOUND_DATA = bytes(range(32)) + bytes([0, 1, 1, 0, 9])
ODD_VALUES: list[object] = [
    *BOUNDARY,
    1.0,
    0.5,
    True,
    None,
    "4",
    "F32",
    "F64",
    "F4",
    "F8_E8M0",
    [],
    [1],
    {},
    "\ud800",
    "\0",
    10**30,
]
SPLICES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\0",
    b"NaN",
    b"1e9",
    b" ",
    b"\xff",
    b'"a":1,',
    b"-",
    b"\\u0061",
]


def mutate_tree(header: dict[str, object], name: str, rng: random.Random) -> None:
    """One change to what the header says of a tensor."""
    entry = header[name]
    assert isinstance(entry, dict)
    match rng.randrange(8):
        case 0:
            entry["data_offsets"] = [
                rng.choice([*entry["data_offsets"], *BOUNDARY]) for _ in range(rng.choice([2, 2, 2, 1, 3]))
            ]
        case 1:
            shape = list(entry["shape"])
            shape.insert(rng.randrange(len(shape) + 1), rng.choice(BOUNDARY))
            entry["shape"] = shape[rng.randrange(2) :]
        case 2:
            entry[rng.choice(["dtype", "shape", "data_offsets", "extra"])] = rng.choice(ODD_VALUES)
        case 3:
            del entry[rng.choice(list(entry))]
        case 4:
            header[name] = rng.choice(ODD_VALUES)
        case 5:
            header[rng.choice(["__metadata__", "new", "../up", ""])] = rng.choice(
                [{"a": 1}, {"a": "b"}, *ODD_VALUES, entry]
            )
        case 6:
            del header[name]
        case _:
            entry["dtype"] = rng.choice(["F32", "F16", "BF16", "I64", "BOOL", "U8", "C64", "F8_E5M2", "f32", "F128"])


def mutate_bytes(data: bytes, rng: random.Random, header_end: int) -> bytes:
    """One change to the bytes, mostly where they declare something."""
    out = bytearray(data)
    at = rng.randrange(min(header_end + 8, len(out)))
    match rng.randrange(6):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out[at] = rng.randrange(256)
        case 2:
            out[at:at] = rng.choice(SPLICES)
        case 3:
            del out[at : at + rng.randrange(1, 5)]
        case 4:
            del out[rng.randrange(len(out)) :]
        case _:
            out += bytes(rng.randrange(1, 70))
    return bytes(out)


def mutated_safetensors(rng: random.Random) -> bytes:
    header = sound_header()
    kind = rng.randrange(10)
    if kind < 5:
        for name in rng.sample([key for key in header if key != "__metadata__"], rng.choice([1, 1, 2])):
            mutate_tree(header, name, rng)
    text = json.dumps(header).encode()
    length = rng.choice([*BOUNDARY, len(text) - 1, len(text) + 1, 10**8, 10**8 + 1]) if kind == 5 else None
    data = safetensors_bytes(text + b" " * (-len(text) % 8), SOUND_DATA, length=length)
    return mutate_bytes(data, rng, 8 + len(text)) if kind > 5 else data


def mutated_gguf(rng: random.Random) -> bytes:
    file = raw.sample()
    kind = rng.randrange(10)
    tensor = rng.choice(file.tensors)
    if kind < 2:
        match rng.randrange(7):
            case 0:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(
                    [0, 1, 2, 32, 64, 2**32, 2**61, 2**63, 2**64 - 1]
                )
            case 1:
                tensor.dims.insert(0, rng.choice([0, 1, 1, 32, 2**33]))
            case 2:
                tensor.type_id = rng.randrange(45)
            case 3:
                tensor.offset = rng.choice([0, 32, 64, 96, 128, 8, 2**63, 2**64 - 32])
            case 4:
                tensor.name = rng.choice([other.name for other in file.tensors] + ["", "x" * 70000, b"\xff", "../x"])
            case 5:
                rng.shuffle(file.tensors)
            case _:
                file.alignment = rng.choice([8, 16, 64])
                if rng.random() < 0.7:
                    file.pairs[1] = ("general.alignment", raw.U32, struct.pack("<I", file.alignment))
    elif kind == 2:
        key, type_id, body = rng.choice(file.pairs)
        file.pairs.append((rng.choice([key, "new"]), rng.choice([type_id, rng.randrange(16)]), body))
    data = file.build()
    if 3 <= kind < 7:
        _, position, width = rng.choice(file.figures)
        value = rng.choice([*BOUNDARY, len(data), len(data) - position, rng.randrange(2**20)])
        return data[:position] + (value % 2 ** (8 * width)).to_bytes(width, "little") + data[position + width :]
    return mutate_bytes(data, rng, len(data) - 256) if kind >= 7 else data
